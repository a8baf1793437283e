"""The metric of MonoScore over batches."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from monoloss.checks import check_choice, check_number
from monoloss.checks.tensors import check_rows, check_vector
from monoloss.errors import InputError
from monoloss.functional import moments as mono
from monoloss.functional.moments import MonoMoments, unit_rows
from monoloss.functional.score import ScoreSummary, Undefined, score_of, summarise
from monoloss.functional.streaming import add_batch
from monoloss.metrics.base import SumsMetric
from monoloss.sparse import Activations

Average = Literal["none", "mean"]


class MonoScore(SumsMetric[MonoMoments]):
    """MonoScore of each latent over any number of batches, in one pass, exact for any split and order of the rows.

    Over batches, merged metrics and processes the scores are those of one call of :func:`monoloss.mono_score` over all
    rows. The state is fixed in size: ``m (d + 3) + d + 1`` float64 numbers. In loops call ``update``; ``forward`` also
    computes the scores of the batch and costs three times as much.

    Args:
        d: width of the embeddings.
        m: number of latents.
        center: mean vector ``(d,)`` taken off the embeddings; None leaves them as they are.
        average: what ``compute`` returns: "none", the scores ``(m,)``; "mean", their mean, a scalar for loggers.
        undefined: "nan" leaves latents without two active rows out of the mean; "zero" counts them as 0.
        kwargs: as for any ``torchmetrics.Metric``, such as ``process_group``.

    Raises:
        InputError: at construction, sizes out of range; in ``update`` as :func:`monoloss.mono_score`; in ``compute``,
            on a GPU, an earlier row that was zero or not finite.

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
    w: Tensor

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
        super().__init__(MonoMoments.zeros(d, m), **kwargs)
        self.average = average
        self.undefined = undefined
        self.register_buffer("center", None if center is None else center.detach().clone())

    def update(self, embeddings: Float[Tensor, "n d"], activations: Activations) -> None:
        """Add rows: embeddings ``(n, d)`` and activations ``(n, m)``, dense or sparse."""
        check_rows(embeddings, activations, self.center)
        m, d = self.w.shape
        if embeddings.shape[1] != d:
            raise InputError("embeddings", f"width {embeddings.shape[1]}", f"width {d}")
        if activations.shape[1] != m:
            raise InputError("activations", f"{activations.shape[1]} latents", f"{m} latents")
        self._set_sums(add_batch(self._sums_to_change(), unit_rows(embeddings.detach(), self.center), activations))

    def compute(self) -> Float[Tensor, " m"] | Float[Tensor, ""]:
        """Return the scores ``(m,)``, or their mean, as ``average`` says; float64, NaN where undefined."""
        scores = score_of(_checked(self.sums), undefined=self.undefined)
        return scores.nanmean() if self.average == "mean" else scores

    def summary(self) -> ScoreSummary:
        """Return mean, median, p90, number defined, chance, lift and n_eff, over the rows of all processes."""
        result: ScoreSummary = self._synced(lambda sums: summarise(_checked(sums)))
        return result

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the rows of another metric, given as the metric or as its ``metric_state``.

        Raises:
            InputError: the other metric has other sizes or another ``center``.
        """
        if isinstance(incoming_state, MonoScore):
            metrics = (self, incoming_state)
            center, other = (torch.zeros(1) if metric.center is None else metric.center for metric in metrics)
            if center.shape != other.shape or not torch.equal(center, other.to(center)):
                raise InputError("incoming_state", "another center", "the center of this metric")
        super().merge_state(incoming_state)

    def _merge(self, left: MonoMoments, right: MonoMoments) -> MonoMoments:
        return mono.merge(left, right)

    def _reduce(self, sums: MonoMoments, group: dist.ProcessGroup | None) -> MonoMoments:
        """Return the moments of the rows of all processes of the group."""
        return mono.all_reduce(sums, group)


def _checked(sums: MonoMoments) -> MonoMoments:
    """Return the sums; raise InputError if a GPU added a bad row, for which ``update`` does not wait."""
    if not torch.isfinite(sums.h_sum).all():
        raise InputError(
            "embeddings", "a row that is zero or not finite, in an earlier update", "rows with a direction"
        )
    if not torch.isfinite(sums.u).all():
        raise InputError("activations", "NaN or infinity, in an earlier update", "finite numbers")
    return sums
