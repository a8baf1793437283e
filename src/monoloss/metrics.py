"""torchmetrics classes over the sums of ``functional``: streaming, mergeable, distributed; no arithmetic here."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torchmetrics import Metric

from monoloss.checks import check_choice, check_number
from monoloss.errors import InputError
from monoloss.functional import moments as mono
from monoloss.functional.moments import MonoMoments, unit_rows
from monoloss.functional.purity import ClassPurityResult, PurityCounts, class_counts, purity_from_counts
from monoloss.functional.reconstruction import ReconstructionQuality, ReconstructionSums
from monoloss.functional.score import ScoreSummary, Undefined, score_of, summarise
from monoloss.functional.sparsity import check_activations
from monoloss.functional.streaming import RecentProducts, add_batch
from monoloss.sparse import Activations
from monoloss.sums_metric import SumsMetric, can_change
from monoloss.tensor_checks import check_matrix, check_rows, check_vector

Average = Literal["none", "mean"]


class MonoScore(SumsMetric[MonoMoments]):
    """MonoScore of each latent over any number of batches, in one pass, exact for any split and order of the rows.

    The state is fixed in size, ``m (d + 3) + d + 1`` float64 numbers, and gives over batches, merged parts and
    processes what one call of :func:`monoloss.mono_score` gives over all rows. In loops call ``update``; the
    metric's ``forward`` computes a value of every batch as well and costs three times as much.

    Args:
        d: width of the embeddings.
        m: number of latents.
        center: mean vector ``(d,)`` taken off the embeddings; None leaves them as they are.
        average: what ``compute`` returns: "none", the scores ``(m,)``; "mean", their mean, a scalar for loggers.
        undefined: "nan" leaves latents without two active rows out of the mean; "zero" counts them as 0.
        kwargs: as for any ``torchmetrics.Metric``, such as ``process_group``.

    Raises:
        InputError: at construction, sizes out of range; in ``update`` as :func:`monoloss.mono_score`; in ``compute``,
            on a GPU, that an earlier row could not be scored.

    Source:
        arXiv 2602.12403 and arXiv 2504.02821; see :func:`monoloss.mono_score`.

    Example:
        >>> metric = MonoScore(d=2, m=1)
        >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]]))
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [0.0]]))
        >>> metric.compute()
        tensor([1.], dtype=torch.float64)
    """

    higher_is_better = True
    _sums_type = MonoMoments

    center: Tensor | None
    n: Tensor
    h_sum: Tensor
    b: Tensor
    u: Tensor
    v: Tensor

    def __init__(
        self,
        d: int,
        m: int,
        center: Float[Tensor, " d"] | None = None,
        average: Average = "none",
        undefined: Undefined = "nan",
        **kwargs: Any,
    ) -> None:
        check_number("d", d, at_least=1, integer=True)
        check_number("m", m, at_least=1, integer=True)
        check_choice("average", average, ("none", "mean"))
        check_choice("undefined", undefined, ("nan", "zero"))
        if center is not None:
            check_vector("center", center, d)
        self._recent = RecentProducts()
        super().__init__(MonoMoments.zeros(d, m), **kwargs)
        self.average = average
        self.undefined = undefined
        self.register_buffer("center", None if center is None else center.detach().clone())

    @property
    def w(self) -> Float[Tensor, "m d"]:
        """The state ``w``, with the latest batches in it."""
        self._recent.move_into(self._w)
        return self._w

    @w.setter
    def w(self, w: Float[Tensor, "m d"]) -> None:
        self._recent.forget(w_is_empty=False)
        self._w = w

    def update(self, embeddings: Float[Tensor, "n d"], activations: Activations) -> None:
        """Add rows: embeddings ``(n, d)`` and activations ``(n, m)``, dense or sparse."""
        check_rows(embeddings, activations, self.center)
        m, d = self._w.shape
        if embeddings.shape[1] != d:
            raise InputError("embeddings", f"width {embeddings.shape[1]}", f"width {d}")
        if activations.shape[1] != m:
            raise InputError("activations", f"{activations.shape[1]} latents", f"{m} latents")
        total = MonoMoments(self.n, self.h_sum, self.b, self.u, self.v, self._w)
        total = add_batch(total, unit_rows(embeddings.detach(), self.center), activations, self._recent)
        self.n, self.h_sum, self.b, self.u, self.v = total.n, total.h_sum, total.b, total.u, total.v

    def compute(self) -> Float[Tensor, " m"] | Float[Tensor, ""]:
        """Scores ``(m,)``, or their mean; float64, NaN where undefined."""
        w = self._recent.total(self._w)
        sums = MonoMoments(self.n, self.h_sum, self.b, self.u, self.v, w)
        scores = score_of(_checked(sums), undefined=self.undefined)
        return scores.nanmean() if self.average == "mean" else scores

    def summary(self) -> ScoreSummary:
        """Mean, median, p90, number defined, chance, lift and n_eff, over all rows and processes."""
        result: ScoreSummary = self._synced(lambda sums: summarise(_checked(sums)))
        return result

    def _empty(self, name: str, empty: Tensor) -> None:
        if name == "w" and self._w.shape == empty.shape and can_change(self._w):
            self._recent.forget(w_is_empty=True)
        else:
            super()._empty(name, empty)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take over the rows that another metric has seen.

        Raises:
            InputError: the other metric has other sizes, or took another mean vector off.
        """
        if isinstance(incoming_state, MonoScore):
            mine, theirs = (torch.zeros(1) if one.center is None else one.center for one in (self, incoming_state))
            if mine.shape != theirs.shape or not torch.equal(mine, theirs.to(mine)):
                raise InputError("incoming_state", "another center", "the center of this metric")
        super().merge_state(incoming_state)

    def _merge(self, left: MonoMoments, right: MonoMoments) -> MonoMoments:
        return mono.merge(left, right)

    def _reduce(self, sums: MonoMoments, group: dist.ProcessGroup | None) -> MonoMoments:
        return mono.all_reduce(sums, group)


