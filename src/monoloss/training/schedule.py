"""Learning rates over a run: warm-up, then constant or falling."""

from __future__ import annotations

from collections.abc import Callable

from monoloss.errors import InputError
from monoloss.runs.schedule import Course, factor_after_warmup
from monoloss.training.config import TrainingConfig


def learning_rate_factor(course: Course, warmup_steps: int, n_steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at step 0, 1, ..., ``n_steps - 1`` of a run.

    It rises as ``(step + 1) / warmup_steps``, reaches 1, and from there falls to 0, which it would be at ``n_steps``.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return factor_after_warmup(course, step, warmup_steps, n_steps)

    return factor


def check_warmup(config: TrainingConfig, n_steps: int) -> None:
    """Refuse a warm-up that is not over before the run is."""
    for name, training in config.saes.items():
        if training.warmup_steps >= n_steps:
            expected = f"fewer than the run's {n_steps} steps"
            raise InputError(f"saes.{name}.warmup_steps", training.warmup_steps, expected)
