"""Rows, labels, ids and thumbnails that enter a store: what is refused, and what is stored of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss.data.store import FeatureStore
from monoloss.data.store import rows as rows_module
from monoloss.data.store.rows import encode_labels, encode_rows, encode_thumbnails, row_faults
from monoloss.errors import InputError
from support import bounds
from support.stores import everything_in, rows_of, with_row

BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"embeddings": with_row(7, 0.0)},
        r"embeddings: got only zeros once stored as float32 \(row 7, id '7'\); expected",
    ),
    ({"embeddings": with_row(4, float("nan"))}, r"embeddings: got NaN or inf \(row 4, id '4'\); expected finite rows"),
    ({"embeddings": with_row(9, -float("inf"))}, r"embeddings: got NaN or inf \(row 9, id '9'\); expected finite rows"),
    ({"embeddings": with_row(8, 1e5), "dtype": "float16"}, r"a value outside float16 \(row 8.*from -65504 to 65504"),
    ({"embeddings": with_row(8, 1e-9), "dtype": "float16"}, r"only zeros once stored as float16 \(row 8"),
    ({"embeddings": rows_of(10).double() * 1e300}, r"a value outside float32 \(row 0"),
    ({"dtype": "uint8", "scale": 0.5}, r"a value outside uint8 \(row 0.*expected values from 0 to 127.5"),
    ({"embeddings": with_row(6, 200).abs(), "dtype": "uint8", "scale": 0.5}, r"a value outside uint8 \(row 6"),
    ({"embeddings": with_row(6, float("nan")).abs() + 1, "dtype": "uint8", "scale": 0.5}, r"NaN or inf \(row 6"),
    ({"embeddings": torch.ones(3, 2, dtype=torch.uint8), "dtype": "float32"}, "torch.uint8 rows to store as float32"),
    ({"embeddings": torch.ones(3, 2, dtype=torch.int32)}, "embeddings: got torch.int32 rows"),
    ({"labels": torch.zeros(9, dtype=torch.int64)}, "labels: got 9 rows; expected as many as embeddings has, 10"),
    ({"ids": list("abc")}, "ids: got 3 rows; expected as many as embeddings has, 10"),
    ({"paths": list("abc")}, "paths: got 3 rows"),
    ({"thumbnails": torch.zeros(9, 2, 2, 3, dtype=torch.uint8)}, "thumbnails: got 9 rows"),
    ({"ids": list("abcdefghib")}, r"ids: got 'b' twice \(rows 1 and 9\); expected an id of its own"),
    ({"ids": [*"abcdefghi", 3]}, r"ids: got 3 \(row 9\); expected strings"),
    ({"labels": torch.tensor([0] * 7 + [-1, 0, 0])}, r"labels: got -1 \(row 7, id '7'\); expected labels from 0"),
    (
        {"labels": torch.tensor([0] * 9 + [2**24])},
        r"labels: got 16777216 \(row 9, id '9'\); expected labels from 0, below",
    ),
    ({"labels": torch.arange(10), "class_names": list("abcdefgh")}, r"labels: got 8 \(row 8.*from 0 to 7"),
    ({"labels": torch.zeros(10)}, r"labels: got torch.float32 of shape \(rows\); expected integers"),
    ({"labels": torch.zeros(10, dtype=torch.bool)}, r"labels: got torch.bool of shape \(rows\)"),
    ({"labels": torch.zeros(10, 2, dtype=torch.int64)}, r"labels: got torch.int64 of shape \(rows, 2\)"),
    (
        {"labels": torch.zeros(10, 2, dtype=torch.bool), "class_names": ["a"]},
        "labels: got 2 columns; expected one for each",
    ),
    ({"labels": [0] * 10}, "labels: got list"),
    ({"thumbnails": torch.zeros(10, 2, 2, 3)}, "thumbnails: got torch.float32"),
    (
        {"thumbnails": torch.zeros(10, 2, 2, 2, dtype=torch.uint8)},
        r"thumbnails: got torch.uint8 of shape \(rows, 2, 2, 2\)",
    ),
]


@pytest.mark.door
@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_columns_are_named_and_nothing_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"embeddings": rows_of(10), "rows_per_shard": 4, **change}
    with pytest.raises(InputError, match=message):
        FeatureStore.create(tmp_path / "new" / "store", **arguments)
    assert everything_in(tmp_path) == []


def test_floating_rows_are_rounded_to_the_nearest_byte(tmp_path: Path) -> None:
    rows = torch.tensor([[0.0, 0.24, 0.26, 127.5]])
    store = FeatureStore.create(tmp_path / "s", rows, dtype="uint8", scale=0.5)
    assert store.embeddings().tolist() == [[0.0, 0.0, 0.5, 127.5]]


@pytest.mark.door
def test_rows_are_checked_and_summed_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FeatureStore.create(tmp_path / "whole", rows_of(10))
    monkeypatch.setattr(rows_module, "_BLOCK", 3)
    blocks = FeatureStore.create(tmp_path / "blocks", rows_of(10))
    error = bounds.of_sum(10 + 5, 1.0, torch.float64)
    torch.testing.assert_close(blocks.mean, whole.mean, rtol=0, atol=error)
    assert blocks.manifest.norms == pytest.approx(whole.manifest.norms, rel=error)
    assert torch.equal(blocks.embeddings(), rows_of(10))
    with pytest.raises(InputError, match=r"only zeros once stored as float32 \(row 7, id '7'\)"):
        FeatureStore.create(tmp_path / "bad", with_row(7, 0.0))


def test_the_sum_of_unit_rows_and_the_extreme_norms() -> None:
    rows = rows_of(6) * torch.arange(1, 7)[:, None]
    stored, unit_sum, norms = encode_rows(rows, "float16", None, str)
    half = rows.numpy().astype(np.float16).astype(np.float64)  # what is measured is what is stored
    lengths = [float(np.sqrt(sum(value * value for value in row))) for row in half]
    expected = np.sum([row / length for row, length in zip(half, lengths, strict=True)], axis=0)
    error = bounds.of_sum(6 + 5, 6.0, torch.float64)
    assert np.array_equal(stored.double().numpy(), half)
    np.testing.assert_allclose(unit_sum.numpy(), expected, rtol=0, atol=error)
    assert norms == pytest.approx([min(lengths), max(lengths)], rel=bounds.of_sum(5, 1.0, torch.float64))
    assert encode_rows(torch.empty(0, 5), "float32", None, str)[2] is None


@pytest.mark.door
@pytest.mark.parametrize(("dtype", "scale"), [("float32", None), ("float16", None), ("uint8", 0.5)])
def test_faults_of_rows_are_those_that_encoding_raises(dtype: str, scale: float | None) -> None:
    rows = rows_of(6).abs() + 1
    rows[1], rows[2, 3], rows[3, 0], rows[4, 1] = 0, torch.nan, torch.inf, 1e38
    faults = row_faults(rows, dtype, scale)
    for row, fault in zip(rows, faults, strict=True):
        if fault is None:
            encode_rows(row[None], dtype, scale, str)
            continue
        with pytest.raises(InputError) as error:
            encode_rows(row[None], dtype, scale, str)
        assert str(error.value).startswith(f"embeddings: got {fault} (0); expected")
    outside = None if dtype == "float32" else f"a value outside {dtype}"
    zeros = f"only zeros once stored as {dtype}"
    assert faults == [None, zeros, "NaN or inf", "NaN or inf", outside, None]


def test_labels_as_they_are_stored() -> None:
    assert encode_labels(None, None, str) == (None, 0, {})
    kind, n_classes, tensors = encode_labels(np.array([2, 0], dtype=np.uint8), ["a", "b", "c", "d"], str)
    assert (kind, n_classes, tensors["labels"].dtype, tensors["labels"].tolist()) == ("single", 4, torch.int64, [2, 0])
    several = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    kind, n_classes, tensors = encode_labels(several, None, str)
    assert (kind, n_classes) == ("multi", 3)
    assert tensors["label_offsets"].tolist() == [0, 2, 2, 3]
    assert tensors["label_values"].tolist() == [0, 2, 1]


def test_thumbnails_lie_in_one_piece() -> None:
    pictures = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2).permute(0, 2, 3, 1)  # channels last
    stored = encode_thumbnails(pictures)
    assert stored.is_contiguous()
    assert torch.equal(stored, pictures)
