"""SGD and the schedule of its learning rate: a linear warm-up, then constant, half a cosine, or steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from monoloss.finetune.model.model import FineTuneModel
from monoloss.runs.schedule import factor_after_warmup


@dataclass(frozen=True)
class SgdRecipe:
    """Options of SGD over a run."""

    factor: Callable[[int], float]
    """Maps the step, from 0, to the factor of `lr` in that step; from :func:`learning_rate_factor`."""
    lr: float = 0.01
    """Highest learning rate."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """Of weight matrices and kernels; norms and biases have none."""
    clip_norm: float | None = None
    """Largest norm of the gradient; None does not clip."""


def make_sgd(model: FineTuneModel, recipe: SgdRecipe) -> torch.optim.SGD:
    """Build SGD over the trainable parameters.

    No weight decay on norms, biases and the backbone's `no_weight_decay()` names (positions, class token).
    """
    from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]

    backbone: Any = model.backbone
    names = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    without_decay = [f"backbone.{name}" for name in names]
    groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=without_decay)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)


def learning_rate_factor(
    steps_per_epoch: int,
    epochs: int,
    *,
    schedule: Literal["constant", "cosine", "step"] = "cosine",
    step_epochs: int = 30,
    step_factor: float = 0.1,
    warmup_epochs: int = 0,
    warmup_from: float = 0.01,
) -> Callable[[int], float]:
    """Return the schedule of a run: a function from the step, from 0, to the factor of the learning rate.

    In the warm-up the factor rises along a line from ``warmup_from`` and reaches 1 at the first step after it. Then
    "constant" stays at 1; "cosine" falls along half a cosine, to 0 one step after the last; "step" is multiplied by
    ``step_factor`` every ``step_epochs``, counted from the start of the run, the warm-up included.
    """
    n_warmup, n_steps = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < n_warmup:
            return warmup_from + (1.0 - warmup_from) * step / n_warmup
        if schedule == "step":
            return float(step_factor ** (step // (steps_per_epoch * step_epochs)))
        return factor_after_warmup(schedule, step, n_warmup, n_steps)

    return factor
