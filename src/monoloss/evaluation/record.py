"""What an evaluation holds, apart from what can be done with it."""

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
    """The attributes of :class:`monoloss.evaluation.result.Evaluation`, which explains them.

    Two classes, because charts take this one and ``Evaluation.plot()`` imports the charts: one would be a circle.
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
