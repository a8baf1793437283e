"""Sums of a block of latents over batches, against loops over all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from monoloss.data.store import FeatureStore
from monoloss.evaluation.sums import SAMPLE_SIZE, EvaluationOptions, LatentMeasures, LatentSums
from support import bounds
from support.embeddings import ragged
from support.evaluated_models import LABELS, ROWS, N
from support.evaluations import assert_examples, histogram_by_loops

M, K = 6, 3


def codes() -> Tensor:
    """Quarters of any sign, many of them equal; latent 0 is never active, latent 1 on a single row."""
    z = torch.randint(-6, 9, (N, M), generator=torch.Generator().manual_seed(0)).float() / 4
    z[:, 0] = 0.0
    z[:, 1] = (torch.arange(N) == 77).float()
    return z


def summed(store: FeatureStore, options: EvaluationOptions, z: Tensor, *, sparse: bool, size: int) -> LatentMeasures:
    sums = LatentSums(M, torch.device("cpu"), store, options)
    for start in range(0, N, size):
        part = z[start : start + size]
        labels = LABELS[start : start + size] if options.purity else None
        sums.add(ROWS[start : start + size], ragged(part) if sparse else part, labels)
    assert sums.n_rows == N
    return sums.result()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("size", [N, 33])
def test_equals_loops_over_all_rows(stores, sparse, size):
    z = codes()
    measures = summed(stores["single"], EvaluationOptions(True, None, K, None), z, sparse=sparse, size=size)
    scores, error = reference.mono_score_pairwise(ROWS, z, None), bounds.of_score(N)
    np.testing.assert_allclose(measures.score, scores, rtol=error, atol=error)
    np.testing.assert_allclose(measures.n_eff, np.nan_to_num(reference.n_eff(z)), rtol=error, atol=error)
    assert torch.equal(measures.counts, (z > 0).sum(0))
    np.testing.assert_array_equal(measures.histogram, histogram_by_loops(z))
    kinds = {"highest": measures.examples, "middle": measures.middle_examples, "lowest": measures.bottom_examples}
    assert_examples(kinds, z, K, SAMPLE_SIZE * K)
    expected = reference.class_purity(z, LABELS)
    np.testing.assert_allclose(measures.purity.binary, expected["binary"], rtol=error, atol=error)
    assert measures.top_classes.classes[1, :2].tolist() == [int(LABELS[77]), -1]


def test_without_purity_there_are_no_classes(stores):
    measures = summed(stores["none"], EvaluationOptions(False, None, K, None), codes(), sparse=True, size=50)
    assert measures.purity is None
    assert measures.top_classes is None


def test_the_center_is_subtracted_in_the_score_only(stores):
    z, center = codes(), torch.linspace(-0.1, 0.3, ROWS.shape[1])
    unit = torch.as_tensor(reference.unit_rows(ROWS)).float()
    sums = LatentSums(M, torch.device("cpu"), stores["none"], EvaluationOptions(False, center, K, None))
    sums.add(unit, z, None)
    error = bounds.of_score(N)
    expected = reference.mono_score_pairwise(unit, z, center)
    np.testing.assert_allclose(sums.result().score, expected, rtol=error, atol=error)
    assert torch.equal(sums.result().counts, (z > 0).sum(0))
