"""Sums over the rows of a store for one block of latents of a model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples, ExtremeRows, SampledRows
from monoloss.functional.histogram import N_BINS, activation_histogram
from monoloss.functional.purity import ClassPurityResult
from monoloss.functional.score import n_eff
from monoloss.metrics import ClassPurity, MonoScore
from monoloss.precision import sums_device
from monoloss.sparse import Activations, SparseActivations
from monoloss.waiting import may_branch

SAMPLE_SIZE = 4  # rows sampled for the median of a latent, in multiples of the number of examples


class EvaluationOptions(NamedTuple):
    """Options of :func:`monoloss.evaluation.run.evaluate` that all its models share."""

    purity: bool
    center: Tensor | None
    n_examples: int
    latents_per_pass: int | None


class LatentMeasures(NamedTuple):
    """Measures and examples of a block of latents, one row for each latent."""

    score: Tensor
    n_eff: Tensor
    counts: Tensor  # active rows of each latent
    purity: ClassPurityResult | None
    top_classes: TopClasses | None
    examples: Examples
    middle_examples: Examples
    bottom_examples: Examples
    histogram: Tensor


class LatentSums:
    """Sums and examples of a block of ``m`` latents, added up batch after batch in stored order."""

    def __init__(self, m: int, device: torch.device, store: FeatureStore, options: EvaluationOptions) -> None:
        sums_dev, k = sums_device(device), options.n_examples
        self.n_rows, self.n_latents, self.n_examples = 0, m, k
        self.score = MonoScore(store.width, m, center=options.center, sync_on_compute=False).to(device)
        self.highest, self.lowest = (ExtremeRows(m, k, sums_dev, largest=largest) for largest in (True, False))
        self.sampled = SampledRows(m, SAMPLE_SIZE * k, sums_dev)
        self.histogram = torch.zeros(m, N_BINS, dtype=torch.int64, device=sums_dev)
        self.purity: ClassPurity | None = None
        if options.purity:
            self.purity = ClassPurity(m, store.n_classes, sync_on_compute=False).to(device)

    def add(self, embeddings: Tensor, activations: Activations, labels: Tensor | None) -> None:
        """Add a batch: embeddings ``(n, d)``, activations ``(n, m)`` and labels, if the store has any."""
        self.score.update(embeddings, activations)
        if self.purity is not None and labels is not None:
            self.purity.update(activations, labels.to(activations.device))
        activation_histogram(activations, into=self.histogram)
        if not isinstance(activations, SparseActivations) and not may_branch(activations.device):
            activations = SparseActivations.from_dense(activations.clamp(min=0.0))  # the one wait for a GPU of a batch
        for rows in (self.highest, self.lowest, self.sampled):
            rows.add(activations, self.n_rows)
        self.n_rows += len(embeddings)

    def result(self) -> LatentMeasures:
        """Return the measures of the latents over all rows added so far."""
        return LatentMeasures(
            score=self.score.compute(),
            n_eff=n_eff(self.score.sums),
            counts=self.histogram.sum(1),
            purity=None if self.purity is None else self.purity.summary(),
            top_classes=None if self.purity is None else TopClasses.of_counts(self.purity.sums.rows),
            examples=self.highest.examples(),
            middle_examples=self.sampled.middle(self.n_examples),
            bottom_examples=self.lowest.examples(),
            histogram=self.histogram,
        )
