"""A small store with its evaluation, for the tests of charts."""

from __future__ import annotations

from pathlib import Path

import pytest

from monoloss.data.store import FeatureStore
from monoloss.evaluation.result import Evaluation
from support.charts import judged, small_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def store(folder: Path) -> FeatureStore:
    return small_store(str(folder / "store"))


@pytest.fixture(scope="module")
def evaluation(store: FeatureStore) -> Evaluation:
    return judged(store)
