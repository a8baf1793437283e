"""The files of a feature store: what is written is read back, and what was never written is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from monoloss.data.store import FeatureStore
from monoloss.data.store.format import (
    Manifest,
    ShardFiles,
    ShardHeader,
    ShardLines,
    SkippedFile,
    check_metadata,
    decode,
    lines_text,
    open_tensors,
    shard_names,
)
from monoloss.errors import InputError
from monoloss.files.tensors import save_tensors
from support.stores import ODD_IDS, rows_of

HEADER = ShardHeader(
    index=0,
    n_rows=3,
    width=5,
    dtype="float32",
    scale=None,
    labels="single",
    n_classes=2,
    class_names=None,
    thumbnails=None,
    norms=[1.0, 2.0],
    encoder={"name": "vit", "weights": None, "preprocessing": {"size": [224, 224], "crop": 0.9}},
    rows_per_shard=3,
    lines_sha256="0",
)


def test_a_shard_is_read_back_with_its_header(tmp_path: Path) -> None:
    for header in (HEADER, replace(HEADER, patch_grid=[1, 3], source="folder", image_root="images/é")):
        file = tmp_path / "shard.safetensors"
        save_tensors({"embeddings": rows_of(3)}, file, header.to_metadata())
        again, tensors = open_tensors(file, 0)
        assert again == header
        assert torch.equal(tensors["embeddings"], rows_of(3))


def test_lines_are_read_back_with_any_text(tmp_path: Path) -> None:
    paths = [None, *(f"{name}.png" for name in ODD_IDS[1:])]
    skipped = [SkippedFile(3, "a\n\u2028.png", "no image"), SkippedFile(7, "", "truncated")]
    text = lines_text(ODD_IDS, paths, skipped)
    assert text.isascii()
    assert len(text.splitlines()) == len(ODD_IDS) + 2
    (tmp_path / "lines").write_bytes(text.encode())
    assert ShardLines.read(tmp_path / "lines", hashlib.sha256(text.encode()).hexdigest()) == ShardLines(
        ODD_IDS, paths, skipped
    )


def test_a_manifest_is_read_back(store: FeatureStore) -> None:
    manifest = Manifest.read(store.folder)
    (store.folder / "copy").mkdir()
    manifest.write(store.folder / "copy")
    assert Manifest.read(store.folder / "copy") == manifest == store.manifest
    files = [store.folder / name for name in shard_names(0)]
    assert manifest.shards[0] == ShardFiles.of(3, *files)
    assert manifest.shards[0].n_bytes == {file.name: len(file.read_bytes()) for file in files}
    assert manifest.shards[0].sha256 == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_only_float32_is_not_copied() -> None:
    rows = rows_of(3)
    assert decode(rows, None) is rows
    assert torch.equal(decode(rows.half(), None), rows.half().float())
    stored = torch.tensor([[0, 200]], dtype=torch.uint8)
    assert decode(stored, 0.5).tolist() == [[0.0, 100.0]]
    assert stored.tolist() == [[0, 200]]


def test_a_store_without_patches_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "s", rows_of(3), image_root="root")
    with safe_open(tmp_path / "s" / "shard-00000.safetensors", framework="pt") as file:
        written = json.loads(file.metadata()["monoloss"])
    assert not written.keys() & {"patch_grid", "source", "image_root"}
    assert (store.patch_grid, store.n_images, store.image_ids) == (None, 3, ["0", "1", "2"])
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    for name in ("patch_grid", "source"):
        manifest.pop(name)
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    older = FeatureStore(tmp_path / "s")
    older.verify()
    assert older.fingerprint == store.fingerprint


@pytest.mark.door
def test_another_file_in_the_place_of_a_shard(tmp_path: Path) -> None:
    file = tmp_path / "shard-00000.safetensors"

    def refused(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
        save_tensors(tensors, file, metadata)
        with pytest.raises(InputError) as error:
            open_tensors(file, 0)
        return str(error.value).removeprefix(f"{file}: ")

    rows, metadata = {"embeddings": rows_of(3)}, HEADER.to_metadata()
    written = json.loads(metadata["monoloss"])
    assert refused(rows, {}) == "got no shard of a store ('monoloss'); expected the shard as it was written"
    later = {"monoloss": json.dumps({**written, "format_version": 2})}
    assert refused(rows, later) == "got format_version 2; expected format_version 1"
    more = {"monoloss": json.dumps({**written, "surprise": 1})}
    assert refused(rows, more).startswith("got no shard of a store (")
    second = replace(HEADER, index=1).to_metadata()
    assert refused(rows, second) == "got shard 1; expected shard 0: files have been swapped"
    for tensors in ({}, {"embeddings": rows_of(4)}, {"embeddings": rows_of(3).half()}):
        assert refused(tensors, metadata).startswith("got embeddings that differ from its header; expected the shard")
    file.unlink()
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: got No such file"):
        open_tensors(file, 0)


@pytest.mark.door
def test_shards_of_one_store_share_their_metadata() -> None:
    HEADER.check_same_store(replace(HEADER, index=4, n_rows=1, norms=None, lines_sha256="1", n_classes=9), "shard 0")
    with pytest.raises(InputError, match="shard 0: got width 5; expected 6, as in shard 4"):
        HEADER.check_same_store(replace(HEADER, index=4, width=6), "shard 0")
    multi = replace(HEADER, labels="multi")
    with pytest.raises(InputError, match="shard 0: got n_classes 2; expected 3, as in shard 4"):
        multi.check_same_store(replace(multi, index=4, n_classes=3), "shard 0")


@pytest.mark.door
def test_the_first_difference_of_metadata_is_named() -> None:
    path = Path("shard")
    check_metadata(path, "a shard", HEADER, {"width": 5, "encoder": asdict(HEADER)["encoder"]})
    with pytest.raises(InputError, match="shard: got a shard with width 5; expected 6, as in this run"):
        check_metadata(path, "a shard", HEADER, {"dtype": "float32", "width": 6})
    encoder = {"name": "vit", "weights": None, "preprocessing": {"size": [224, 224], "crop": 1.0}}
    with pytest.raises(InputError, match=r"with encoder\.preprocessing\.crop 0\.9; expected 1\.0, as in this run"):
        check_metadata(path, "a shard", HEADER, {"encoder": encoder})
    del encoder["preprocessing"]["crop"]
    with pytest.raises(InputError, match=r"with encoder\.preprocessing\.crop 0\.9; expected None"):
        check_metadata(path, "a shard", HEADER, {"encoder": encoder})
    with pytest.raises(InputError, match=r"with source 'x{199}\.\.\.; expected None"):
        check_metadata(path, "a shard", replace(HEADER, source="x" * 300), {"source": None})


@pytest.mark.door
@pytest.mark.parametrize(
    "change", [{"n_classes": "x"}, {"norms": "x"}, {"norms": None}, {"mean": None}, {"width": None}]
)
def test_a_manifest_of_other_types_is_refused(store: FeatureStore, change: dict[str, object]) -> None:
    manifest = json.loads((store.folder / "manifest.json").read_text(encoding="utf-8"))
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, **change}), encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json"):
        FeatureStore(store.folder)
