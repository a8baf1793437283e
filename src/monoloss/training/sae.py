"""Several sparse autoencoders trained on one pass over a feature store, each as if it were alone."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from monoloss.checks import check_type
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.files import check_new_folder
from monoloss.functional.moments import batch_moments, unit_rows
from monoloss.functional.reconstruction import reconstruction_quality
from monoloss.functional.score import score_of
from monoloss.functional.sparsity import activation_counts, l0
from monoloss.losses import MonoLoss
from monoloss.sae.model import MIN_CALIBRATION_ROWS, SaeOutput, SparseAutoencoder
from monoloss.sae.objectives import Objective, objective
from monoloss.training.batches import ShuffledBatches, shuffled
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.progress import TrainingProgress

_CALIBRATION_ROWS = 4 * MIN_CALIBRATION_ROWS


class SaeRun(LightningModule):
    """The SAEs of a run with their losses: one optimiser, a parameter group and a clipping norm each.

    The loss is the sum over the SAEs, so no SAE's gradient sees another; adding one leaves the rest bit-equal.
    """

    def __init__(self, config: TrainingConfig, d_in: int, mean: Float[Tensor, " d_in"]) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(config.saes)
        self.saes = nn.ModuleList()  # in the order of names: a module's key may hold no dot, a name may
        self.mono_losses = nn.ModuleList()
        for settings in config.saes.values():
            input_mean = mean.float() if settings.sae.inputs.center else None
            self.saes.append(SparseAutoencoder(d_in, settings.sae, input_mean=input_mean, seed=settings.seed))
            center = mean.float() if settings.mono_center else None
            self.mono_losses.append(MonoLoss(center=center, memory=settings.mono_memory))

    def parts(self) -> Iterator[tuple[str, SaeTraining, SparseAutoencoder, MonoLoss]]:
        """Name, settings, model and MonoLoss of each SAE."""
        for name, sae, mono in zip(self.names, self.saes, self.mono_losses, strict=True):
            assert isinstance(sae, SparseAutoencoder)  # noqa: S101 - what ModuleList forgets, for the type checker
            assert isinstance(mono, MonoLoss)  # noqa: S101
            yield name, self.config.saes[name], sae, mono

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam, a parameter group a SAE."""
        groups = [
            {"params": list(sae.parameters()), "lr": settings.lr, "eps": settings.adam_eps, "name": name}
            for name, settings, sae, _ in self.parts()
        ]
        return torch.optim.Adam(groups, fused=True)

    def training_step(self, batch: Float[Tensor, "n d"], batch_idx: int) -> Tensor:
        """The sum of the SAEs' losses on one batch."""
        embeddings = unit_rows(batch)
        total = batch.new_zeros(())
        logged = (self.global_step + 1) % self.config.log_every_steps == 0
        for name, settings, sae, mono in self.parts():
            output = sae(batch)
            terms = objective(sae, output)
            loss = terms.total
            if settings.mono_weight > 0:
                loss = loss + settings.mono_weight * mono(embeddings, output.codes)
            total = total + loss
            sae.count_activity_(output.codes)
            if logged:
                figures = {"loss": loss.detach()} | _figures(embeddings, sae, output, terms)
                self.log_dict({f"{name}/{key}": value for key, value in figures.items()})
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Before the step: the decoder's gradient along its rows is removed, then each SAE's norm is clipped."""
        for (_, settings, sae, _), group in zip(self.parts(), optimizer.param_groups, strict=True):
            sae.project_decoder_gradient_()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(group["params"], settings.clip_norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The step, and after it what must hold again: decoder rows of length 1; now and then dead latents anew."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        n_steps = self.global_step + 1  # Lightning counts this step when this hook has returned
        for _, settings, sae, _ in self.parts():
            sae.normalise_decoder_()
            every = settings.redraw_dead_every_steps
            if every is not None and n_steps % every == 0 and sae.dead.any():
                _redraw_dead(sae, optimizer, seed=settings.seed + n_steps)


def train_saes(
    store: FeatureStore, config: TrainingConfig, run: str | Path, *, progress: bool = True
) -> dict[str, SparseAutoencoder]:
    """Train every SAE of ``config`` on one pass over ``store``; figures go to ``run/logs/version_N/metrics.csv``.

    Args:
        store: the training rows.
        config: the SAEs and what they share.
        run: folder of the run; made if missing.
        progress: show a progress bar with score, explained variance, L0 and dead latents of each SAE.

    Returns:
        The trained SAEs by name, on the CPU, in ``eval()`` and calibrated: ready to encode.

    Raises:
        InputError: a batch larger than the data, a SAE or a store that cannot be used.

    Example:
        >>> import tempfile
        >>> from monoloss import FeatureStore, SaeTraining, TopKConfig, TrainingConfig
        >>> saes = {"base": SaeTraining(TopKConfig("topk", n_latents=16, k=2))}
        >>> config = TrainingConfig(saes, batch_size=32, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(f"{folder}/store", torch.randn(64, 8))
        ...     saes = train_saes(store, config, f"{folder}/run", progress=False)
        >>> saes["base"].encode(torch.randn(1, 8)).shape
        (1, 16)
    """
    check_type("store", store, FeatureStore, "a FeatureStore; FeatureStore(folder) opens one")
    check_type("config", config, TrainingConfig, "a TrainingConfig")
    batches = ShuffledBatches(store, config.batch_size, config.seed)
    for name, settings in config.saes.items():
        for option in ("mono_memory", "mono_center"):
            if getattr(settings, option) and settings.mono_weight == 0:
                needed = "mono_weight above 0 to make use of it"
                raise InputError(f"saes.{name}.{option}", getattr(settings, option), needed)
        if settings.sae.inputs.center and not settings.sae.inputs.unit_norm:
            needed = "unit_norm too: the store's mean is that of unit rows"
            raise InputError(f"saes.{name}.sae.inputs.center", "True without unit_norm", needed)
    check_new_folder(run, allow_full=True)
    n_steps = config.epochs * len(batches)
    config = replace(config, log_every_steps=min(config.log_every_steps, n_steps))  # a short run logs its last step
    store.load_if_small()
    module = SaeRun(config, store.width, store.mean)
    callbacks: list[Callback] = [TrainingProgress(module.names)] if progress else []
    with _quiet_lightning(), _signals_stay():
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=config.epochs,
            logger=CSVLogger(Path(run), name="logs", flush_logs_every_n_steps=config.log_every_steps),
            log_every_n_steps=config.log_every_steps,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module, train_dataloaders=batches)
    module.cpu()
    calibrate(module, store)
    return {name: sae.eval() for name, _, sae, _ in module.parts()}


def calibrate(module: SaeRun, store: FeatureStore) -> None:
    """Set what inference needs (BatchTopK's threshold) from 16384 training rows, or all there are."""
    rows = shuffled(store.n_rows, module.config.seed, -1)[:_CALIBRATION_ROWS]
    for _, _, sae, _ in module.parts():
        sae.calibrate_(store.rows(part) for part in rows.split(module.config.batch_size))


def _figures(embeddings: Tensor, sae: SparseAutoencoder, output: SaeOutput, terms: Objective) -> dict[str, Tensor]:
    """What is logged of one batch: detached scalars."""
    with torch.no_grad():
        codes = output.codes.detach()
        quality = reconstruction_quality(output.target, output.reconstruction)
        return {
            "reconstruction": terms.reconstruction.detach(),
            "aux": terms.aux.detach(),
            "score": score_of(batch_moments(embeddings, codes)).nanmean().float(),
            "explained_variance": quality.explained_variance.float(),
            "l0": l0(activation_counts(codes), len(codes)).float(),
            "dead": sae.dead.sum().float(),
        }


def _redraw_dead(sae: SparseAutoencoder, optimizer: Any, seed: int) -> None:
    """Draw dead latents anew and let Adam forget them."""
    dead = sae.dead
    sae.redraw_(dead, seed)
    for parameter, along in ((sae.encoder_weight, 1), (sae.encoder_bias, 0), (sae.decoder_weight, 0)):
        state = {} if parameter is None else optimizer.state[parameter]
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment].index_fill_(along, dead.nonzero().squeeze(1), 0.0)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without the lines that Lightning prints about its surroundings, and its advice on loaders of torch's."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings(
                "ignore", message=".*isinstance.treespec, LeafSpec.*is deprecated.*"
            )  # in Lightning
            warnings.filterwarnings("ignore", message=".*The number of training batches.*is smaller than the logging")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _signals_stay() -> Iterator[None]:
    """Lightning ends with code 1 at Ctrl-C, which it ignores from then on, and with code 0 at SIGTERM.

    Here Ctrl-C is a ``KeyboardInterrupt``, and SIGTERM ends the process as it would have without Lightning; where the
    caller has a handler, which Lightning has called, training ends with code 143 after it.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise error.__context__ from None
