"""Safetensors files: what is written, and which error a disk that is full raises."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from monoloss.files import tensors as tensor_files
from monoloss.files.tensors import save_tensors


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',
    ],
)
def test_what_safetensors_says_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError(text)

    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_tensors({}, tmp_path / "x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))


def test_other_errors_of_safetensors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError("no header")

    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(SafetensorError, match="no header"):
        save_tensors({}, tmp_path / "x")


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])}
    save_tensors(tensors, tmp_path / "x", {"format": "pt"})
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {"a", "b"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
