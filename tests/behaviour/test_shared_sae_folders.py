"""A SAE to be shared: its model card, and what goes to the Hub and comes from there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin

from monoloss.errors import InputError
from monoloss.files.model_folder import Provenance
from monoloss.sae import folder as sae_folder
from monoloss.sae.config import BatchTopKConfig
from monoloss.sae.model import SparseAutoencoder
from support.saes import bits_of
from support.saved_saes import D, K, M, contents_of, sample_rows, saved, trained_sae

TOKEN = "of nobody"  # noqa: S105 - it opens nothing
PROVENANCE = Provenance({"name": "vit", "size": [224, 224]}, "ab12", {"lr": 1e-4, "clip_norm": None, "name": "Zürich"})


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

    monkeypatch.setattr(sae_folder, "snapshot_download", download)
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
        assert str(caught.value).endswith("); expected a SAE on the Hub, and a network to reach it")
        assert "\n" not in str(caught.value)
