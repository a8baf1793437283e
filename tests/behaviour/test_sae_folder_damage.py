"""A damaged folder of a saved SAE is refused, in one sentence with the name of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from monoloss.errors import InputError
from monoloss.sae import folder as sae_folder
from monoloss.sae.model import SparseAutoencoder
from support.saved_saes import D, M, trained_sae

pytestmark = pytest.mark.door

Damage = Callable[[Path], object]
DESCRIBED = "expected the tensors that config.json describes"
KEYS = "library, library_version, d_in, sae, encoder, store_fingerprint, training"


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Copies: what is loaded is mapped to the file that is about to be overwritten."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def metadata(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the content of config.json."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def tensors(**changed: Callable[[torch.Tensor], torch.Tensor] | None) -> Damage:
    """Change or take away tensors of model.safetensors."""

    def damage(folder: Path) -> None:
        stored = stored_tensors(folder)
        for name, change in changed.items():
            tensor = stored.pop(name, torch.zeros(3))
            if change is not None:
                stored[name] = change(tensor).contiguous()
        save_file(stored, folder / "model.safetensors")

    return damage


def sae_facts(**changed: object) -> Damage:
    """Change keys of the configuration in config.json."""
    return metadata(lambda content: content["sae"].update(changed))


def cut(name: str, n_bytes: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes])


def become(name: str) -> Damage:
    """The tensors are a file of another name."""
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def pickled(folder: Path) -> None:
    """A pickle under the name of a safetensors file."""
    torch.save(stored_tensors(folder), folder / "model.safetensors")


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.index_fill(0, torch.tensor([2]), torch.nan)


DAMAGES: list[tuple[str, Damage, str]] = [
    # config.json
    ("config.json", lambda folder: (folder / "config.json").unlink(), "got No such file or directory; expected "),
    ("config.json", cut("config.json", 200), "got a file that is not JSON"),
    ("config.json", cut("config.json", 0), "got a file that is not JSON"),
    (
        "config.json",
        metadata(lambda c: c.update(format_version=2)),
        "got format_version 2; expected format_version 1, which",
    ),
    (
        "config.json",
        metadata(lambda c: c.pop("format_version")),
        "got no format_version; expected format_version 1, which",
    ),
    (
        "config.json",
        lambda folder: (folder / "config.json").write_text('{"model_type": "vit", "hidden_size": 768}'),
        "got no format_version; expected format_version 1, which",
    ),
    (
        "config.json",
        metadata(lambda c: c.update(library="sae_lens")),
        "got a file of another library; expected the config.json of a SAE saved by monoloss",
    ),
    ("config.json: note", metadata(lambda c: c.update(note="mine")), f"got an unknown key; expected one of {KEYS}"),
    ("config.json: training", metadata(lambda c: c.pop("training")), "got nothing; expected a value for this key"),
    ("config.json: training", metadata(lambda c: c.update(training=3)), "got a int; expected a mapping or None"),
    (
        "config.json: store_fingerprint",
        metadata(lambda c: c.update(store_fingerprint=3)),
        "got a int; expected a text or None",
    ),
    ("config.json: library_version", metadata(lambda c: c.update(library_version=1)), "got 1; expected text"),
    ("config.json: d_in", metadata(lambda c: c.update(d_in="12")), "got '12'; expected an integer"),
    ("config.json: sae", metadata(lambda c: c.update(sae="topk")), "got a str; expected keys and values"),
    ("config.json: sae.variant", sae_facts(variant="gated"), "got 'gated'; expected one of "),
    ("config.json: sae.k", metadata(lambda c: c["sae"].pop("k")), "got nothing; expected an integer"),
    ("config.json: sae.l1_weight", sae_facts(l1_weight=1.0), "got an option of vanilla; expected those of "),
    (
        "config.json: sae.inputs.center",
        metadata(lambda c: c["sae"]["inputs"].update(center=1)),
        "got 1; expected true or false",
    ),
    (
        "config.json: sae.aux.k",
        metadata(lambda c: c["sae"]["aux"].update(k=0)),
        "got 0; expected an integer at least 1",
    ),
    # what config.json says and model.safetensors holds
    (
        "model.safetensors",
        metadata(lambda c: c.update(d_in=0)),
        f"got encoder_weight of shape ({D}, {M}); expected shape (0, ",
    ),
    (
        "model.safetensors",
        sae_facts(n_latents=10**15),  # and nothing of that size is made
        f"got encoder_weight of shape ({D}, {M}); expected shape ({D}, {10**15}), as config.json says",
    ),
    ("model.safetensors", sae_facts(tied=True), f"got a tensor 'decoder_weight'; {DESCRIBED}"),
    (
        "model.safetensors",
        metadata(lambda c: c["sae"]["inputs"].update(center=True)),
        f"got no tensor 'input_mean'; {DESCRIBED}",
    ),
    # model.safetensors
    ("model.safetensors", tensors(encoder_weight=None), f"got no tensor 'encoder_weight'; {DESCRIBED}"),
    ("model.safetensors", tensors(decoder_bias=None), f"got no tensor 'decoder_bias'; {DESCRIBED}"),
    ("model.safetensors", tensors(decoder_scale=lambda t: t), f"got a tensor 'decoder_scale'; {DESCRIBED}"),
    (
        "model.safetensors",
        tensors(decoder_bias=lambda t: t[:-1]),
        f"got decoder_bias of shape ({D - 1},); expected shape ({D},), as config.json says",
    ),
    (
        "model.safetensors",
        tensors(decoder_weight=lambda t: t.t()),
        f"got decoder_weight of shape ({D}, {M}); expected shape ({M}, {D}), as config.json says",
    ),
    (
        "model.safetensors",
        tensors(encoder_weight=lambda t: t.half()),
        "got encoder_weight of dtype torch.float16; expected torch.float32",
    ),
    (
        "model.safetensors",
        tensors(samples_since_active=lambda t: t.int()),
        "got samples_since_active of dtype torch.int32; expected torch.int64",
    ),
    (
        "model.safetensors",
        tensors(encoder_bias=with_nan),
        "got encoder_bias with NaN or infinity; expected finite numbers",
    ),
    (
        "model.safetensors",
        tensors(samples_since_active=lambda t: -t - 1),
        "got samples_since_active below 0; expected numbers of at least 0",
    ),
    ("model.safetensors", cut("model.safetensors", 1000), "got an unreadable file ("),
    ("model.safetensors", cut("model.safetensors", 4), "got an unreadable file ("),
    ("model.safetensors", cut("model.safetensors", 0), "got an unreadable file ("),
    ("model.safetensors", pickled, "got an unreadable file ("),
    (
        "model.safetensors",
        lambda folder: (folder / "model.safetensors").unlink(),
        "got no such file; expected a saved model folder",
    ),
    *(
        (
            name,
            become(name),
            "got a pickle file; expected model.safetensors: a pickle file can run code when it is read",
        )
        for name in ("pytorch_model.bin", "sae.pt", "sae.pth", "weights.pkl", "last.ckpt")
    ),
]


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(sae_folder, "snapshot_download", refuse)


@pytest.mark.parametrize(("where", "damage", "text"), DAMAGES)
def test_refused_with_the_name_of_the_file(where, damage, text, tmp_path):
    trained_sae("topk").save_pretrained(tmp_path / "sae")
    SparseAutoencoder.from_pretrained(tmp_path / "sae")
    damage(tmp_path / "sae")
    with pytest.raises(InputError) as caught:
        SparseAutoencoder.from_pretrained(tmp_path / "sae")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/sae/{where}: {text}")
    assert "\n" not in message


@pytest.mark.parametrize("case", ["batch_topk", "jump_relu"])
def test_thresholds_are_read_as_strictly(case, tmp_path):
    trained_sae(case).save_pretrained(tmp_path)
    tensors(**{"activation.threshold": lambda t: t * torch.nan})(tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors: got activation\.threshold with NaN or infinity"):
        SparseAutoencoder.from_pretrained(tmp_path)
    tensors(**{"activation.threshold": None})(tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors: got no tensor 'activation\.threshold'"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_a_width_that_the_variant_cannot_have(tmp_path):
    sae = trained_sae("topk")
    sae.save_pretrained(tmp_path)
    metadata(lambda c: c.update(d_in=1))(tmp_path)
    tensors(encoder_weight=lambda t: t[:1], decoder_weight=lambda t: t[:, :1], decoder_bias=lambda t: t[:1])(tmp_path)
    with pytest.raises(InputError) as caught:
        SparseAutoencoder.from_pretrained(tmp_path)
    assert str(caught.value) == f"{tmp_path}/config.json: d_in: got 1; expected an integer at least 2"


def test_what_is_no_folder_of_a_saved_sae(tmp_path):
    trained_sae("topk").save_pretrained(tmp_path / "sae")
    expected = "the folder of a saved SAE, or a name on the Hub written hf-hub:USER/NAME"
    folder_only = "none with a folder: it is for names on the Hub, hf-hub:USER/NAME"
    for argument, options, text in (
        ("user/name", {}, f"user/name: got no such folder; expected {expected}"),
        (tmp_path / "no", {}, f"{tmp_path}/no: got no such folder; expected {expected}"),
        (
            tmp_path / "sae" / "model.safetensors",
            {},
            f"{tmp_path}/sae/model.safetensors: got a file; expected {expected}",
        ),
        (tmp_path, {}, f"{tmp_path}/config.json: got No such file or directory; expected a readable JSON file"),
        (3, {}, "pretrained_model_name_or_path: got a int; expected a path, or a name on the Hub"),
        (tmp_path / "sae", {"revision": "v2"}, f"revision: got a value; expected {folder_only}"),
        (tmp_path / "sae", {"token": "secret"}, f"token: got a value; expected {folder_only}"),
        (tmp_path / "sae", {"local_files_only": True}, f"local_files_only: got a value; expected {folder_only}"),
    ):
        with pytest.raises(InputError) as caught:
            SparseAutoencoder.from_pretrained(argument, **options)
        assert str(caught.value) == text
    for device in ("warp", "cuda:99"):
        with pytest.raises(InputError, match=f"^device: got '{device}' .*; expected a device of this machine$"):
            SparseAutoencoder.from_pretrained(tmp_path / "sae", device=device)
