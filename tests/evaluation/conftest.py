"""Stores of the same rows, for the tests of evaluations."""

from __future__ import annotations

import pytest

from monoloss.data.store import FeatureStore
from support.evaluated_models import LABELS, ROWS, multi_labels


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    """The same rows: with labels in one shard and in several, with several labels a row, and without."""
    folder = tmp_path_factory.mktemp("evaluation")
    return {
        "single": FeatureStore.create(folder / "single", ROWS, LABELS),
        "shards": FeatureStore.create(folder / "shards", ROWS, LABELS, rows_per_shard=37),
        "multi": FeatureStore.create(folder / "multi", ROWS, multi_labels(), rows_per_shard=100),
        "none": FeatureStore.create(folder / "none", ROWS),
    }
