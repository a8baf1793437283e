"""SAEs as folders: the same bits come back, whole or not at all; the card, and the way to the Hub and back."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin
from safetensors.torch import load_file, save_file

from checkpoint_samples import ALL_STEPS, CASES, D, K, M, sample_rows, trained_sae
from monoloss.errors import InputError
from monoloss.sae import checkpoint
from monoloss.sae.checkpoint_files import Provenance
from monoloss.sae.config import BatchTopKConfig, TopKConfig
from monoloss.sae.model import SparseAutoencoder
from sae_samples import bits_of

TOKEN = "of nobody"  # noqa: S105 - it opens nothing
PATH = type(Path()).__name__
FILES = ["README.md", "config.json", "model.safetensors"]
PROVENANCE = Provenance({"name": "vit", "size": [224, 224]}, "ab12", {"lr": 1e-4, "clip_norm": None, "name": "Zürich"})


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def saved(case: str, folder: Path) -> tuple[SparseAutoencoder, Path]:
    sae = trained_sae(case)
    sae.save_pretrained(folder / case)
    return sae, folder / case


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)


# The same model comes back

NEW_PROCESS = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from monoloss import SparseAutoencoder
torch.set_num_threads(1)
folder = Path(sys.argv[1])
rows = load_file(folder / "rows.safetensors")["rows"]
for case in sys.argv[2:]:
    output = SparseAutoencoder.from_pretrained(folder / case)(rows)
    codes = output.codes if isinstance(output.codes, torch.Tensor) else output.codes.to_dense()
    tensors = {"codes": codes, "reconstruction": output.reconstruction}
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / f"{case}.safetensors")
"""


@torch.no_grad()
def test_a_new_process_encodes_to_the_same_bits(tmp_path):
    rows = sample_rows()
    save_file({"rows": rows}, tmp_path / "rows.safetensors")
    saes = {case: saved(case, tmp_path)[0] for case in CASES}
    subprocess.run([sys.executable, "-c", NEW_PROCESS, str(tmp_path), *saes], check=True)
    for case, sae in saes.items():
        came = load_file(tmp_path / f"{case}.safetensors")
        codes = sae.encode(rows).to_dense()
        assert 0 < int((codes > 0).sum()) < 0.7 * codes.numel(), case
        assert came["codes"].numpy().tobytes() == codes.numpy().tobytes(), case
        assert came["reconstruction"].numpy().tobytes() == sae(rows).reconstruction.numpy().tobytes(), case


@pytest.mark.parametrize("case", CASES)
def test_all_of_it_comes_back(case, tmp_path, no_network):
    sae, folder = saved(case, tmp_path)
    assert sorted(contents_of(folder)) == FILES
    back = SparseAutoencoder.from_pretrained(str(folder))
    assert type(back) is SparseAutoencoder
    assert (back.config, back.d_in, back.provenance) == (sae.config, D, Provenance())
    assert bits_of(back) == bits_of(sae)
    assert not any(module.training for module in back.modules())
    assert all(parameter.requires_grad for parameter in back.parameters())
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == sae.state_dict().keys()
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert kinds.pop("samples_since_active") == torch.int64
    assert set(kinds.values()) == {torch.float32}


def test_loading_draws_nothing_from_the_generator_of_others(tmp_path):
    _, folder = saved("topk", tmp_path)
    state = torch.get_rng_state()
    SparseAutoencoder.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_half_precision_is_held_exactly(case, dtype, tmp_path):
    sae, rows = trained_sae(case).to(dtype), sample_rows()
    sae.save_pretrained(tmp_path / "sae")
    back = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert back.encoder_weight.dtype == torch.float32
    assert torch.equal(back.encode(rows).to_dense(), sae.encode(rows).to_dense())
    assert torch.equal(back(rows).reconstruction, sae(rows).reconstruction)


