"""The learning rate after its warm-up."""

from __future__ import annotations

import math
from typing import Literal

Course = Literal["constant", "linear", "cosine"]


def factor_after_warmup(course: Course, step: int, n_warmup: int, n_steps: int) -> float:
    """Return the factor of the learning rate at ``step >= n_warmup``: 1 at ``n_warmup``, then as ``course`` says.

    "linear" and "cosine" (half a cosine) fall to 0, which they reach at ``n_steps``. After a warm-up that lasts the
    whole run the factor is 1.
    """
    if course == "constant" or n_steps <= n_warmup:
        return 1.0
    progress = min((step - n_warmup) / (n_steps - n_warmup), 1.0)
    return 1.0 - progress if course == "linear" else (1.0 + math.cos(math.pi * progress)) / 2.0
