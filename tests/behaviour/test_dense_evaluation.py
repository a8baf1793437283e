"""Dense activations and the sparse form of the same are judged alike: to the bit wherever nothing is multiplied."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from monoloss.evaluation.examples import ExtremeRows, SampledRows
from monoloss.evaluation.run import evaluate
from monoloss.functional import purity, sparsity
from monoloss.functional.purity import PurityCounts, class_counts
from monoloss.sae.model import SparseAutoencoder
from support import bounds
from support.embeddings import CLASSES, ragged, some_activations, some_labels
from support.saes import generator_of, some_config, structured_store

N, D, M = 300, 32, 40


def assert_same_counts(one: PurityCounts, other: PurityCounts) -> None:
    for field in fields(PurityCounts):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [7, 2**18])
def test_class_counts_are_the_same_to_the_bit(monkeypatch, multi, dtype, block):
    monkeypatch.setattr(purity, "_BLOCK_ENTRIES", block * 64)
    labels = some_labels(multi=multi)
    for seed in range(3):
        z = some_activations(seed=seed, dtype=torch.float32).to(
            dtype
        )  # 24 bits: sums in float64 are exact in any order
        dense, sparse = class_counts(z, labels, CLASSES), class_counts(ragged(z), labels, CLASSES)
        assert dense.rows.sum() > 0
        assert_same_counts(dense, sparse)
        more = some_activations(seed=seed + 10, dtype=torch.float32).to(dtype)
        class_counts(more, labels.flip(0), CLASSES, into=dense)
        class_counts(ragged(more), labels.flip(0), CLASSES, into=sparse)
        assert_same_counts(dense, sparse)


def test_class_counts_without_rows_and_without_labels():
    assert_same_counts(class_counts(torch.zeros(0, 3), torch.zeros(0).long(), 2), PurityCounts.zeros(3, 2))
    unlabelled = torch.zeros(4, 2, dtype=torch.bool)
    assert_same_counts(class_counts(torch.ones(4, 3), unlabelled, 2), PurityCounts.zeros(3, 2))


@pytest.mark.parametrize("block", [50, 2**20])
def test_examples_are_the_same_in_many_batches(monkeypatch, block):
    """Later batches are compared with what is there: equal values must lose, larger ones win."""
    monkeypatch.setattr(sparsity, "_BLOCK_ENTRIES", block)
    z = torch.randint(-3, 9, (600, 5), generator=generator_of(0)).float() / 8
    z[:, 4] = torch.arange(600) / 600  # each row better than all before
    dense, sparse = ExtremeRows(5, 6, largest=True), ExtremeRows(5, 6, largest=True)
    for start in range(0, 600, 37):
        part = z[start : start + 37]
        dense.add(part, start)
        sparse.add(ragged(part), start)
    for latent in range(5):
        expected = [row for row in z[:, latent].argsort(descending=True, stable=True).tolist() if z[row, latent] > 0]
        rows = dense.examples().rows[latent].tolist()
        assert rows == sparse.examples().rows[latent].tolist() == expected[:6]
    assert torch.equal(dense.examples().values, sparse.examples().values)


@pytest.mark.parametrize("block", [50, 2**20])
def test_lowest_and_sampled_rows_are_the_same_in_many_batches(monkeypatch, block):
    monkeypatch.setattr(sparsity, "_BLOCK_ENTRIES", block)
    z = torch.randint(-3, 9, (600, 5), generator=generator_of(0)).float() / 8
    z[:, 4] = 1 - torch.arange(600) / 600  # each row lower than all before
    dense, sparse = ((ExtremeRows(5, 6, largest=False), SampledRows(5, 20)) for _ in range(2))
    for start in range(0, 600, 37):
        part = z[start : start + 37]
        for one, other in zip(dense, sparse, strict=True):
            one.add(part, start)
            other.add(ragged(part), start)
    for one, other in ((dense[0].examples(), sparse[0].examples()), (dense[1].sample(), sparse[1].sample())):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.values, other.values)
    assert dense[0].examples().rows[4].tolist() == [599, 598, 597, 596, 595, 594]


@pytest.mark.parametrize("layout", [ragged, Tensor.clone])
def test_examples_across_dtypes(layout):
    """A bound kept from float64 rows that float32 would round the wrong way must not hide a float32 value beyond it."""
    for largest, nearest in ((True, 0.1), (False, 0.7)):
        collected = ExtremeRows(1, 1, largest=largest)
        first, second = (torch.full((1, 1), nearest, dtype=dtype) for dtype in (torch.float64, torch.float32))
        assert (float(second) > nearest) == largest
        assert float(second) != nearest
        collected.add(first, 0)
        collected.add(layout(second), 1)
        assert collected.examples().rows.tolist() == [[1]]


class Codes(nn.Module):
    """The codes of a SAE by another way: sparse."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        super().__init__()
        self.sae = sae

    def encode(self, inputs: Tensor) -> object:
        return self.sae.encode(inputs)


@pytest.mark.parametrize("variant", ["jump_relu", "vanilla"])
@pytest.mark.parametrize("batch_size", [64, 1000])
def test_saes_with_dense_codes(tmp_path: Path, variant, batch_size):
    store = structured_store(tmp_path / "store", N)
    sae = SparseAutoencoder(D, some_config(variant, M), seed=1)
    with torch.no_grad():
        sae.encoder_bias.add_(torch.linspace(-1.5, 0.5, M))  # from latents that are never active to half of the rows
    assert isinstance(sae(store.embeddings(0, 9)).codes, Tensor)
    found = evaluate(store, {"dense": sae, "sparse": Codes(sae)}, batch_size=batch_size)
    dense, sparse = found["dense"], found["sparse"]
    assert 0 < dense.summary["n_alive"] <= M
    assert dense.summary["l0"] > 1
    exact = ("density", "purity_binary", "purity_weighted", "dominant_class")
    for column, values in sparse.latents.items():
        apart = 0.0 if column in exact else bounds.of_score(min(batch_size, N))
        torch.testing.assert_close(dense.latents[column], values, rtol=apart, atol=apart, equal_nan=True)
    # the codes are the same, and sums of float32 values in float64 are exact
    for key in ("purity_binary", "purity_weighted", "purity_binary_by_mass", "purity_weighted_by_mass", "l0"):
        assert dense.summary[key] == sparse.summary[key]
    assert torch.equal(dense.examples.rows, sparse.examples.rows)
    assert torch.equal(dense.examples.values, sparse.examples.values)
