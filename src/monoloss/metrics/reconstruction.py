"""The metric of reconstruction quality over batches."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from monoloss.checks import check_choice, check_number
from monoloss.checks.tensors import check_matrix
from monoloss.functional.reconstruction import ReconstructionQuality, ReconstructionSums
from monoloss.metrics.base import SumsMetric


class Reconstruction(SumsMetric[ReconstructionSums]):
    """Quality of a reconstruction over any number of batches: explained variance, R2, NMSE or MSE.

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
        """True for explained variance and R2, False for NMSE and MSE."""
        return self.measure in ("explained_variance", "r2")

    def update(self, inputs: Float[Tensor, "n d"], reconstruction: Float[Tensor, "n d"]) -> None:
        """Add rows: inputs and their reconstruction, ``(n, d)`` each."""
        check_matrix("inputs", inputs, width=self.mean.shape[0])
        self._set_sums(self.sums.merge(ReconstructionSums.of_batch(inputs, reconstruction)))

    def compute(self) -> Float[Tensor, ""]:
        """Return the measure, a float64 scalar; NaN where undefined."""
        result: Tensor = getattr(self.sums.quality(), self.measure)
        return result

    def summary(self) -> ReconstructionQuality:
        """Return all four measures, over the rows of all processes."""
        result: ReconstructionQuality = self._synced(ReconstructionSums.quality)
        return result

    def _merge(self, left: ReconstructionSums, right: ReconstructionSums) -> ReconstructionSums:
        return left.merge(right)

    def _reduce(self, sums: ReconstructionSums, group: dist.ProcessGroup | None) -> ReconstructionSums:
        """Merge the sums of all processes of the group, in the order of their ranks."""
        shapes = {field.name: getattr(sums, field.name).shape for field in fields(sums)}
        local = torch.cat([getattr(sums, name).reshape(-1) for name in shapes])
        all_ranks = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(all_ranks, local, group=group)
        total = None
        for packed in all_ranks:  # in the order of the ranks, so that all get the same bits
            parts = packed.split([shape.numel() for shape in shapes.values()])
            rank = ReconstructionSums(**{n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)})
            total = rank if total is None else total.merge(rank)
        return total if total is not None else sums
