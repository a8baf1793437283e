"""A small store in several shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monoloss.data.store import FeatureStore
from store_samples import rows_of


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Ten rows in four shards: 3, 3, 3, 1."""
    labels, ids = torch.arange(10) % 4, [f"image {i}" for i in range(10)]
    return FeatureStore.create(tmp_path / "store", rows_of(10), labels, ids, rows_per_shard=3)
