"""Stores that were damaged after they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monoloss.data.store import FeatureStore
from monoloss.data.store.format import MANIFEST
from monoloss.errors import InputError
from support.stores import rows_of, store_of_four_shards


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return store_of_four_shards(tmp_path / "store")


def change_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}))


def swap(folder: Path, suffix: str) -> None:
    first, second = folder / f"shard-00000.{suffix}", folder / f"shard-00001.{suffix}"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def set_size(folder: Path, name: str) -> None:
    """Make the manifest agree with the size of a file that has been cut, so that its own header has to tell."""
    content = json.loads((folder / MANIFEST).read_text())
    for shard in content["shards"]:
        if name in shard["n_bytes"]:
            shard["n_bytes"][name] = (folder / name).stat().st_size
    (folder / MANIFEST).write_text(json.dumps(content))


def cut_and_hide(folder: Path) -> None:
    truncate(folder / "shard-00002.safetensors")
    set_size(folder, "shard-00002.safetensors")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: (f / MANIFEST).unlink(),
        r"store: got a folder without manifest\.json; expected a store that has been fin",
    ),
    (lambda f: truncate(f / MANIFEST), r"manifest\.json: got a file that is not JSON"),
    (
        lambda f: change_manifest(f, format_version=2),
        r"manifest\.json: got format_version 2; expected format_version 1",
    ),
    (lambda f: change_manifest(f, surprise=1), r"manifest\.json: got no manifest of a store .*surprise"),
    (lambda f: change_manifest(f, shards=[{}]), r"manifest\.json: got no manifest of a store"),
    (lambda f: change_manifest(f, n_rows=11), r"manifest\.json: got numbers that contradict each other"),
    (lambda f: change_manifest(f, mean=[0.0]), r"manifest\.json: got numbers that contradict each other"),
    (lambda f: change_manifest(f, dtype="float16"), r"shard-00000\.safetensors: got a shard of another store"),
    (
        lambda f: truncate(f / "shard-00002.safetensors"),
        r"shard-00002\.safetensors: got \d+ bytes; expected the \d+ that",
    ),
    (lambda f: truncate(f / "shard-00001.jsonl"), r"shard-00001\.jsonl: got \d+ bytes; expected the \d+ that manifest"),
    (cut_and_hide, r"shard-00002\.safetensors: got no shard of a store"),
    (lambda f: (f / "shard-00003.safetensors").unlink(), r"shard-00003\.safetensors: got no such file; expected the"),
    (lambda f: (f / "shard-00000.jsonl").unlink(), r"shard-00000\.jsonl: got no such file; expected the"),
    (lambda f: (swap(f, "safetensors"), swap(f, "jsonl")), r"shard-00000\.safetensors: got shard 1; expected shard 0"),
    (shutil.rmtree, r"store/manifest\.json: got No such file or directory"),
]


@pytest.mark.door
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_store_does_not_open(store: FeatureStore, damage: Callable[[Path], object], message: str) -> None:
    damage(store.folder)
    with pytest.raises(InputError, match=message):
        FeatureStore(store.folder)


@pytest.mark.door
def test_a_shard_of_another_store_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    ids = [f"other {i}" for i in range(10)]  # as long as "image {i}", so every size agrees
    other = FeatureStore.create(tmp_path / "other", rows_of(10), torch.arange(10) % 4, ids, rows_per_shard=3)
    shutil.copy(other.folder / "shard-00001.safetensors", store.folder)
    with pytest.raises(InputError, match=r"store/shard-00001\.safetensors: got a shard of another store"):
        FeatureStore(store.folder)


@pytest.mark.door
def test_verify_names_every_changed_file(store: FeatureStore) -> None:
    store.verify()
    for name in ("shard-00001.safetensors", "shard-00002.jsonl"):
        content = bytearray((store.folder / name).read_bytes())
        content[-3] ^= 1
        (store.folder / name).write_bytes(content)
    again = FeatureStore(store.folder)
    with pytest.raises(
        InputError, match=r"got changed contents in shard-00001\.safetensors, shard-00002\.jsonl; expected"
    ):
        again.verify()


@pytest.mark.door
def test_swapped_lines_are_noticed_when_ids_are_read(store: FeatureStore) -> None:
    swap(store.folder, "jsonl")
    with pytest.raises(
        InputError, match=r"shard-00000\.jsonl: got changed contents; expected the file as it was written"
    ):
        _ = FeatureStore(store.folder).ids


@pytest.mark.door
@pytest.mark.parametrize("field", ["mean", "n_classes", "norms", "scale"])
def test_verify_compares_the_manifest_with_the_shards(store: FeatureStore, field: str) -> None:
    changed = {"mean": [0.5] * store.width, "n_classes": 2, "norms": [1.0, 1.0], "scale": 2.0}[field]
    manifest = json.loads((store.folder / "manifest.json").read_text(encoding="utf-8"))
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, field: changed}), encoding="utf-8")
    with pytest.raises(InputError, match="manifest"):
        FeatureStore(store.folder).verify()
