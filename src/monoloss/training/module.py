"""The SAEs of a run with their losses as one Lightning module, in which each is trained as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from monoloss.errors import InputError
from monoloss.functional.moments import batch_moments, unit_rows
from monoloss.functional.reconstruction import reconstruction_quality
from monoloss.functional.score import score_of
from monoloss.functional.sparsity import activation_counts, l0
from monoloss.losses import MonoLoss
from monoloss.sae.model import SaeOutput, SparseAutoencoder
from monoloss.sae.objectives import Objective, objective
from monoloss.training.config import SaeTraining
from monoloss.training.schedule import learning_rate_factor


class TrainedSae(NamedTuple):
    """One SAE of a run: how it is trained, the model, and its MonoLoss with its memory."""

    settings: SaeTraining
    sae: SparseAutoencoder
    mono_loss: MonoLoss


class SaeTrainingModule(LightningModule):
    """The SAEs of a run with their losses: one optimiser, a parameter group and a clipping norm each.

    The loss is the sum over the SAEs, so no SAE's gradient sees another; adding one leaves the rest bit-equal.

    Args:
        saes: the SAEs by name.
        n_steps: optimiser steps of the whole run. (To compute it, Lightning would begin to read the batches before a
            checkpoint has restored their position.)
        log_every_steps: optimiser steps between two logged lines.
    """

    def __init__(self, saes: Mapping[str, TrainedSae], n_steps: int, log_every_steps: int) -> None:
        super().__init__()
        self.n_steps, self.log_every_steps = n_steps, log_every_steps
        self.settings = {name: trained.settings for name, trained in saes.items()}
        self.saes = nn.ModuleList(trained.sae for trained in saes.values())  # no ModuleDict: names may hold dots
        self.mono_losses = nn.ModuleList(trained.mono_loss for trained in saes.values())

    def parts(self) -> Iterator[tuple[str, SaeTraining, SparseAutoencoder, MonoLoss]]:
        """Iterate over name, settings, model and MonoLoss of each SAE."""
        for (name, settings), sae, mono in zip(self.settings.items(), self.saes, self.mono_losses, strict=True):
            assert isinstance(sae, SparseAutoencoder)  # noqa: S101 - for the type checker
            assert isinstance(mono, MonoLoss)  # noqa: S101
            yield name, settings, sae, mono

    def by_name(self) -> dict[str, SparseAutoencoder]:
        """Return the SAEs by name."""
        return {name: sae for name, _, sae, _ in self.parts()}

    def configure_optimizers(self) -> Any:
        """Make one Adam and one schedule, with a parameter group for each SAE and one for its learned thresholds."""
        groups, factors = [], []
        for name, settings, sae, _ in self.parts():
            thresholds = list(sae.activation.parameters())
            weights = [weight for weight in sae.parameters() if all(weight is not other for other in thresholds)]
            rates = {
                name: (weights, settings.lr),
                f"{name}.thresholds": (thresholds, settings.threshold_lr or settings.lr),
            }
            for group, (parameters, lr) in rates.items():
                if parameters:
                    groups.append({"params": parameters, "lr": lr, "eps": settings.adam_eps, "name": group})
                    factors.append(learning_rate_factor(settings.lr_schedule, settings.warmup_steps, self.n_steps))
        adam = torch.optim.Adam(groups, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, factors)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Give Adam's loaded moments the strides of their parameters: the fused step pairs them by memory address."""
        (adam,) = self.trainer.optimizers
        for parameter, state in adam.state.items():
            for name, moment in state.items():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(moment)

    def training_step(self, batch: Float[Tensor, "n d"], batch_idx: int) -> Tensor:
        """Return the sum of the SAEs' losses on one batch; log measures where due; refuse a loss not finite then."""
        embeddings = unit_rows(batch)
        total = batch.new_zeros(())
        ends_a_step = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        logged = ends_a_step and (self.global_step + 1) % self.log_every_steps == 0
        for name, settings, sae, mono in self.parts():
            output = sae(batch)
            terms = objective(sae, output)
            loss = terms.total
            if settings.mono_weight > 0:
                compared = embeddings if settings.mono_embeddings == "inputs" else output.scaled
                loss = loss + settings.mono_weight * mono(compared, output.codes)
            total = total + loss
            sae.count_activity_(output.codes)
            if logged:
                if not torch.isfinite(loss.detach()):
                    raise _diverged(name, f"a loss of {float(loss.detach())} in step {self.global_step + 1}")
                measures = {"loss": loss.detach()} | _measures(embeddings, sae, output, terms)
                sae.read_idle()  # where the process waits for a GPU anyway
                self.log_dict({f"{name}/{key}": value for key, value in measures.items()})
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Remove the decoders' gradients along their rows, then clip the norm of each SAE's gradient."""
        for _, settings, sae, _ in self.parts():
            sae.project_decoder_gradient_()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(sae.parameters(), settings.clip_norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Do the step, bring decoder rows back to length 1, and redraw dead latents every so many steps."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        n_steps = self.global_step + 1  # Lightning counts this step after this hook
        for _, settings, sae, _ in self.parts():
            sae.constrain_()
            every = settings.redraw_dead_every_steps
            if every is not None and n_steps % every == 0 and sae.may_have_dead and sae.dead.any():
                _redraw_dead(sae, optimizer, seed=settings.seed + n_steps)

    def check_finite(self) -> None:
        """Raise `InputError`, with the name of the SAE, where weights are not finite: its training has diverged."""
        for name, sae in self.by_name().items():
            if not all(torch.isfinite(parameter).all() for parameter in sae.parameters()):
                raise _diverged(name, f"weights that are no finite numbers after step {self.global_step}")


def _diverged(name: str, got: str) -> InputError:
    return InputError(f"saes.{name}", got, "a smaller lr or mono_weight: its training has diverged")


def _measures(embeddings: Tensor, sae: SparseAutoencoder, output: SaeOutput, terms: Objective) -> dict[str, Tensor]:
    """Return the measures of one batch that are logged for a SAE besides its loss: detached scalars."""
    with torch.no_grad():
        codes = output.codes.detach()
        quality = reconstruction_quality(output.target, output.reconstruction)
        return {
            "reconstruction": terms.reconstruction.detach(),
            "sparsity": terms.sparsity.detach(),
            "aux": terms.aux.detach(),
            "score": score_of(batch_moments(embeddings, codes)).nanmean().float(),
            "explained_variance": quality.explained_variance.float(),
            "l0": l0(activation_counts(codes), len(codes)).float(),
            "dead": sae.dead.sum().float(),
        }


def _redraw_dead(sae: SparseAutoencoder, optimizer: Any, seed: int) -> None:
    """Redraw the weights of dead latents, and set their moments in Adam to 0."""
    dead = sae.dead
    sae.redraw_(dead, seed)
    latent_dims = [(sae.encoder_weight, 1), (sae.encoder_bias, 0), (sae.decoder_weight, 0)]
    latent_dims += [(threshold, 0) for threshold in sae.activation.parameters()]
    for parameter, dim in latent_dims:
        state = {} if parameter is None else optimizer.state[parameter]
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment].index_fill_(dim, dead.nonzero().squeeze(1), 0.0)
