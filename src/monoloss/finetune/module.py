"""The fine-tuned model with its losses, measures and optimiser, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from monoloss.checks import check_type
from monoloss.errors import InputError
from monoloss.finetune.measures import top_counts
from monoloss.finetune.model.model import FineTuneModel
from monoloss.finetune.optimiser import SgdRecipe, make_sgd
from monoloss.losses import MonoLoss
from monoloss.metrics import ClassPurity, MonoScore
from monoloss.precision import sums_device


class FineTuneModule(LightningModule):
    """Trains a model by SGD on cross-entropy plus ``mono_weight`` times MonoLoss of its new layer's activations.

    A batch is a mapping with ``images`` ``(n, 3, h, w)``; ``targets``, class numbers ``(n,)`` or, in mixed batches,
    shares ``(n, n_classes)`` with rows that sum to 1; and ``embeddings`` ``(n, d)`` for MonoLoss or the score.

    - MonoLoss is that of the batch of all processes; with accumulation, the mean over the batches of a step.
    - The losses, and the activations given to MonoLoss, are float32, whatever the precision of the model's products.
    - MonoLoss is the mean over the latents that are defined in the batch. (The authors take it over all channels, with
      0 for undefined ones.)
    - Validation counts every row that it is given: each must be given once, over all processes together.

    Logged in training, of the last batch of a step: ``loss``, ``task_loss``, ``mono_loss``, ``top1`` (unless mixed),
    ``lr``. In validation, of all rows: ``val_loss`` (the plain cross-entropy), ``val_top1``, ``val_top5``, purity and
    number of active latents ``val_purity_binary``, ``val_purity_weighted``, ``val_alive``; with embeddings
    ``val_score``, over defined latents, and ``val_score_zero_filled``.

    Args:
        model: from :func:`monoloss.finetune.model.model.build_model`.
        sgd: options of SGD, with the factor of its learning rate.
        label_smoothing: share of the target that is spread over all classes.
        mono_weight: factor of ``mono_loss``.
        mono_loss: from :func:`sized_mono_loss`; None trains without MonoLoss.
        score_width: width d of the embeddings in validation batches; None where they have no embeddings.
        log_every_steps: optimiser steps between two logged ones.
        accumulate_batches: batches of an optimiser step.

    Attributes:
        measures: results of the last validation, in float64, under the logged names without ``val_``.
    """

    def __init__(
        self,
        model: FineTuneModel,
        sgd: SgdRecipe,
        *,
        label_smoothing: float = 0.0,
        mono_weight: float = 0.0,
        mono_loss: MonoLoss | None = None,
        score_width: int | None = None,
        log_every_steps: int = 1,
        accumulate_batches: int = 1,
    ) -> None:
        super().__init__()
        check_type("model", model, FineTuneModel, "a FineTuneModel; build_model makes one")
        self.model, self.sgd, self.label_smoothing = model, sgd, label_smoothing
        self.log_every_steps, self.accumulate_batches = log_every_steps, accumulate_batches
        self.mono_weight, self.mono_loss = mono_weight, mono_loss
        self.score = None if score_width is None else MonoScore(score_width, model.width)
        self.purity = ClassPurity(model.width, model.n_classes)
        self._sums = torch.zeros(4, dtype=torch.float64)  # of this process: loss, and `top_counts`
        self.measures: dict[str, float] = {}

    def configure_optimizers(self) -> Any:
        """Build SGD and the schedule of its learning rate, which advances every step."""
        sgd = make_sgd(self.model, self.sgd)
        schedule = torch.optim.lr_scheduler.LambdaLR(sgd, self.sgd.factor)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch, and log the measures of a step that is to be logged."""
        output, targets = self.model.forward_both(batch["images"]), batch["targets"]
        task = F.cross_entropy(output.logits.float(), targets, label_smoothing=self.label_smoothing)
        measures = {"task_loss": task.detach()}
        loss = task
        if self.mono_loss is not None:
            with _divergence(f"in step {self.global_step + 1}"):
                mono = self.mono_loss(batch["embeddings"], output.activations.float())
            loss = task + self.mono_weight * mono
            measures["mono_loss"] = mono.detach()
        if self._logs_now(batch_idx):
            if not torch.isfinite(loss.detach()):
                raise _diverged(f"a loss of {float(loss.detach())} in step {self.global_step + 1}")
            measures |= {"loss": loss.detach(), "lr": torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])}
            if targets.ndim == 1:
                measures["top1"] = (output.logits.detach().argmax(1) == targets).float().mean()
            self.log_dict(measures)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient of all parameters together, before the step."""
        if self.sgd.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.sgd.clip_norm)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of the validation."""
        self.measures = {}
        self._sums = torch.zeros(4, dtype=torch.float64, device=sums_device(self.device))
        self.purity.reset()
        if self.score is not None:
            self.score.reset()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the sums of the validation."""
        output, targets = self.model.forward_both(batch["images"]), batch["targets"]
        logits = output.logits.float()
        loss = F.cross_entropy(logits, targets, reduction="sum").to(self._sums.device).double()
        self._sums += torch.cat([loss[None], top_counts(logits, targets)])
        activations = output.activations.float()
        with _divergence("in the validation"):
            self.purity.update(activations, targets)
            if self.score is not None:
                self.score.update(batch["embeddings"], activations)

    def on_validation_epoch_end(self) -> None:
        """Log the measures over all rows of all processes."""
        loss, n, top1, top5 = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        if not n:
            raise InputError("validation", "no images", "at least one")
        if not math.isfinite(loss):
            raise _diverged(f"a loss of {loss} in the validation")
        with _divergence("in the validation"):  # on a GPU, activations that are not finite show only now
            purity = self.purity.summary()
        measures = {
            "loss": loss / n,
            "top1": top1 / n,
            "top5": top5 / n,
            "purity_binary": purity.mean_binary,
            "purity_weighted": purity.mean_weighted,
            "alive": purity.n_defined,
        }
        if self.score is not None:
            score = self.score.summary()
            measures |= {"score": score.mean, "score_zero_filled": score.mean_zero_filled}
        self.measures = {name: float(value) for name, value in measures.items()}
        tensors = {f"val_{name}": torch.tensor(value, device=self.device) for name, value in self.measures.items()}
        self.log_dict(tensors, sync_dist=True)  # equal in all processes; Lightning asks for the reduction

    def check_finite(self) -> None:
        """Check, before a checkpoint is written, that all weights and statistics of the model are finite.

        Raises:
            InputError: the training has diverged.
        """
        if not all(torch.isfinite(value).all() for value in self.model.state_dict().values()):
            raise _diverged(f"weights that are no finite numbers after step {self.global_step}")

    def _logs_now(self, batch_idx: int) -> bool:
        """Whether this batch ends an optimiser step that is to be logged."""
        ends_a_step = (batch_idx + 1) % self.accumulate_batches == 0
        return ends_a_step and (self.global_step + 1) % self.log_every_steps == 0


def sized_mono_loss(m: int, d: int, *, memory: float = 0.0, center: Float[Tensor, " d"] | None = None) -> MonoLoss:
    """Build MonoLoss for `m` latents and embeddings of width `d`.

    Its memory has its final shape from the start, because an average of the weights copies the buffers' shapes.
    """
    loss = MonoLoss(center=None if center is None else center.float(), memory=memory)
    if memory > 0:
        loss.memory_u, loss.memory_v = (torch.zeros(m, dtype=torch.float64) for _ in range(2))
        loss.memory_w = torch.zeros(m, d)
    return loss


@contextmanager
def _divergence(where: str) -> Iterator[None]:
    """Turn errors about activations into errors of diverged training, the only cause left once shapes are right."""
    try:
        yield
    except InputError as error:
        if error.argument != "activations":
            raise
        raise _diverged(f"activations that are no finite numbers {where}") from error


def _diverged(got: str) -> InputError:
    """Build the error of a training that has diverged, as `got` shows."""
    return InputError("optimisation.lr", got, "a smaller lr or mono_weight: the training has diverged")
