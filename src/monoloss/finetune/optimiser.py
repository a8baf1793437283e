"""SGD and its learning rate over a run: warm-up along a line, then constant, half a cosine, or steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from monoloss.finetune.model.model import FineTuneModel
from monoloss.runs.schedule import factor_after_warmup


@dataclass(frozen=True)
class SgdRecipe:
    """Options of SGD over a run.

    Args:
        factor: of `lr` at step 0, 1, ...; from :func:`learning_rate_factor`.
        lr: learning rate at its highest.
        momentum: of SGD.
        weight_decay: of weight matrices and kernels; norms and biases have none.
        clip_norm: largest norm of the gradient; None does not clip.
    """

    factor: Callable[[int], float]
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float | None = None


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
    """Factor of the learning rate at step 0, 1, ... of a run.

    In the warm-up it rises along a line from ``warmup_from``, to reach 1 at the first step after it. "cosine" then
    falls to 0, which it would be at the run's end. "step" is ``step_factor`` to the power of the multiples of
    ``step_epochs`` since the run's beginning.
    """
    n_warmup, n_steps = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < n_warmup:
            return warmup_from + (1.0 - warmup_from) * step / n_warmup
        if schedule == "step":
            return float(step_factor ** (step // (steps_per_epoch * step_epochs)))
        return factor_after_warmup(schedule, step, n_warmup, n_steps)

    return factor
