"""SAEs as folders: loaded with the same bits, saved whole or not at all."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from monoloss.errors import InputError
from monoloss.files.model_folder import Provenance
from monoloss.sae import folder as sae_folder
from monoloss.sae.config import BatchTopKConfig, TopKConfig
from monoloss.sae.model import SparseAutoencoder
from support.saes import bits_of, dense
from support.saved_saes import ALL_STEPS, CASES, PROVENANCE, D, K, M, contents_of, sample_rows, saved, trained_sae

PATH = type(Path()).__name__
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(sae_folder, "snapshot_download", refuse)


# The same model comes back

NEW_PROCESS = """
import sys, torch
from support import rounding
from pathlib import Path
from safetensors.torch import load_file, save_file
from monoloss import SparseAutoencoder
rounding.start_if_asked()
torch.set_num_threads(1)
torch.set_grad_enabled(False)  # as in the other process: with a graph it may be another kernel
folder = Path(sys.argv[1])
rows = load_file(folder / "rows.safetensors")["rows"].clone()  # not where the file begins in memory
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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    subprocess.run([sys.executable, "-c", NEW_PROCESS, str(tmp_path), *saes], check=True, env=environment)
    for case, sae in saes.items():
        got = load_file(tmp_path / f"{case}.safetensors")
        output = sae(rows)
        codes = dense(output.codes)
        assert 0 < int((codes > 0).sum()) < 0.7 * codes.numel(), case
        assert got["codes"].numpy().tobytes() == codes.numpy().tobytes(), case
        assert got["reconstruction"].numpy().tobytes() == output.reconstruction.numpy().tobytes(), case


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


def test_contents_of_config_json(tmp_path):
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
    back.save_pretrained(tmp_path / "again")  # and stays with the model
    assert contents_of(tmp_path / "again") == contents_of(tmp_path / "sae")


# Whole or not at all


class Killed(BaseException):
    """Like KeyboardInterrupt: no `except Exception` sees it."""


@pytest.mark.parametrize("step", ["write_tensors", "write_model_config", "ModelCard.save"])
def test_a_save_that_breaks_off_leaves_the_old_folder(step, tmp_path, monkeypatch):
    _, folder = saved("topk", tmp_path)
    before = contents_of(tmp_path)

    def fail(*args, **kwargs):
        raise Killed

    *owner, name = step.split(".")
    monkeypatch.setattr(ModelCard if owner else sae_folder, name, fail)
    with pytest.raises(Killed):
        trained_sae("vanilla").save_pretrained(folder)
    with pytest.raises(Killed):
        trained_sae("vanilla").save_pretrained(tmp_path / "new" / "parents" / "sae")
    assert contents_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["topk"]


def test_a_saved_sae_is_replaced_by_another(tmp_path):
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
    expected = "a new folder, or one with a saved SAE only"
    assert str(caught.value) == f"{target}: got a folder with other files; expected {expected}"
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
            "activation.threshold: got no calibrated value; expected calibrate_ on training rows before saving",
        ),
        (
            lambda: infinite.save_pretrained(tmp_path / "sae"),
            "decoder_bias: got NaN or infinity; expected finite numbers",
        ),
        (
            lambda: diverged.save_pretrained(tmp_path / "sae"),
            "activation.threshold: got NaN or infinity; expected finite numbers",
        ),
        (
            lambda: trained_sae("topk").double().save_pretrained(tmp_path / "sae"),
            "encoder_weight: got dtype torch.float64; expected at most torch.float32: .float() rounds a model",
        ),
        (lambda: sae.save_pretrained(None), "save_directory: got a NoneType; expected a path"),
        (lambda: sae.save_pretrained(tmp_path / "file"), f"{tmp_path}/file: got a file; expected a path for a folder"),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", config={"k": 3}),
            "config: got a dict; expected none: the configuration is the model's own",
        ),
        (
            lambda: sae.push_to_hub("user/name", config={"k": 3}),
            "config: got a dict; expected none: the configuration is the model's own",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", evalution={}),
            "evalution: got a value; expected it together with push_to_hub=True, or no such option",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", repo_id="user/name"),
            "repo_id: got a value; expected it together with push_to_hub=True, or no such option",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", evaluation=[0.5]),
            "evaluation: got a list; expected a mapping of names to numbers, as Evaluation.summary",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", evaluation={"r2": "high"}),
            "evaluation.r2: got 'high'; expected a number",
        ),
        (
            lambda: sae.save_pretrained(tmp_path / "sae", license=["mit"]),
            "license: got a list; expected a text or None",
        ),
        (lambda: Provenance(encoder="vit"), "encoder: got a str; expected a mapping or None"),
        (lambda: Provenance(store_fingerprint=3), "store_fingerprint: got a int; expected a text or None"),
        (
            lambda: Provenance(training={"a": {"b": [1, torch.inf]}}),
            "training.a.b[1]: got inf; expected a finite number",
        ),
        (lambda: Provenance(training={"a": {3: 4}}), "training.a: the key 3: got a int; expected a text"),
        (
            lambda: Provenance(encoder={"path": Path("x")}),
            f"encoder.path: got a {PATH}; expected a text, a number, True, False, None, a list or a mapping",
        ),
    )
    for call, text in rows:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text
    sae.provenance = {"encoder": None}
    with pytest.raises(InputError, match="provenance: got a dict; expected a Provenance"):
        sae.save_pretrained(tmp_path / "sae")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
    assert added == {"d_in", "config", "_longest_idle"}
    assert "hub" not in repr(sae).lower()
    assert repr(sae).startswith("SparseAutoencoder(")
    assert isinstance(sae, torch.nn.Module)
    assert {name for name, _ in sae.named_children()} == {"activation"}
