"""Learning rates over a run: warm-up, then constant or falling."""

from __future__ import annotations

import math
from collections.abc import Callable

from monoloss.errors import InputError
from monoloss.training.config import SaeTraining, TrainingConfig


def learning_rate_factor(training: SaeTraining, n_steps: int) -> Callable[[int], float]:
    """What ``training.lr`` is multiplied by at step 0, 1, ..., ``n_steps - 1`` of a run.

    It rises as ``(step + 1) / warmup_steps``, reaches 1, and from there falls to 0, which it would be at ``n_steps``.
    """
    warmup_steps, schedule = training.warmup_steps, training.lr_schedule

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant" or n_steps <= warmup_steps:
            return 1.0
        done = min((step - warmup_steps) / (n_steps - warmup_steps), 1.0)
        return 1.0 - done if schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0

    return factor


def check_warmup(config: TrainingConfig, n_steps: int) -> None:
    """Refuse a warm-up that is not over before the run is."""
    for name, training in config.saes.items():
        if training.warmup_steps >= n_steps:
            needed = f"fewer than the run's {n_steps} steps"
            raise InputError(f"saes.{name}.warmup_steps", training.warmup_steps, needed)
