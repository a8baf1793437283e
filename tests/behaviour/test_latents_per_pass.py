"""Latents a block at a time, with a pass for each block: the same evaluation, the accumulators a block's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation import sums
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.run import evaluate
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.metrics import MonoScore
from monoloss.sae.model import SparseAutoencoder
from support import bounds
from support.evaluations import tensors_of
from support.sae_checks import Spy
from support.saes import some_config, structured_rows

D, M, N = 32, 40, 160
ROWS, LABELS = structured_rows(N, seed=3)


def some_sae(variant: str, m: int = M) -> SparseAutoencoder:
    sae = SparseAutoencoder(D, some_config(variant, m, 4), seed=4)
    sae.calibrate_([ROWS])
    return sae


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore.create(tmp_path_factory.mktemp("passes") / "store", ROWS, LABELS, rows_per_shard=70)


def assert_same(one: Evaluation, other: Evaluation) -> None:
    """Codes are the same to the bit; sums over rows of fewer latents at a time may go in another order."""
    error = bounds.of_score(32)
    assert one.metadata == other.metadata
    assert one.summary == bounds.close_summary(other.summary, error)
    assert set(one.latents) == set(other.latents)
    for name, column in other.latents.items():
        torch.testing.assert_close(one.latents[name], column, rtol=error, atol=error, equal_nan=True, msg=name)
    parts, expected = tensors_of(one), tensors_of(other)
    assert set(parts) == set(expected) >= {"examples.rows", "histogram", "top_classes.counts"}
    for name, part in expected.items():
        assert torch.equal(parts[name], part), name


@pytest.mark.parametrize("latents_per_pass", [1, 7, 39, 40, 1000])
def test_sparse_codes_give_the_same(store, latents_per_pass):
    models = {"topk": some_sae("topk"), "batch_topk": some_sae("batch_topk"), "wide": some_sae("topk", 50)}
    whole = evaluate(store, models, batch_size=32)
    parts = evaluate(store, models, batch_size=32, latents_per_pass=latents_per_pass)
    for name, expected in whole.items():
        assert expected.summary["purity_binary"] > 0
        assert_same(parts[name], expected)


@pytest.mark.parametrize("latents_per_pass", [7, 40])
def test_dense_codes_and_files_agree_within_rounding(store, latents_per_pass, tmp_path: Path):
    np.save(tmp_path / "codes.npy", some_sae("vanilla").encode(ROWS).to_dense().detach().numpy())
    models: dict[str, Any] = {
        "jump_relu": some_sae("jump_relu"),
        "vanilla": some_sae("vanilla"),
        "file": StoredActivations(tmp_path / "codes.npy"),
    }
    center = store.mean
    whole = evaluate(store, models, batch_size=32, center=center, n_examples=3)
    parts = evaluate(store, models, batch_size=32, center=center, n_examples=3, latents_per_pass=latents_per_pass)
    for name, expected in whole.items():
        assert_same(parts[name], expected)


def test_a_pass_for_each_block_and_none_for_models_that_are_done(store, monkeypatch):
    sizes = []

    class Sized(MonoScore):
        def __init__(self, d: int, m: int, **kwargs: Any) -> None:
            sizes.append(m)
            super().__init__(d, m, **kwargs)

    monkeypatch.setattr(sums, "MonoScore", Sized)
    spy, narrow = Spy(), some_sae("topk", 12)
    evaluate(store, {"spy": spy, "narrow": narrow}, latents_per_pass=12)
    assert torch.equal(torch.cat(spy.seen), store.embeddings().repeat(3, 1))
    assert sorted(sizes) == [8, 12, 12, 12]


def test_rows_are_rebuilt_in_the_first_pass_only(store, monkeypatch):
    n_rebuilt = []
    decode = SparseAutoencoder.decode

    def counted(self: SparseAutoencoder, codes: Any) -> Tensor:
        n_rebuilt.append(len(codes))
        return decode(self, codes)

    monkeypatch.setattr(SparseAutoencoder, "decode", counted)
    found = evaluate(store, {"a": some_sae("topk")}, latents_per_pass=10)["a"]
    assert sum(n_rebuilt) == N
    assert found.summary["explained_variance"] <= 1.0


@pytest.mark.door
@pytest.mark.parametrize("value", [0, 1.5])
def test_refused(store, value):
    with pytest.raises(InputError, match=f"latents_per_pass: got {value}; expected an integer at least 1"):
        evaluate(store, {"a": some_sae("topk")}, latents_per_pass=value)
