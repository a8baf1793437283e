"""Stores whose rows are patches of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss import SparseAutoencoder, TopKConfig, evaluate
from monoloss.data.extraction.run import extract
from monoloss.data.store import FeatureStore
from monoloss.data.store.format import open_tensors
from monoloss.data.store.patches import PatchGrid, PatchRows, spread_labels
from monoloss.data.store.writer import FeatureStoreWriter
from monoloss.errors import InputError
from support.extraction import ROW_ERROR, FakeEncoder, ListSource, color_of, row_of
from support.stores import rows_of

GRID = (2, 3)


def patch_store(folder: Path, *, labels: Any = None, **options: Any) -> FeatureStore:
    """Five images of 2 x 3 patches, two a shard."""
    rows = rows_of(5 * 6).reshape(5, 6, 5)
    writer = FeatureStoreWriter(folder, rows_per_shard=2, patch_grid=GRID, **options)
    for index, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        ids = [f"a/{i}.png" for i in range(5)][part]
        pictures = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1)[part]
        writer.write_shard(index, rows[part], ids, None if labels is None else labels[part], thumbnails=pictures)
    writer.finish(3)
    return FeatureStore(folder)


def test_rows_know_their_image_and_their_place(tmp_path: Path) -> None:
    store = patch_store(tmp_path / "s", labels=torch.tensor([2, 0, 1, 1, 0]))
    assert (store.n_rows, store.n_images, store.patch_grid, store.width) == (30, 5, GRID, 5)
    assert torch.equal(store.embeddings(), rows_of(30))
    assert store.image_ids == [f"a/{i}.png" for i in range(5)]
    expected = [f"a/{i}.png#{y},{x}" for i in range(5) for y in range(2) for x in range(3)]
    assert list(store.ids) == expected
    assert len(store.ids) == 30
    assert (store.ids[17], store.ids[-1], store.ids[5:8]) == (expected[17], expected[-1], expected[5:8])
    assert store.patches(torch.tensor([0, 5, 6, 29])).tolist() == [[0, 0, 0], [0, 1, 2], [1, 0, 0], [4, 1, 2]]
    assert list(store.paths) == [None] * 30
    assert store.labels().tolist() == [label for label in (2, 0, 1, 1, 0) for _ in range(6)]
    assert store.thumbnails(torch.tensor([29, 0, 6, 12, 17])).flatten().tolist() == [4, 0, 1, 2, 2]
    assert store.shard_offsets == [0, 12, 24, 30]
    assert repr(store).endswith("30 x 5 float32 (5 images x 6 patches), 3 classes, 3 shards)")
    store.verify()
    with pytest.raises(IndexError):
        store.ids[30]


def test_several_labels_of_patches(tmp_path: Path) -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    store = patch_store(tmp_path / "s", labels=labels)
    assert torch.equal(store.labels(), labels.repeat_interleave(6, dim=0))
    none = {"label_offsets": torch.zeros(1, dtype=torch.int64), "label_values": torch.zeros(0, dtype=torch.int64)}
    assert spread_labels(none, 6)["label_offsets"].tolist() == [0]
    assert spread_labels({}, 6) == {}


def test_ids_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []

    def make(name: str, patch: int) -> str:
        made.append(patch)
        return name * patch

    rows = PatchRows(["a", "b"], 3, make)
    assert isinstance(rows, Sequence)
    assert not made
    assert rows[4] == "b"
    assert made == [1]
    assert list(rows) == ["", "a", "aa", "", "b", "bb"]


def test_evaluation_and_examples_read_patches_as_rows(tmp_path: Path) -> None:
    store = patch_store(tmp_path / "s", labels=torch.tensor([2, 0, 1, 1, 0]))
    torch.manual_seed(0)
    sae = SparseAutoencoder(5, TopKConfig("topk", n_latents=12, k=3))
    of_patches = evaluate(store, {"sae": sae})["sae"]
    labels = store.labels()
    plain = FeatureStore.create(tmp_path / "plain", store.embeddings(), labels, rows_per_shard=12)
    of_rows = evaluate(plain, {"sae": sae})["sae"]  # in shards of as many rows, so in the same batches
    assert of_patches.summary == pytest.approx(of_rows.summary, nan_ok=True)
    assert torch.equal(of_patches.examples.rows, of_rows.examples.rows)
    best = of_patches.examples.rows[of_patches.examples.rows >= 0]
    assert store.thumbnails(best).flatten().tolist() == (best // 6).tolist()


@pytest.mark.door
def test_bad_patches(tmp_path: Path) -> None:
    for grid in ((2,), (0, 3), (2, 1.5), (True, "x")):
        with pytest.raises(InputError, match=r"patch_grid: got \(.*expected \(height, width\), each at least 1"):
            FeatureStoreWriter(tmp_path / "s", patch_grid=grid)  # type: ignore[arg-type]
    writer = FeatureStoreWriter(tmp_path / "s", patch_grid=GRID, rows_per_shard=2)
    for shape in ((2, 5), (2, 5, 5), (3, 6, 5), (2, 6, 0)):
        with pytest.raises(
            InputError, match=r"embeddings: got shape .* expected \(rows, 6, width\) with at most 2 rows"
        ):
            writer.write_shard(0, torch.ones(shape), ["a", "b", "c"][: shape[0]])
    rows = torch.ones(2, 6, 5)
    rows[1, 4] = torch.nan
    with pytest.raises(InputError, match=r"embeddings: got NaN or inf \(row 10, id 'b#1,1'\)"):
        writer.write_shard(0, rows, ["a", "b"])
    with pytest.raises(InputError, match=r"labels: got -1 \(row 6, id 'b'\)"):
        writer.write_shard(0, torch.ones(2, 6, 5), ["a", "b"], torch.tensor([0, -1]))
    plain = FeatureStore.create(tmp_path / "plain", rows_of(3))
    with pytest.raises(
        InputError, match=r"patches: got .*plain, whose rows are images; expected a store whose rows are pa"
    ):
        plain.patches(torch.tensor([0]))


@pytest.mark.door
@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([3, 2], r"shard-00000\.safetensors: got a shard of another store"),
        (None, r"shard-00000\.safetensors: got a shard of another store"),
        ([4, 7], r"manifest\.json: got numbers that contradict each other"),
        ([6], r"manifest\.json: got numbers that contradict each other"),
        ("2x3", r"manifest\.json: got numbers that contradict each other"),
    ],
)
def test_a_changed_grid_is_refused(tmp_path: Path, grid: Any, message: str) -> None:
    patch_store(tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    (tmp_path / "s" / "manifest.json").write_text(json.dumps({**manifest, "patch_grid": grid}))
    with pytest.raises(InputError, match=message):
        FeatureStore(tmp_path / "s")


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_extracted_patches(tmp_path: Path, labels: Any) -> None:
    source = ListSource(7, labels=labels, contents={4: b"x"})
    kept = [0, 1, 2, 3, 5, 6]
    options: dict[str, Any] = {"workers": 0, "progress": False, "rows_per_shard": 4, "batch_size": 3}
    store = extract(source, FakeEncoder(patches=True), tmp_path / "s", thumbnails=2, **options)
    assert store.image_ids == [f"row {n}" for n in kept]
    expected = [factor * row_of(color_of(n)) for n in kept for factor in (1, 2, 3, 4)]
    np.testing.assert_allclose(store.embeddings().numpy(), expected, rtol=0, atol=4 * ROW_ERROR)
    assert store.ids[9] == "row 2#0,1"
    assert [tuple(each) for each in store.thumbnails(torch.arange(24))[:, 0, 0].tolist()] == [
        color_of(n) for n in kept for _ in range(4)
    ]
    if labels == "single":
        assert store.labels().tolist() == [n % 3 for n in kept for _ in range(4)]
    else:
        assert store.labels().sum(dim=1).tolist() == [n % 3 for n in kept for _ in range(4)]
    header, tensors = open_tensors(store.folder / "shard-00001.safetensors", 1)
    assert (header.patch_grid, header.n_rows, tensors["thumbnails"].shape[0]) == ([2, 2], 8, 2)
    store.verify()


def test_an_image_with_one_bad_patch_is_skipped(tmp_path: Path) -> None:
    def spoil(number: int, rows: torch.Tensor) -> torch.Tensor:
        if number == 1:
            rows[0, 2, 1] = torch.nan
        return rows

    options: dict[str, Any] = {"workers": 0, "progress": False, "rows_per_shard": 4, "batch_size": 2}
    store = extract(ListSource(5), FakeEncoder(patches=True, on_call=spoil), tmp_path / "s", **options)
    assert [(file.position, file.reason) for file in store.skipped] == [(2, "NaN or inf, patch 1,0")]
    assert store.n_rows == 16


def test_a_grid_is_named_row_first() -> None:
    grid = PatchGrid(2, 3)
    assert [grid.name("x", patch) for patch in range(6)] == ["x#0,0", "x#0,1", "x#0,2", "x#1,0", "x#1,1", "x#1,2"]