def test_what_the_facts_say(tmp_path):
    sae = trained_sae("topk_centred")
    sae.provenance = PROVENANCE
    sae.save_pretrained(tmp_path / "sae")
    inputs = {"unit_norm": True, "center": True, "standardise": True}
    aux = {"k": 64, "weight": 1 / 32, "dead_after_samples": 10_000_000}
    assert json.loads((tmp_path / "sae" / "config.json").read_text()) == {
        "format_version": 1,
        "library": "monoloss",
        "library_version": version("monoloss"),
        "d_in": D,
        "sae": {"variant": "topk", "n_latents": M, "k": K, "tied": False, "inputs": inputs, "aux": aux},
        "encoder": {"name": "vit", "size": [224, 224]},
        "store_fingerprint": "ab12",
        "training": {"lr": 1e-4, "clip_norm": None, "name": "Zürich"},
    }
    back = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert back.provenance == PROVENANCE
    back.save_pretrained(tmp_path / "again")  # and goes on with the model
    assert contents_of(tmp_path / "again") == contents_of(tmp_path / "sae")


# Whole or not at all


class Killed(BaseException):
    """Like KeyboardInterrupt: no `except Exception` sees it."""


@pytest.mark.parametrize("step", ["write_tensors", "write_facts", "ModelCard.save"])
def test_a_save_that_breaks_off_leaves_the_old_checkpoint(step, tmp_path, monkeypatch):
    _, folder = saved("topk", tmp_path)
    before = contents_of(tmp_path)

    def fail(*args, **kwargs):
        raise Killed

    *owner, name = step.split(".")
    monkeypatch.setattr(ModelCard if owner else checkpoint, name, fail)
    with pytest.raises(Killed):
        trained_sae("vanilla").save_pretrained(folder)
    with pytest.raises(Killed):
        trained_sae("vanilla").save_pretrained(tmp_path / "new" / "parents" / "sae")
    assert contents_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["topk"]


def test_a_checkpoint_is_replaced_by_another(tmp_path):
    _, folder = saved("topk", tmp_path)
    (folder / "README.md").unlink()
    sae = trained_sae("jump_relu")
    sae.save_pretrained(folder)
    assert sorted(contents_of(folder)) == FILES
    assert bits_of(SparseAutoencoder.from_pretrained(folder)) == bits_of(sae)
    (tmp_path / "empty").mkdir()
    sae.save_pretrained(tmp_path / "empty")
    assert contents_of(tmp_path / "empty") == contents_of(folder)


OTHERS = {
    "one file more": {**dict.fromkeys(FILES), "notes.txt": "mine"},
    "a card alone": {"README.md": "# my project"},
    "tensors alone": {"model.safetensors": "x"},
    "another library": {"config.json": '{"model_type": "vit"}', "model.safetensors": "x", "README.md": "# vit"},
    "a list": {"config.json": "[]", "model.safetensors": "x"},
    "torn": {"config.json": '{"library": "monol', "model.safetensors": "x"},
}


@pytest.mark.door
@pytest.mark.parametrize("other", OTHERS)
def test_a_folder_with_other_files_is_left_alone(other, tmp_path):
    sae, folder = saved("topk", tmp_path)
    target = tmp_path / "target"
    target.mkdir()
    for name, text in OTHERS[other].items():
        if text is None:
            shutil.copy(folder / name, target)
        else:
            (target / name).write_text(text)
    before = contents_of(tmp_path)
    with pytest.raises(InputError) as caught:
        sae.save_pretrained(target)
    needed = "a new folder, or one with a SAE checkpoint only"
    assert str(caught.value) == f"{target}: got a folder with other files; needed {needed}"
    assert contents_of(tmp_path) == before


