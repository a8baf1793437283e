"""SGD over the trainable parameters, and the schedule of its learning rate."""

from __future__ import annotations

import pytest
import torch

from monoloss.finetune.config import OptimisationConfig
from monoloss.finetune.optimiser import SgdRecipe, learning_rate_factor, make_sgd
from support.finetune_models import small_model
from support.finetune_modules import batch, fit, module_for, settings


def test_norms_biases_and_positions_do_not_decay():
    model = small_model("test_vit")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free, decayed = make_sgd(model, SgdRecipe(lambda _: 1.0, weight_decay=0.1)).param_groups
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    kept = {names[id(parameter)] for parameter in free["params"]}
    assert {"backbone.pos_embed", "backbone.cls_token", "backbone.norm.weight", "new_layer.bias"} <= kept
    matrices = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"new_layer.weight", "classifier.weight", "backbone.patch_embed.proj.weight"} <= matrices
    assert kept | matrices == set(names.values())


def test_the_gradient_is_clipped_as_a_whole():
    optimisation = OptimisationConfig(lr=1.0, clip_norm=0.01, schedule="constant", weight_decay=0.0)
    module = module_for(settings(optimisation=optimisation))
    start = {name: value.clone() for name, value in module.model.named_parameters()}
    fit(module, [batch()])
    change = torch.cat([(value - start[name]).flatten() for name, value in module.model.named_parameters()])
    assert float(change.norm().detach()) == pytest.approx(0.01, rel=1e-3)


def test_learning_rates_of_a_run():
    optimisation = OptimisationConfig(lr=0.1, schedule="cosine", warmup_epochs=1, warmup_from=0.01)
    steps = fit(module_for(settings(optimisation=optimisation, epochs=3), steps_per_epoch=2), [batch(), batch(seed=1)])
    assert [step["lr"] for step in steps] == pytest.approx(
        [0.001, 0.0505, 0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2], rel=1e-5
    )


def test_a_step_schedule_counts_from_the_beginning():
    factor = learning_rate_factor(10, 90, schedule="step", step_epochs=30, warmup_epochs=5)
    epochs = [factor(10 * epoch) for epoch in (0, 5, 29, 30, 59, 60, 89)]
    assert epochs == pytest.approx([0.01, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_factor(10, 3, schedule="constant")(29) == 1.0
