"""The learning rate over a run: warm-up, then constant or falling."""

from __future__ import annotations

from collections.abc import Callable

from monoloss.errors import InputError
from monoloss.runs.schedule import Course, factor_after_warmup
from monoloss.training.config import TrainingConfig


def learning_rate_factor(course: Course, warmup_steps: int, n_steps: int) -> Callable[[int], float]:
    """Return a function that gives the factor of the learning rate at step 0, 1, ..., ``n_steps - 1`` of a run.

    The factor rises as ``(step + 1) / warmup_steps`` to 1, then follows ``factor_after_warmup``.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return factor_after_warmup(course, step, warmup_steps, n_steps)

    return factor


def check_warmup(config: TrainingConfig, n_steps: int) -> None:
    """Refuse a warm-up that does not end before a run of ``n_steps``."""
    for name, training in config.saes.items():
        if training.warmup_steps >= n_steps:
            expected = f"fewer than the run's {n_steps} steps"
            raise InputError(f"saes.{name}.warmup_steps", training.warmup_steps, expected)