@pytest.mark.door
def test_what_cannot_be_saved(tmp_path):
    (tmp_path / "file").write_text("")
    infinite = trained_sae("vanilla")
    infinite.decoder_bias.data[3] = torch.inf
    diverged = trained_sae("jump_relu")
    diverged.activation.threshold.data[3] = torch.nan
    fresh = SparseAutoencoder(D, BatchTopKConfig("batch_topk", M, K))
    sae = trained_sae("topk")
    rows = (
        (
            lambda: fresh.save_pretrained(tmp_path / "sae"),
            "activation.threshold: got no calibrated value; needed calibrate_ on training rows before saving",
        ),
        (
            lambda: infinite.save_pretrained(tmp_path / "sae"),
            "decoder_bias: got NaN or infinity; needed finite numbers",
        ),
        (
            lambda: diverged.save_pretrained(tmp_path / "sae"),
            "activation.threshold: got NaN or infinity; needed finite numbers",
        ),
        (
            lambda: trained_sae("topk").double().save_pretrained(tmp_path / "sae"),
            "encoder_weight: got dtype torch.float64; needed at most torch.float32: .float() rounds a model",
        ),
        (lambda: sae.save_pretrained(None), "save_directory: got a NoneType; needed a path"),
        (lambda: sae.save_pretrained(tmp_path / "file"), f"{tmp_path}/file: got a file; needed a path for a folder"),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", config={"k": 3}),
            "config: got a dict; needed none: the configuration is the model's own",
        ),
        (
            lambda: sae.push_to_hub("user/name", config={"k": 3}),
            "config: got a dict; needed none: the configuration is the model's own",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", evalution={}),
            "evalution: got a value; needed it together with push_to_hub=True, or no such option",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", repo_id="user/name"),
            "repo_id: got a value; needed it together with push_to_hub=True, or no such option",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", evaluation=[0.5]),
            "evaluation: got a list; needed a mapping of names to numbers, as Evaluation.summary",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", evaluation={"r2": "high"}),
            "evaluation.r2: got 'high'; needed a number",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", license=["mit"]),
            "license: got a list; needed a text or None",
        ),
        (lambda: Provenance(encoder="vit"), "encoder: got a str; needed a mapping or None"),
        (lambda: Provenance(store_fingerprint=3), "store_fingerprint: got a int; needed a text or None"),
        (lambda: Provenance(training={"a": {"b": [1, torch.inf]}}), "training.a.b[1]: got inf; needed a finite number"),
        (lambda: Provenance(training={"a": {3: 4}}), "training.a: the key 3: got a int; needed a text"),
        (
            lambda: Provenance(encoder={"path": Path("x")}),
            f"encoder.path: got a {PATH}; needed a text, a number, True, False, None, a list or a mapping",
        ),
    )
    for call, text in rows:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text
    sae.provenance = {"encoder": None}
    with pytest.raises(InputError, match="provenance: got a dict; needed a Provenance"):
        sae.save_pretrained(tmp_path / "sae")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The card


def test_the_card_says_what_it_is(tmp_path):
    sae = trained_sae("topk_centred")
    sae.provenance = PROVENANCE
    figures = {"score_mean": 0.123456, "n_latents": 16384.0, "purity|x": float("nan"), "mse": 1.5e-7}
    sae.save_pretrained(tmp_path / "sae", license="apache-2.0", evaluation=figures)
    card = ModelCard.load(tmp_path / "sae" / "README.md")
    assert (card.data.library_name, card.data.license) == ("monoloss", "apache-2.0")
    assert {"sparse-autoencoder", "pytorch_model_hub_mixin", "topk"} <= set(card.data.tags)
    for line in (
        f"# Sparse autoencoder: topk, {M} latents on rows of width {D}",
        f"| d_in | {D} |",
        "| inputs.center | True |",
        "| encoder.size | [224, 224] |",
        "| store_fingerprint | ab12 |",
        "| training.name | Zürich |",
        "| score_mean | 0.1235 |",
        "| n_latents | 16384 |",
        "| purity\\|x | undefined |",
        "| mse | 1.5e-07 |",
    ):
        assert line in card.text.splitlines()


def test_the_card_says_no_more_than_is_known(tmp_path):
    _, folder = saved("vanilla", tmp_path)
    card = ModelCard.load(folder / "README.md")
    assert "license" not in card.data.to_dict()
    assert "Evaluation" not in card.text
    assert "None" not in card.text


def test_the_lines_of_the_card_load_the_model(tmp_path):
    sae, folder = saved("jump_relu", tmp_path)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    names = {"embeddings": sample_rows()}
    exec(code.replace("FOLDER", str(folder)), names)  # noqa: S102 - the lines that this library wrote
    assert len(code.splitlines()) == 3
    assert torch.equal(names["codes"].to_dense(), sae.encode(sample_rows()).to_dense())


# The Hub


class StubHub:
    """Stands for the Hub: keeps what is uploaded."""

    calls: list[tuple[str, dict[str, object]]]
    uploaded: dict[str, bytes]

    def __init__(self) -> None:
        self.calls, self.uploaded = [], {}

    def __call__(self, **options):
        self.calls.append(("login", options))
        return self

    def create_repo(self, **options):
        self.calls.append(("create_repo", options))
        return SimpleNamespace(repo_id=options["repo_id"])

    def upload_folder(self, *, folder_path, **options):
        self.calls.append(("upload_folder", options))
        self.uploaded = contents_of(Path(folder_path))
        return "https://hub.example/commit/1"


