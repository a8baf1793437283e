"""Settings of SAEs to train, and the same training as a loop by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.losses import MonoLoss
from monoloss.sae.config import AuxLoss, InputScaling
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.sparse import SparseActivations
from monoloss.training.batches import ShuffledBatches
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.run import train_saes
from support.saes import dense, some_config, structured_store

AUX = AuxLoss(k=8, dead_after_samples=150)


SETTINGS = {
    "topk": SaeTraining(
        some_config("topk", 48, 3, aux=AUX), mono_weight=0.1, lr=1e-3, clip_norm=None, redraw_dead_every_steps=7
    ),
    "tied": SaeTraining(some_config("topk_tied", 40, 3, aux=AUX), mono_weight=0.0, lr=2e-3, clip_norm=0.05, seed=1),
    "memory.centred+0.9": SaeTraining(
        some_config("batch_topk", 48, 3, aux=AUX, inputs=InputScaling(center=True)),
        mono_weight=1e-2,
        mono_memory=0.9,
        mono_center=True,
        lr=1e-3,
        clip_norm=0.005,
        seed=2,
    ),
    "jump_relu": SaeTraining(
        some_config("jump_relu", 48, l0_weight=0.01, target_l0=2.0, initial_threshold=1.7, dead_after_samples=100),
        mono_weight=1e-2,
        mono_memory=0.9,
        lr=1e-3,
        threshold_lr=1e-2,
        clip_norm=0.005,
        redraw_dead_every_steps=7,
    ),
    "vanilla": SaeTraining(
        some_config("vanilla", 40, l1_weight=0.1, dead_after_samples=150), mono_weight=1e-2, lr=8e-3, clip_norm=0.005
    ),
}


LOGGED = {"loss", "reconstruction", "sparsity", "aux", "score", "explained_variance", "l0", "dead"}


N_ROWS, BATCH, EPOCHS, LOG_EVERY = 330, 50, 3, 4  # 6 steps an epoch, 18 in all


def a_run(saes: dict[str, SaeTraining], **options: Any) -> TrainingConfig:
    sizes: dict[str, Any] = {"batch_size": BATCH, "epochs": EPOCHS, "log_every_steps": LOG_EVERY}
    return TrainingConfig(saes, **(sizes | options))


def train(store: FeatureStore, folder: Path, names: list[str], **options: Any) -> dict[str, SparseAutoencoder]:
    saes = {name: SETTINGS[name] for name in names}
    return train_saes(store, a_run(saes, **options), folder, progress=False)


class Step(NamedTuple):
    """What one step of the loop by hand saw."""

    batch: Tensor
    codes: Tensor
    are_stored: bool
    target: Tensor
    reconstruction: Tensor
    loss: float
    n_dead: int
    grad_norm: float


def adam_of(sae: SparseAutoencoder, settings: SaeTraining) -> torch.optim.Adam:
    """Adam with a learning rate of its own for the thresholds."""
    thresholds = [sae.activation.threshold] if settings.sae.variant == "jump_relu" else []
    rest = [parameter for name, parameter in sae.named_parameters() if name != "activation.threshold"]
    groups = [{"params": rest}, {"params": thresholds, "lr": settings.threshold_lr or settings.lr}]
    return torch.optim.Adam(groups, lr=settings.lr, eps=settings.adam_eps, fused=True)


def dead_after(settings: SaeTraining) -> int:
    return getattr(settings.sae, "aux", settings.sae).dead_after_samples


def redraw(sae: SparseAutoencoder, adam: torch.optim.Adam, settings: SaeTraining, n_steps: int) -> None:
    """Dead latents as at the start, with nothing in Adam."""
    dead = sae.samples_since_active >= dead_after(settings)
    sae.redraw_(dead, settings.seed + n_steps)
    by_latent = [(sae.encoder_weight, 1), (sae.encoder_bias, 0), (sae.decoder_weight, 0)]
    if settings.sae.variant == "jump_relu":
        by_latent.append((sae.activation.threshold, 0))
    for parameter, along in by_latent:
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[parameter][moment].movedim(along, 0)[dead] = 0.0


def by_hand(store: FeatureStore, settings: SaeTraining) -> tuple[SparseAutoencoder, list[Step]]:
    """The same training, plainly."""
    mean = store.mean.float()
    sae = SparseAutoencoder(
        store.width, settings.sae, input_mean=mean if settings.sae.inputs.center else None, seed=settings.seed
    )
    mono = MonoLoss(center=mean if settings.mono_center else None, memory=settings.mono_memory)
    adam = adam_of(sae, settings)
    batches, steps = ShuffledBatches(store, BATCH, 42), []
    for _ in range(EPOCHS):
        for batch in batches:
            output = sae(batch)
            loss = objective(sae, output).total
            if settings.mono_weight:
                unit = batch / torch.linalg.vector_norm(batch, dim=1, keepdim=True, dtype=torch.float64).float()
                loss = loss + settings.mono_weight * mono(unit, output.codes)
            sae.count_activity_(output.codes)
            adam.zero_grad()
            loss.backward()
            decoder = sae.decoder_weight
            with torch.no_grad():
                if decoder is not None:
                    along = (decoder.grad * decoder).sum(1, keepdim=True)
                    decoder.grad.addcmul_(decoder, along, value=-1.0)  # rounds once, as fused multiply and add
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(sae.parameters(), settings.clip_norm)
            grad_norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in sae.parameters()))
            adam.step()
            with torch.no_grad():
                if decoder is not None:
                    decoder /= decoder.norm(dim=1, keepdim=True)
                if settings.sae.variant == "jump_relu":
                    sae.activation.threshold.clamp_(min=0)
            steps.append(
                Step(
                    batch,
                    dense(output.codes).detach(),
                    isinstance(output.codes, SparseActivations),
                    output.target,
                    output.reconstruction.detach(),
                    float(loss.detach()),
                    int((sae.samples_since_active >= dead_after(settings)).sum()),
                    grad_norm,
                )
            )
            every = settings.redraw_dead_every_steps
            if every and len(steps) % every == 0:
                redraw(sae, adam, settings, len(steps))
    sae.calibrate_([store.embeddings()])
    return sae.eval(), steps


def logged_by(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "version_0" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def training_store(folder: Path) -> FeatureStore:
    """Rows with structure in shards of 100."""
    return structured_store(folder, N_ROWS, rows_per_shard=100)
