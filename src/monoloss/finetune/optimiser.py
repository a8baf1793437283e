"""SGD and its learning rate over a run: warm-up along a line, then constant, half a cosine, or steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from monoloss.finetune.config import OptimisationConfig
from monoloss.finetune.model.model import FineTuneModel
from monoloss.runs.schedule import factor_after_warmup


def make_sgd(model: FineTuneModel, config: OptimisationConfig) -> torch.optim.SGD:
    """SGD on what is not frozen; norms, biases and what the backbone names (positions, class token) do not decay.

    Example:
        >>> from monoloss.finetune.model.model import build_model
        >>> model = build_model("resnet10t", ["cat", "dog"], pretrained=False)
        >>> [group["weight_decay"] for group in make_sgd(model, OptimisationConfig(weight_decay=0.1)).param_groups]
        [0.0, 0.1]
    """
    from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]

    backbone: Any = model.backbone
    kept = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    groups = param_groups_weight_decay(
        model, config.weight_decay, no_weight_decay_list=[f"backbone.{name}" for name in kept]
    )
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def learning_rate_factor(config: OptimisationConfig, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """What ``config.lr`` is multiplied by at step 0, 1, ... of a run.

    In the warm-up it rises along a line from ``warmup_from``, to reach 1 at the first step after it. "cosine" then
    falls to 0, which it would be at the run's end. The epochs of "step" are counted from the run's beginning.

    Example:
        >>> factor = learning_rate_factor(OptimisationConfig(schedule="step", step_epochs=2), 10, 6)
        >>> [round(factor(step), 4) for step in (0, 19, 20, 59)]
        [1.0, 1.0, 0.1, 0.01]
    """
    n_warmup, n_steps = config.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < n_warmup:
            return config.warmup_from + (1.0 - config.warmup_from) * step / n_warmup
        if config.schedule == "step":
            return float(config.step_factor ** (step // (steps_per_epoch * config.step_epochs)))
        return factor_after_warmup(config.schedule, step, n_warmup, n_steps)

    return factor
