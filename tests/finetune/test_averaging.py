"""The average of the weights against a loop by hand."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from monoloss.finetune.averaging import AveragedWeights, adjusted_decay
from monoloss.runs.trainer import quiet_lightning
from support.finetune_modules import QUIET, Batches


class Falling(LightningModule):
    """A weight that each step of SGD lowers by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.SGD:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def averaged(n_steps: int, *options: int) -> float:
    module = Falling()
    with quiet_lightning():
        trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[AveragedWeights(0.75, *options)], **QUIET)
        trainer.fit(module, Batches([{}] * n_steps))
    return module.weight.item()


@pytest.mark.parametrize(("every", "n_warmup"), [(1, 0), (2, 0), (1, 3), (2, 3)])
def test_the_model_ends_with_the_average(every, n_warmup):
    """All numbers here are exact in float32."""
    average = None
    for step in range(1, 8):
        if (step - 1) % every == 0:
            is_copy = average is None or step <= n_warmup
            average = -step if is_copy else 0.75 * average + 0.25 * -step
    assert averaged(7, every, n_warmup) == average
    assert average > -7  # it lags behind the weights


def test_in_the_warm_up_the_average_is_the_weights():
    assert averaged(3, 1, 3) == -3.0


def test_adjusted_decay():
    assert adjusted_decay(0.9) == pytest.approx(0.9)
    assert adjusted_decay(0.9, images_per_update=24, epochs=12) == pytest.approx(0.8)
    assert adjusted_decay(0.9, images_per_update=48, epochs=2) == 0.0  # 1 - decay is at most 1
