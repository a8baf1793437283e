"""The data of an evaluation without its methods, so that the charts can import it without a circle of imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples


@dataclass(frozen=True)
class EvaluationRecord:
    """The attributes of an evaluation, documented in its subclass :class:`monoloss.evaluation.result.Evaluation`.

    The charts take this class, because ``Evaluation.plot()`` imports the charts.
    """

    name: str
    metadata: Mapping[str, Any]
    summary: Mapping[str, float]
    latents: Mapping[str, Tensor]
    examples: Examples
    middle_examples: Examples | None = None
    bottom_examples: Examples | None = None
    histogram: Int[Tensor, "m bins"] | None = None
    top_classes: TopClasses | None = None
    decoder_directions: Float[Tensor, "m d_in"] | None = None
