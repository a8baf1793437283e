"""The metric of class purity over batches."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import torch.distributed as dist
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from monoloss.checks import check_choice, check_number
from monoloss.errors import InputError
from monoloss.functional.purity import ClassPurityResult, PurityCounts, class_counts, purity_from_counts
from monoloss.functional.sparsity import check_activations
from monoloss.metrics.base import SumsMetric
from monoloss.sparse import Activations


class ClassPurity(SumsMetric[PurityCounts]):
    """Class purity of each latent over any number of batches: the share of its active rows in its most frequent class.

    State: ``2 m (c + 1) + 1`` float64 numbers. See :func:`monoloss.class_purity`.

    Args:
        m: number of latents.
        n_classes: number of classes, c.
        weighted: rows count their activation instead of 1.
        average: what ``compute`` returns: "none", the purities ``(m,)``; "mean", their mean over latents with an active
            row (the paper's); "mass", the mean weighted by each latent's activation mass, which rare latents cannot
            inflate.
        kwargs: as for any ``torchmetrics.Metric``.

    Raises:
        InputError: as :func:`monoloss.class_purity`.

    Source:
        arXiv 2602.12403 for binary and weighted purity; the mass-weighted mean and the multi-label form are ours.

    Example:
        >>> import torch
        >>> metric = ClassPurity(m=1, n_classes=2)
        >>> metric.update(torch.tensor([[1.0], [2.0], [1.0], [0.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor([0.6667], dtype=torch.float64)
    """

    higher_is_better = True
    _sums_type = PurityCounts

    rows: Tensor

    def __init__(
        self,
        m: int,
        n_classes: int,
        weighted: bool = False,
        average: Literal["none", "mean", "mass"] = "none",
        **kwargs: Any,
    ) -> None:
        check_number("m", m, at_least=1, integer=True)
        check_number("n_classes", n_classes, at_least=1, integer=True)
        check_choice("average", average, ("none", "mean", "mass"))
        super().__init__(PurityCounts.zeros(m, n_classes), **kwargs)
        self.weighted = weighted
        self.average = average

    def update(self, activations: Activations, labels: Integer[Tensor, " n"] | Bool[Tensor, "n c"]) -> None:
        """Add rows: activations ``(n, m)``, dense or sparse; labels ``(n,)``, or ``(n, n_classes)`` bool."""
        check_activations(activations)
        m, n_classes = self.rows.shape
        if activations.shape[1] != m:
            raise InputError("activations", f"{activations.shape[1]} latents", f"{m} latents")
        class_counts(activations, labels, n_classes, into=self._sums_to_change())

    def compute(self) -> Float[Tensor, " m"] | Float[Tensor, ""]:
        """Return the purities ``(m,)``, NaN for latents without an active row; or their mean, as ``average`` says."""
        result = purity_from_counts(self.sums)
        if self.average == "none":
            return result.weighted if self.weighted else result.binary
        if self.average == "mean":
            return result.mean_weighted if self.weighted else result.mean_binary
        return result.mass_weighted_weighted if self.weighted else result.mass_weighted_binary

    def summary(self) -> ClassPurityResult:
        """Return purities and dominant class of each latent, and their means over latents, of all processes' rows."""
        result: ClassPurityResult = self._synced(purity_from_counts)
        return result

    def _merge(self, left: PurityCounts, right: PurityCounts) -> PurityCounts:
        return left + right

    def _reduce(self, sums: PurityCounts, group: dist.ProcessGroup | None) -> PurityCounts:
        """Add up the counts of all processes of the group."""
        totals = {field.name: getattr(sums, field.name).clone() for field in fields(sums)}
        for total in totals.values():
            dist.all_reduce(total, group=group)
        return PurityCounts(**totals)
