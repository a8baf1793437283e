"""A small store in several shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from monoloss.data.store import FeatureStore
from support.stores import store_of_four_shards


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return store_of_four_shards(tmp_path / "store")
