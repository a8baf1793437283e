"""Statistics of a store from its manifest and labels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from monoloss.data.store import FeatureStore
from monoloss.data.store.format import SkippedFile
from monoloss.data.store.summary import bytes_on_disk, class_counts, mean_cosine, skip_reasons
from monoloss.data.store.writer import FeatureStoreWriter
from support.stores import rows_of


def test_mean_cosines_in_closed_form(tmp_path: Path) -> None:
    same, opposite = torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    for name, rows, expected in [("same", same, 1.0), ("opposite", opposite, -1.0), ("orthogonal", torch.eye(4), 0.0)]:
        assert mean_cosine(FeatureStore.create(tmp_path / name, rows)) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(mean_cosine(FeatureStore.create(tmp_path / "single", torch.ones(1, 3))))


@pytest.mark.parametrize("rows_per_shard", [1, 3, 10])
def test_classes_are_counted_across_shards(tmp_path: Path, rows_per_shard: int) -> None:
    labels = torch.tensor([0, 3, 0, 1, 3, 3, 0, 0, 3, 3])
    single = FeatureStore.create(tmp_path / "single", rows_of(10), labels, rows_per_shard=rows_per_shard)
    assert class_counts(single).tolist() == [4, 1, 0, 5]
    several = torch.zeros(10, 3, dtype=torch.bool)
    several[:, 0], several[4:6, 2] = True, True
    multi = FeatureStore.create(tmp_path / "multi", rows_of(10), several, rows_per_shard=rows_per_shard)
    assert class_counts(multi).tolist() == [10, 0, 2]


def test_the_size_is_that_of_the_files(store: FeatureStore) -> None:
    assert bytes_on_disk(store) == sum(len(file.read_bytes()) for file in store.folder.iterdir())


def test_the_most_frequent_reason_comes_first(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=4)
    skipped = [SkippedFile(i, f"{i}.png", reason) for i, reason in enumerate(["empty", "no image", "no image"])]
    writer.write_shard(0, rows_of(1), ["a"], skipped=skipped[:2])
    writer.write_shard(1, rows_of(1), ["b"], skipped=skipped[2:])
    writer.finish()
    assert skip_reasons(FeatureStore(tmp_path / "s")) == [("no image", 2), ("empty", 1)]
