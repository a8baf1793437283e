"""A training that diverges ends in one sentence that names the learning rate, wherever it shows first."""

from __future__ import annotations

import pytest
import torch

from monoloss.errors import InputError
from monoloss.finetune.config import OptimisationConfig
from support.finetune_modules import batch, fit, module_for, settings, validate


@pytest.mark.door
def test_divergence_is_one_sentence():
    module = module_for(settings(optimisation=OptimisationConfig(lr=1e30, schedule="constant"), epochs=3))
    with pytest.raises(
        InputError, match=r"optimisation.lr: got a loss of (nan|inf) in step [23]; expected a smaller lr"
    ):
        fit(module, [batch()])
    module.model.classifier.bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"optimisation.lr: got weights that are no finite numbers after step"):
        module.check_finite()


@pytest.mark.door
def test_divergence_that_mono_loss_meets_first_is_the_same_sentence():
    optimisation = OptimisationConfig(lr=1e30, schedule="constant")
    module = module_for(settings(optimisation=optimisation, mono_weight=0.1, epochs=3, log_every_steps=3))
    text = (
        r"optimisation.lr: got activations that are no finite numbers in step [23]; expected .* training has diverged"
    )
    with pytest.raises(InputError, match=text):
        fit(module, [batch()])
    data = batch()
    data["embeddings"][0] = 0.0
    with pytest.raises(InputError, match="embeddings: got a row of zeros"):  # a fault of the data stays one
        fit(module_for(settings(mono_weight=0.1)), [data])


@pytest.mark.door
@pytest.mark.parametrize(
    ("part", "got"),
    [("new_layer", "activations that are no finite numbers"), ("classifier", "a loss of nan")],
)
def test_divergence_that_the_validation_meets_first_is_the_same_sentence(part, got):
    module = module_for(settings(mono_weight=0.1))
    getattr(module.model, part).bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match=f"optimisation.lr: got {got} in the validation; expected a smaller lr"):
        validate(module, [batch()])


@pytest.mark.door
def test_statistics_of_a_norm_that_have_diverged_are_not_saved():
    module = module_for(settings())
    norm = next(layer for layer in module.model.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    norm.running_var.fill_(torch.inf)
    with pytest.raises(InputError, match=r"optimisation.lr: got weights that are no finite numbers after step"):
        module.check_finite()
