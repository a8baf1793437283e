"""Several sparse autoencoders trained on one pass over a feature store, each as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from monoloss.checks import check_type
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.run import evaluate
from monoloss.files.dataclasses import plain
from monoloss.functional.moments import batch_moments, unit_rows
from monoloss.functional.reconstruction import reconstruction_quality
from monoloss.functional.score import score_of
from monoloss.functional.sparsity import activation_counts, l0
from monoloss.losses import MonoLoss
from monoloss.runs.checkpoints import Checkpoints
from monoloss.runs.shuffling import shuffled
from monoloss.runs.signals import StopRequested, stop_signals
from monoloss.runs.trainer import check_loggers, make_trainer, note, quiet_lightning
from monoloss.sae.checkpoint_files import Provenance
from monoloss.sae.model import MIN_CALIBRATION_ROWS, SaeOutput, SparseAutoencoder
from monoloss.sae.objectives import Objective, objective
from monoloss.training.batches import ShuffledBatches
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.config_files import run_to_dict
from monoloss.training.progress import TrainingProgress
from monoloss.training.run_folder import RunFolder, run_config
from monoloss.training.schedule import check_warmup, learning_rate_factor
from monoloss.training.validation import Validation, check_validation

_CALIBRATION_ROWS = 4 * MIN_CALIBRATION_ROWS


class SaeRun(LightningModule):
    """The SAEs of a run with their losses: one optimiser, a parameter group and a clipping norm each.

    The loss is the sum over the SAEs, so no SAE's gradient sees another; adding one leaves the rest bit-equal.

    Args:
        config: the SAEs and what they share.
        d_in: width of the rows.
        mean: of the unit rows to train on.
        n_steps: optimiser steps of the whole run. (Lightning, asked for it, would begin to read the batches before a
            checkpoint has said where they stand.)
    """

    def __init__(self, config: TrainingConfig, d_in: int, mean: Float[Tensor, " d_in"], n_steps: int) -> None:
        super().__init__()
        self.config, self.n_steps = config, n_steps
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

    def by_name(self) -> dict[str, SparseAutoencoder]:
        """The SAEs by name."""
        return {name: sae for name, _, sae, _ in self.parts()}

    def configure_optimizers(self) -> Any:
        """One Adam and one schedule; a parameter group a SAE, and another for learned thresholds."""
        groups, factors = [], []
        for name, settings, sae, _ in self.parts():
            thresholds = list(sae.activation.parameters())
            rest = [parameter for parameter in sae.parameters() if all(parameter is not other for other in thresholds)]
            rates = {
                name: (rest, settings.lr),
                f"{name}.thresholds": (thresholds, settings.threshold_lr or settings.lr),
            }
            for group, (parameters, lr) in rates.items():
                if parameters:
                    groups.append({"params": parameters, "lr": lr, "eps": settings.adam_eps, "name": group})
                    factors.append(learning_rate_factor(settings, self.n_steps))
        adam = torch.optim.Adam(groups, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, factors)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Lay the optimiser's moments out as their parameters, whatever was loaded: the fused step pairs memory."""
        (adam,) = self.trainer.optimizers
        for parameter, state in adam.state.items():
            for name, moment in state.items():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(moment)

    def training_step(self, batch: Float[Tensor, "n d"], batch_idx: int) -> Tensor:
        """The sum of the SAEs' losses on one batch."""
        embeddings = unit_rows(batch)
        total = batch.new_zeros(())
        ends_a_step = (batch_idx + 1) % self.config.accumulate_batches == 0
        logged = ends_a_step and (self.global_step + 1) % self.config.log_every_steps == 0
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
        for _, settings, sae, _ in self.parts():
            sae.project_decoder_gradient_()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(sae.parameters(), settings.clip_norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The step, and after it what must hold again: decoder rows of length 1; now and then dead latents anew."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        n_steps = self.global_step + 1  # Lightning counts this step when this hook has returned
        for _, settings, sae, _ in self.parts():
            sae.constrain_()
            every = settings.redraw_dead_every_steps
            if every is not None and n_steps % every == 0 and sae.dead.any():
                _redraw_dead(sae, optimizer, seed=settings.seed + n_steps)


def train_saes(
    store: FeatureStore,
    config: TrainingConfig,
    run: str | Path,
    *,
    validation: FeatureStore | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, SparseAutoencoder]:
    """Train every SAE of ``config`` on one pass over ``store``, in a folder that a stopped run can go on from.

    The folder: ``config.yaml``; ``logs/version_N/metrics.csv``, a version each time the run goes on; ``checkpoints/``;
    at the end ``evaluations/NAME/`` on the validation store, and ``saes/NAME/`` for ``from_pretrained``. On the CPU a
    run that was stopped, or killed, and went on ends with the bits of one that was not. Ctrl-C and SIGTERM are obeyed
    at the end of the step, when it is saved; a second one at once.

    Args:
        store: the training rows.
        config: the SAEs and what they share.
        run: folder of the run; made if missing.
        validation: held-out rows to evaluate the SAEs on.
        resume: go on with the run in the folder; where nothing was saved yet, from the beginning.
        progress: show a progress bar with score, explained variance, L0 and dead latents of each SAE.

    Returns:
        The trained SAEs by name, on the CPU, in ``eval()`` and calibrated: ready to encode.

    Raises:
        InputError: a batch larger than the data, a SAE or a store that cannot be used; a folder that holds a run while
            ``resume`` is off, or another run, or one that another process is at.

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
    check_type("validation", validation, FeatureStore | None, "a FeatureStore or None")
    batches = ShuffledBatches(store, config.batch_size, config.seed, config.accumulate_batches)
    n_steps = config.epochs * len(batches) // config.accumulate_batches
    check_warmup(config, n_steps)
    check_validation(config, store, validation)
    check_loggers(config)
    folder = RunFolder(run)
    folder.check(resume)
    settings = run_config(store, config, validation)
    with folder.claimed():
        folder.settle_config(settings, resume)
        if folder.is_finished:
            saes = folder.load_saes(config.saes)
            note(f"{folder.path} is finished: these are its SAEs")
            return saes
        store.load_if_small()
        config = replace(config, log_every_steps=min(config.log_every_steps, n_steps))  # a short run logs its last step
        module = SaeRun(config, store.width, store.mean, n_steps)
        device = _fit(module, batches, folder, run_to_dict(settings), validation, progress)
        return _finish(module, store, folder, validation, device)


def _fit(
    module: SaeRun,
    batches: ShuffledBatches,
    folder: RunFolder,
    identity: Mapping[str, Any],
    validation: FeatureStore | None,
    progress: bool,
) -> torch.device:
    """Train to the last step, from the newest checkpoint if there is one; returns the device."""

    def calibrated() -> dict[str, SparseAutoencoder]:
        _check_finite(module)
        calibrate(module, batches.store)
        return module.by_name()

    config = module.config
    start = folder.newest_checkpoint(identity, note)
    with quiet_lightning(), stop_signals() as stop:
        callbacks: list[Callback] = [TrainingProgress(module.names)] if progress else []
        if validation is not None and config.validate_every_steps is not None:
            callbacks.append(Validation(validation, config.validate_every_steps, config.accumulate_batches, calibrated))
        callbacks.append(Checkpoints(folder.checkpoints, config, module.n_steps, batches, identity, stop, calibrated))
        trainer = make_trainer(config, folder.path, callbacks)
        if start is not None and start.n_steps == module.n_steps:
            module.load_state_dict(torch.load(start.path, map_location="cpu", weights_only=True)["state_dict"])
            return trainer.strategy.root_device
        try:
            path = None if start is None else start.path
            trainer.fit(module, train_dataloaders=batches, ckpt_path=path, weights_only=True)
            stop.check()  # for what came after the last step
        except StopRequested:
            note(f"stopped after step {trainer.global_step}, and saved; --resume {folder.path} goes on from there")
            raise
        return trainer.strategy.root_device


def _finish(
    module: SaeRun, store: FeatureStore, folder: RunFolder, validation: FeatureStore | None, device: torch.device
) -> dict[str, SparseAutoencoder]:
    """Calibrate, evaluate and save what was trained."""
    module.cpu()
    calibrate(module, store)
    shared = {key: value for key, value in plain(module.config).items() if key != "saes"}
    for name, settings, sae, _ in module.parts():
        training = {
            "name": name,
            **{key: value for key, value in plain(settings).items() if key != "sae"},
            "run": shared,
        }
        sae.eval().provenance = Provenance(store.manifest.encoder, store.fingerprint, training)
    summaries = {}
    if validation is not None:
        module.to(device)
        for name, evaluation in evaluate(validation, module.by_name()).items():
            evaluation.save(folder.evaluations / name)
            summaries[name] = evaluation.summary
        module.cpu()
    folder.save_saes(module.by_name(), summaries)
    return module.by_name()


def _check_finite(module: SaeRun) -> None:
    """Refuse to save or judge what has diverged; the last good checkpoint stays."""
    for name, _, sae, _ in module.parts():
        if not all(torch.isfinite(parameter).all() for parameter in sae.parameters()):
            raise _diverged(name, f"weights that are no finite numbers after step {module.global_step}")


def _diverged(name: str, came: str) -> InputError:
    return InputError(f"saes.{name}", came, "a smaller lr or mono_weight: its training has diverged")


def calibrate(module: SaeRun, store: FeatureStore) -> None:
    """Set what inference needs (BatchTopK's threshold) from 16384 training rows, or all there are."""
    rows = shuffled(store.n_rows, module.config.seed, -1)[:_CALIBRATION_ROWS]
    for _, _, sae, _ in module.parts():
        device = sae.encoder_weight.device
        sae.calibrate_(store.rows(part).to(device) for part in rows.split(module.config.batch_size))


def _figures(embeddings: Tensor, sae: SparseAutoencoder, output: SaeOutput, terms: Objective) -> dict[str, Tensor]:
    """What is logged of one batch: detached scalars."""
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
    """Draw dead latents anew and let Adam forget them."""
    dead = sae.dead
    sae.redraw_(dead, seed)
    by_latent = [(sae.encoder_weight, 1), (sae.encoder_bias, 0), (sae.decoder_weight, 0)]
    by_latent += [(threshold, 0) for threshold in sae.activation.parameters()]
    for parameter, along in by_latent:
        state = {} if parameter is None else optimizer.state[parameter]
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment].index_fill_(along, dead.nonzero().squeeze(1), 0.0)