@pytest.fixture
def hub(monkeypatch):
    stub = StubHub()
    monkeypatch.setattr(hub_mixin, "HfApi", stub)
    return stub


def test_push_to_the_hub_uploads_the_checkpoint(hub, tmp_path):
    sae, folder = saved("batch_topk", tmp_path)
    assert sae.push_to_hub("user/name", private=True, token=TOKEN) == "https://hub.example/commit/1"
    assert hub.uploaded == contents_of(folder)
    assert [name for name, _ in hub.calls] == ["login", "create_repo", "upload_folder"]
    assert hub.calls[0][1] == {"token": TOKEN}
    assert hub.calls[1][1] == {"repo_id": "user/name", "private": True, "exist_ok": True}
    address = sae.save_pretrained(
        tmp_path / "both", evaluation={"r2": 0.5}, license="mit", push_to_hub=True, repo_id="user/name", branch="try"
    )
    assert address == "https://hub.example/commit/1"
    assert hub.uploaded == contents_of(tmp_path / "both")
    assert b"| r2 | 0.5 |" in hub.uploaded["README.md"]
    assert b"license: mit" in hub.uploaded["README.md"]
    assert hub.calls[-1][1]["revision"] == "try"
    sae.save_pretrained(tmp_path / "user", push_to_hub=True)
    assert hub.calls[-2][1]["repo_id"] == "user"  # the folder's own name


def test_what_cannot_be_saved_is_not_sent(hub):
    with pytest.raises(InputError):
        SparseAutoencoder(D, BatchTopKConfig("batch_topk", M, K)).push_to_hub("user/name")
    assert hub.calls == []


def test_a_name_on_the_hub_is_downloaded(tmp_path, monkeypatch):
    sae, folder = saved("topk_tied", tmp_path)
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    back = SparseAutoencoder.from_pretrained("hf-hub:user/name", revision="v2", token=TOKEN, cache_dir=tmp_path)
    assert bits_of(back) == bits_of(sae)
    options = {"revision": "v2", "token": TOKEN, "cache_dir": tmp_path}
    options |= {"force_download": False, "local_files_only": False}
    assert asked == [("user/name", {"allow_patterns": ["model.safetensors", "config.json"], **options})]


@pytest.mark.door
def test_what_the_hub_does_not_have(tmp_path):
    for name in ("hf-hub:user/name", "hf-hub:not a name", "hf-hub:"):
        with pytest.raises(InputError) as caught:
            SparseAutoencoder.from_pretrained(name, cache_dir=tmp_path)
        assert str(caught.value).startswith(f"{name}: got no download (")
        assert str(caught.value).endswith("); needed a SAE on the Hub, and a network to reach it")
        assert "\n" not in str(caught.value)


# A module like any other


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))])
def test_copies_and_pickles(twin_of):
    sae = trained_sae("batch_topk_centred")
    sae.provenance = PROVENANCE
    twin = twin_of(sae)
    assert bits_of(twin) == bits_of(sae)
    assert vars(twin).keys() == vars(sae).keys()
    assert (twin.config, twin.provenance, twin.training) == (sae.config, PROVENANCE, False)
    assert torch.equal(twin.encode(sample_rows()).to_dense(), sae.encode(sample_rows()).to_dense())
    with torch.no_grad():
        twin.encoder_weight.zero_()
    assert bits_of(twin) != bits_of(sae)


def test_the_mixin_leaves_no_trace_in_the_module():
    config = TopKConfig("topk", M, K, inputs=ALL_STEPS)
    sae = SparseAutoencoder(d_in=D, config=config, input_mean=torch.zeros(D), seed=3)
    added = vars(sae).keys() - vars(torch.nn.Module()).keys()
    assert added == {"d_in", "config"}
    assert "hub" not in repr(sae).lower()
    assert repr(sae).startswith("SparseAutoencoder(")
    assert isinstance(sae, torch.nn.Module)
    assert {name for name, _ in sae.named_children()} == {"activation"}
