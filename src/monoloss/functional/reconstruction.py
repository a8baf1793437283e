"""Quality of a reconstruction: R2, explained variance, normalised and plain squared error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from monoloss.checks.tensors import check_matrix, check_same_device
from monoloss.errors import InputError
from monoloss.precision import sums_device
from monoloss.waiting import may_check

_BLOCK_ELEMENTS = 2**16  # elements cast to float64 at a time: 512 kB an array, which stays in the cache
_LEAST_VARIATION = 1e-24  # share of a dimension's sum of squares; variation below it is the rounding of a constant


@dataclass(frozen=True)
class ReconstructionQuality:
    """Four measures of a reconstruction; float64 scalars, NaN where undefined.

    Attributes:
        r2: ``1 - error / variation about the mean`` of each input dimension, averaged over the dimensions that vary
            (the paper's); at most 1; 0 for predicting the mean. One that hardly varies can pull it far below 0.
        explained_variance: the same with error and variation summed over all dimensions first (pooled).
        nmse: mean over rows of ``|x - x'|^2 / |x|^2``, from 0 (perfect) up; 1 for predicting zero.
        mse: mean over rows and input dimensions of ``(x - x')^2``, in the squared unit of the inputs.
    """

    r2: Float[Tensor, ""]
    explained_variance: Float[Tensor, ""]
    nmse: Float[Tensor, ""]
    mse: Float[Tensor, ""]


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over rows from which the quality of a reconstruction follows, for any split of the rows. All float64.

    Squared deviations are taken about the running mean (parallel update of Chan et al.), so that inputs far from 0 lose
    no digits.

    Attributes:
        n: number of rows, scalar.
        mean: mean of the inputs, ``(d,)``.
        m2: squared deviations of the inputs from ``mean``, summed over rows, ``(d,)``.
        sse: squared errors, summed over rows, ``(d,)``.
        nmse_sum: ``|x - x'|^2 / |x|^2``, summed over rows, scalar.
        n_bad_inputs: number of input rows that are zero or not finite, scalar; 0 on the CPU, where they are refused.
        n_bad_reconstructions: number of other rows whose reconstruction is not finite, scalar; 0 on the CPU.
    """

    n: Float[Tensor, ""]
    mean: Float[Tensor, " d"]
    m2: Float[Tensor, " d"]
    sse: Float[Tensor, " d"]
    nmse_sum: Float[Tensor, ""]
    n_bad_inputs: Float[Tensor, ""]
    n_bad_reconstructions: Float[Tensor, ""]

    @classmethod
    def zeros(cls, d: int, device: torch.device | None = None) -> ReconstructionSums:
        """Return the sums of no rows, the neutral element of ``merge``."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            n=zeros(),
            mean=zeros(d),
            m2=zeros(d),
            sse=zeros(d),
            nmse_sum=zeros(),
            n_bad_inputs=zeros(),
            n_bad_reconstructions=zeros(),
        )

    @classmethod
    @torch.no_grad()
    def of_batch(cls, inputs: Float[Tensor, "n d"], reconstruction: Float[Tensor, "n d"]) -> ReconstructionSums:
        """Compute the sums over one batch; arguments and errors as in ``reconstruction_quality``.

        On a GPU bad rows are only counted, and ``quality`` raises.
        """
        _check_pair(inputs, reconstruction)
        width = inputs.shape[1]
        sums_dev = sums_device(inputs.device)
        sums, n_rows = cls.zeros(width, sums_dev), max(1, _BLOCK_ELEMENTS // width)
        for start in range(0, inputs.shape[0], n_rows):
            x, y = (whole[start : start + n_rows].detach().to(sums_dev).double() for whole in (inputs, reconstruction))
            sums = sums.merge(_sums_of_block(x, y, start))
        return sums

    def merge(self, other: ReconstructionSums) -> ReconstructionSums:
        """Return the sums over the rows of ``self`` and ``other``."""
        n = self.n + other.n
        step = other.mean - self.mean
        share = other.n / n.clamp(min=1.0)
        return ReconstructionSums(
            n=n,
            mean=self.mean + step * share,
            m2=self.m2 + other.m2 + step**2 * self.n * share,
            sse=self.sse + other.sse,
            nmse_sum=self.nmse_sum + other.nmse_sum,
            n_bad_inputs=self.n_bad_inputs + other.n_bad_inputs,
            n_bad_reconstructions=self.n_bad_reconstructions + other.n_bad_reconstructions,
        )

    def quality(self) -> ReconstructionQuality:
        """Compute the four measures; waits for the device.

        Raises:
            InputError: some inputs were zero or not finite, or some reconstructions not finite.
        """
        for argument, n_bad, kind in (
            ("inputs", self.n_bad_inputs, "zero or not finite"),
            ("reconstruction", self.n_bad_reconstructions, "not finite"),
        ):
            if n_bad > 0:
                raise InputError(argument, f"{int(n_bad)} rows that are {kind}", f"rows that are not {kind}")
        varies = self.m2 > _LEAST_VARIATION * (self.m2 + self.n * self.mean**2)
        r2 = torch.where(varies, 1.0 - self.sse / self.m2, 0.0)
        pooled = 1.0 - self.sse.sum() / self.m2.sum()
        return ReconstructionQuality(
            r2=r2.sum() / varies.sum(),  # 0 / 0 = NaN if no dimension varies; nmse and mse likewise without rows
            explained_variance=torch.where(varies.any(), pooled, torch.nan),
            nmse=self.nmse_sum / self.n,
            mse=self.sse.sum() / (self.n * self.sse.shape[0]),
        )


def reconstruction_quality(inputs: Float[Tensor, "n d"], reconstruction: Float[Tensor, "n d"]) -> ReconstructionQuality:
    """Compute R2, explained variance, NMSE and MSE of a reconstruction.

    With ``var_d = sum_i (x_id - mean_d)^2`` and ``err_d = sum_i (x_id - x'_id)^2``: ``r2`` is the mean of
    ``1 - err_d / var_d`` over the dimensions with variance, ``explained_variance = 1 - sum_d err_d / sum_d var_d``,
    ``nmse`` the mean over rows of ``|x - x'|^2 / |x|^2``. Predicting the mean of the inputs gives 0 for the first two.

    One pass, float64 sums. Cost O(n d); memory O(d) beside blocks of some rows.

    Args:
        inputs: the original rows, ``(n, d)``, in any unit; no row is all zero.
        reconstruction: their reconstruction, ``(n, d)``, in the same unit.

    Returns:
        The four measures; NaN without rows, and ``r2`` and ``explained_variance`` also if no dimension varies.

    Raises:
        InputError: shapes, dtypes or devices that do not fit; a row of the inputs that is zero or not finite; a
            reconstruction that is not finite.

    Source:
        arXiv 2602.12403 (R2, uniform average). Ours: the pooled measure, and that constant dimensions are left out.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
        >>> reconstruction_quality(x, x.mean(0).expand(2, 2)).r2
        tensor(0., dtype=torch.float64)
    """
    return ReconstructionSums.of_batch(inputs, reconstruction).quality()


def _sums_of_block(x: Tensor, y: Tensor, first_row: int) -> ReconstructionSums:
    """Compute the sums over float64 inputs ``x`` and reconstructions ``y``; errors count rows from ``first_row``."""
    squared_error = (x - y).square()
    error, norm = squared_error.sum(1), x.square().sum(1)
    bad_inputs = ~(torch.isfinite(norm) & (norm > 0))
    bad_reconstructions = ~torch.isfinite(error) & ~bad_inputs
    if may_check(x.device):
        _refuse_first("inputs", bad_inputs, norm, first_row)
        _refuse_first("reconstruction", bad_reconstructions, error, first_row)
    mean = x.mean(0)
    return ReconstructionSums(
        n=torch.full((), float(x.shape[0]), dtype=torch.float64, device=x.device),
        mean=mean,
        m2=(x - mean).square().sum(0),
        sse=squared_error.sum(0),
        nmse_sum=(error / norm).sum(),
        n_bad_inputs=bad_inputs.sum().double(),
        n_bad_reconstructions=bad_reconstructions.sum().double(),
    )


def _refuse_first(argument: str, bad: Tensor, squares: Tensor, first_row: int) -> None:
    """Raise InputError for the first bad row, if any; ``squares``: sums of squares of the rows."""
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    zero = float(squares[row]) == 0.0
    got = f"{'a row of zeros' if zero else 'a row with NaN or infinity'} (row {first_row + row})"
    expected = "rows of finite numbers, not all zero" if argument == "inputs" else "rows of finite numbers"
    raise InputError(argument, got, expected)


def _check_pair(inputs: Tensor, reconstruction: Tensor) -> None:
    check_matrix("inputs", inputs)
    n, width = inputs.shape
    if width == 0:
        raise InputError("inputs", f"shape {tuple(inputs.shape)}", "a width of at least 1")
    check_matrix("reconstruction", reconstruction, rows=n, width=width)
    check_same_device("reconstruction", reconstruction.device, "inputs", inputs.device)
