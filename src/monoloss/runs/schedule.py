"""The course of a learning rate after its warm-up."""

from __future__ import annotations

import math
from typing import Literal

Course = Literal["constant", "linear", "cosine"]


def factor_after_warmup(course: Course, step: int, n_warmup: int, n_steps: int) -> float:
    """Factor of the learning rate at ``step >= n_warmup``: 1 at ``n_warmup``, then as ``course`` says.

    "linear" and "cosine" (half a cosine) fall to 0, which they would reach at ``n_steps``. A warm-up that lasts the
    whole run is followed by 1.

    Example:
        >>> [factor_after_warmup("linear", step, 2, 6) for step in (2, 3, 5, 6)]
        [1.0, 0.75, 0.25, 0.0]
    """
    if course == "constant" or n_steps <= n_warmup:
        return 1.0
    done = min((step - n_warmup) / (n_steps - n_warmup), 1.0)
    return 1.0 - done if course == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
