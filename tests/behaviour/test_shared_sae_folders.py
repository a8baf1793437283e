"""SAEs on the Hugging Face Hub: what is uploaded and what is downloaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import hub_mixin

from monoloss.errors import InputError
from monoloss.sae import folder as sae_folder
from monoloss.sae.config import BatchTopKConfig
from monoloss.sae.model import SparseAutoencoder
from support.saes import bits_of
from support.saved_saes import D, K, M, contents_of, saved

TOKEN = "of nobody"  # noqa: S105 - it opens nothing


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


def test_push_to_the_hub_uploads_the_folder(hub, tmp_path):
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
