"""A small store in several shards, and a cache of datasets apart from the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from monoloss.data.store import FeatureStore
from support.stores import store_of_four_shards


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return store_of_four_shards(tmp_path / "store")


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the cache of the package datasets out of the home folder, and its progress bars off the screen."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
