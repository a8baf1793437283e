"""The scaling of a SAE's input rows: unit length, centring, standardising."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monoloss.errors import InputError
from monoloss.functional.moments import unit_rows
from monoloss.sae.config import InputScaling
from monoloss.waiting import may_check

_STD_FLOOR = 1e-5


class ScaledInputs(NamedTuple):
    """Input rows before and after centring and standardising: ``scaled = (target - shift) / scale``.

    Attributes:
        scaled: input of the encoder, ``(n, d_in)``.
        target: the rows that the reconstruction is compared with, at length 1 if ``unit_norm``, ``(n, d_in)``.
        shift: subtracted means: ``(n, 1)`` of each row, ``(d_in,)`` of the training rows, their sum, or 0.
        scale: divisor of each row, ``(n, 1)``, or 1.
    """

    scaled: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_in"]
    shift: Tensor
    scale: Tensor


def scale_inputs(
    inputs: Float[Tensor, "n d_in"], scaling: InputScaling, mean: Float[Tensor, " d_in"] | None
) -> ScaledInputs:
    """Scale input rows by each step that is on; ``mean`` is taken off where it is given.

    Raises:
        InputError: on the CPU, a row that is not finite, or that cannot be scaled to length 1.
    """
    target = _unit_inputs(inputs) if scaling.unit_norm else _finite_inputs(inputs)
    scaled, shift, spread = target, target.new_zeros(()), target.new_ones(())
    if mean is not None:
        shift = mean.to(target.dtype)
        scaled = scaled - shift
    if scaling.standardise:
        row_mean = scaled.mean(1, keepdim=True)
        centred = scaled - row_mean
        std = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(inputs.shape[1] - 1)
        spread = std + _STD_FLOOR
        scaled, shift = centred / spread, shift + row_mean
    return ScaledInputs(scaled, target, shift, spread)


def _unit_inputs(inputs: Tensor) -> Tensor:
    """Scale rows to length 1; an error names the argument ``inputs``."""
    try:
        return unit_rows(inputs)
    except InputError as error:  # names the argument "embeddings"
        raise InputError("inputs", error.got, error.expected) from None


def _finite_inputs(inputs: Tensor) -> Tensor:
    """Return the rows unchanged; on the CPU raise an error if one has NaN or infinity."""
    if may_check(inputs.device) and not torch.isfinite(inputs.sum()):
        bad = (~torch.isfinite(inputs)).any(1).nonzero()
        if len(bad):
            raise InputError("inputs", f"NaN or infinity (row {int(bad[0])})", "finite numbers")
    return inputs
