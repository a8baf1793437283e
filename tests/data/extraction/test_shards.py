"""Shards: which images give a row, why the others do not, and what is written of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monoloss.data.extraction.batches import PreparedBatch
from monoloss.data.extraction.shards import ShardBuilder, ShardShape
from monoloss.data.images.source import SourceImage
from monoloss.data.store import FeatureStore
from monoloss.data.store.format import SkippedFile
from monoloss.data.store.writer import FeatureStoreWriter
from monoloss.errors import InputError
from support.extraction import ROW_ERROR, FakeEncoder, ListSource, color_of, png, row_of, silent


def batch_of(shard: int, *positions: int, skipped: int | None = None) -> PreparedBatch:
    """Images without pixels, each with the label of its position; `skipped` is one that could not be decoded."""
    images = [SourceImage(i, f"row {i}", None, (i % 3,), b"") for i in positions]
    return PreparedBatch(shard, images, None, None, [] if skipped is None else [SkippedFile(skipped, "x", "empty")])


def test_a_builder_writes_one_shard_after_another(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=4, class_names=["a", "b", "c"])
    builder = ShardBuilder(writer, ShardShape(width=2, labels="multi", n_classes=3, thumbnail_size=None))
    builder.write()  # nothing is collected
    assert not builder.needs_writing(batch_of(0, 0))
    rows = torch.arange(1.0, 15.0).reshape(7, 2)
    assert builder.add(batch_of(0, 0, 1, 3, skipped=2), rows[:3]) == 1
    assert not builder.needs_writing(batch_of(0, 3))
    assert builder.needs_writing(batch_of(1, 4))
    builder.write()
    assert builder.add(batch_of(1, 4, 5), rows[3:5]) == 0
    assert builder.add(batch_of(1, 6), torch.tensor([[torch.inf, 1.0]])) == 1
    builder.write()
    writer.finish(2)
    store = FeatureStore(tmp_path / "s")
    assert store.ids == [f"row {i}" for i in (0, 1, 3, 4, 5)]
    assert torch.equal(store.embeddings(), rows[:5])
    assert store.labels().int().argmax(dim=1).tolist() == [0, 1, 0, 1, 2]
    assert [(file.position, file.reason) for file in store.skipped] == [(2, "empty"), (6, "NaN or inf")]


def test_one_bad_patch_leaves_out_its_image(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=4, patch_grid=(2, 3))
    builder = ShardBuilder(writer, ShardShape(width=2, labels=None, n_classes=0, thumbnail_size=None))
    rows = torch.ones(2, 6, 2)
    rows[1, 4:] = torch.nan
    assert builder.add(batch_of(0, 0, 1), rows) == 1
    builder.write()
    writer.finish(1)
    store = FeatureStore(tmp_path / "s")
    assert (store.n_images, store.n_rows) == (1, 6)
    assert [file.reason for file in store.skipped] == ["NaN or inf, patch 1,1"]


def test_an_image_without_its_label_gives_no_row(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=4)
    builder = ShardBuilder(writer, ShardShape(width=2, labels="single", n_classes=2, thumbnail_size=None))
    images = [SourceImage(i, f"row {i}", None, label, b"") for i, label in enumerate((1, None))]
    assert builder.add(PreparedBatch(0, images, None, None, []), torch.ones(2, 2)) == 1
    builder.write()
    writer.finish(1)
    store = FeatureStore(tmp_path / "s")
    assert store.labels().tolist() == [1]
    assert [file.reason for file in store.skipped] == ["without a label"]


def with_faults(number: int, rows: Tensor) -> Tensor:
    if number == 1:  # images 3; 4 and 5 are the next call's
        rows[0] = torch.nan
    if number == 2:
        rows[0], rows[1] = 0.0, torch.inf
    return rows


def test_rows_that_cannot_be_stored_are_skipped(tmp_path: Path) -> None:
    source = ListSource(9, contents={8: png((0, 0, 0))})
    store = silent(source, FakeEncoder(on_call=with_faults), tmp_path / "s")
    assert store.ids == [f"row {n}" for n in (0, 1, 2, 6, 7)]
    reasons = {3: "NaN or inf", 4: "only zeros once stored as float32", 5: "NaN or inf"}
    reasons[8] = reasons[4]
    assert {file.position: file.reason for file in store.skipped} == reasons
    np.testing.assert_allclose(store.embeddings()[3], row_of(color_of(6)), rtol=0, atol=ROW_ERROR)


@pytest.mark.door
def test_a_first_batch_without_any_row_is_an_error(tmp_path: Path) -> None:
    encoder = FakeEncoder(on_call=lambda _, rows: rows * torch.nan)
    with pytest.raises(InputError, match="encoder: got NaN or inf for every image of the first batch; expected an enc"):
        silent(ListSource(9), encoder, tmp_path / "s")
    with pytest.raises(InputError, match=r"a value outside uint8 for every image .* with scale 0.1, and another scale"):
        silent(ListSource(9), FakeEncoder(), tmp_path / "t", dtype="uint8", scale=0.1)
    with pytest.raises(
        InputError, match=r"encoder: got an output of shape \(3, 5\); expected \(3, 6\), as it says itself"
    ):
        silent(ListSource(9), FakeEncoder(on_call=lambda _, rows: rows[:, :5]), tmp_path / "u")


def test_an_outlier_that_float16_cannot_hold_is_skipped(tmp_path: Path) -> None:
    encoder = FakeEncoder(on_call=lambda number, rows: rows * (1e6 if number == 1 else 1))
    store = silent(ListSource(6), encoder, tmp_path / "s", dtype="float16", rows_per_shard=6)
    assert [file.reason for file in store.skipped] == ["a value outside float16"] * 3
    assert store.ids == ["row 0", "row 1", "row 2"]


@pytest.mark.door
def test_a_transform_that_takes_no_image_is_an_error(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    encoder.transform = lambda _: {}["x"]
    with pytest.raises(InputError, match=r"encoder: got a transform that fails \(cannot be prepared \(KeyError\)\)"):
        silent(ListSource(9), encoder, tmp_path / "s")
