"""Rows and folders for the tests of feature stores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.files import tensors as tensor_files

ODD_IDS = [
    "plain",
    "",
    "a\nb",
    'quote " \\',
    "ünï/çödé 图",
    "\u2028\u0085\x1c\r",
    "\x00",
    "{}",
    "\udc80 undecodable",
    "🙂",
]


def rows_of(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def with_row(row: int, value: float) -> Tensor:
    rows = rows_of(10)
    rows[row] = value
    return rows


def store_of_four_shards(folder: Path) -> FeatureStore:
    """Ten rows in four shards: 3, 3, 3, 1."""
    labels, ids = torch.arange(10) % 4, [f"image {i}" for i in range(10)]
    return FeatureStore.create(folder, rows_of(10), labels, ids, rows_per_shard=3)


def stop_at_call(monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]) -> None:
    """Let the ``number``-th tensor file of a shard be written by half, and then raise ``error``."""
    calls: list[Path] = []
    save_file = tensor_files.save_file

    def failing(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls.append(path)
        if len(calls) == number:
            path.write_bytes(b"half a shard")
            raise error
        save_file(tensors, path, metadata)

    monkeypatch.setattr(tensor_files, "save_file", failing)
