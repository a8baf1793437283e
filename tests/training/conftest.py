"""A store to train on."""

from __future__ import annotations

import pytest

from monoloss.data.store import FeatureStore
from sae_samples import structured_store
from training_samples import N_ROWS


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return structured_store(tmp_path_factory.mktemp("training") / "store", N_ROWS, rows_per_shard=100)
