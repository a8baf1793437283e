"""A store to train on."""

from __future__ import annotations

import pytest

from monoloss.data.store import FeatureStore
from support.training_runs import training_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return training_store(tmp_path_factory.mktemp("training") / "store")