def _checked(sums: MonoMoments) -> MonoMoments:
    """Refuse sums into which a GPU added a row that could not be scored: found here, where waiting for it is due."""
    if not torch.isfinite(sums.h_sum).all():
        raise InputError(
            "embeddings", "a row that is zero or not finite, in an earlier update", "rows with a direction"
        )
    if not torch.isfinite(sums.u).all():
        raise InputError("activations", "NaN or infinity, in an earlier update", "finite numbers")
    return sums


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
        class_counts(activations, labels, n_classes, into=self.sums)

    def compute(self) -> Float[Tensor, " m"] | Float[Tensor, ""]:
        """Purities ``(m,)``, NaN for latents without an active row; or their mean."""
        result = purity_from_counts(self.sums)
        if self.average == "none":
            return result.weighted if self.weighted else result.binary
        if self.average == "mean":
            return result.mean_weighted if self.weighted else result.mean_binary
        return result.mass_weighted_weighted if self.weighted else result.mass_weighted_binary

    def summary(self) -> ClassPurityResult:
        """Both purities of each latent, its dominant class, and all means, over all rows and processes."""
        result: ClassPurityResult = self._synced(purity_from_counts)
        return result

    def _merge(self, left: PurityCounts, right: PurityCounts) -> PurityCounts:
        return left + right

    def _reduce(self, sums: PurityCounts, group: dist.ProcessGroup | None) -> PurityCounts:
        parts = {field.name: getattr(sums, field.name).clone() for field in fields(sums)}
        for part in parts.values():
            dist.all_reduce(part, group=group)
        return PurityCounts(**parts)


class Reconstruction(SumsMetric[ReconstructionSums]):
    """How well inputs are reconstructed, over any number of batches: explained variance, R2, NMSE, MSE.

    State: ``3 d + 4`` float64 numbers. See :func:`monoloss.reconstruction_quality`.

    Args:
        d: width of the inputs.
        measure: what ``compute`` returns: "explained_variance" (pooled), "r2" (mean over dimensions, the paper's),
            "nmse" or "mse".
        kwargs: as for any ``torchmetrics.Metric``.

    Raises:
        InputError: as :func:`monoloss.reconstruction_quality`.

    Example:
        >>> metric = Reconstruction(d=1)
        >>> metric.update(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]]))
        >>> metric.compute()
        tensor(0., dtype=torch.float64)
    """

    _sums_type = ReconstructionSums

    mean: Tensor

    def __init__(
        self,
        d: int,
        measure: Literal["explained_variance", "r2", "nmse", "mse"] = "explained_variance",
        **kwargs: Any,
    ) -> None:
        check_number("d", d, at_least=1, integer=True)
        check_choice("measure", measure, ("explained_variance", "r2", "nmse", "mse"))
        super().__init__(ReconstructionSums.zeros(d), **kwargs)
        self.measure = measure

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """True for explained variance and R2, False for the errors."""
        return self.measure in ("explained_variance", "r2")

    def update(self, inputs: Float[Tensor, "n d"], reconstruction: Float[Tensor, "n d"]) -> None:
        """Add rows: inputs and their reconstruction, ``(n, d)`` each."""
        check_matrix("inputs", inputs, width=self.mean.shape[0])
        self._take(self.sums.merge(ReconstructionSums.of_batch(inputs, reconstruction)))

    def compute(self) -> Float[Tensor, ""]:
        """The measure, a float64 scalar; NaN where undefined."""
        result: Tensor = getattr(self.sums.quality(), self.measure)
        return result

    def summary(self) -> ReconstructionQuality:
        """All four measures, over all rows and processes."""
        result: ReconstructionQuality = self._synced(ReconstructionSums.quality)
        return result

    def _merge(self, left: ReconstructionSums, right: ReconstructionSums) -> ReconstructionSums:
        return left.merge(right)

    def _reduce(self, sums: ReconstructionSums, group: dist.ProcessGroup | None) -> ReconstructionSums:
        widths = {field.name: getattr(sums, field.name).shape for field in fields(sums)}
        mine = torch.cat([getattr(sums, name).reshape(-1) for name in widths])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, mine, group=group)
        total = None
        for packed in everyone:  # in the order of the ranks, so that all get the same bits
            parts = packed.split([shape.numel() for shape in widths.values()])
            rank = ReconstructionSums(**{n: p.reshape(s) for (n, s), p in zip(widths.items(), parts, strict=True)})
            total = rank if total is None else total.merge(rank)
        return total if total is not None else sums
