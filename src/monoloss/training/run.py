"""Training of several sparse autoencoders on one pass over a feature store, each as if it were alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from monoloss.checks import check_type
from monoloss.data.store import FeatureStore
from monoloss.data.transfer import on_device
from monoloss.evaluation.run import evaluate
from monoloss.files.dataclasses import to_plain
from monoloss.files.model_folder import Provenance
from monoloss.losses import MonoLoss
from monoloss.runs.folder import RunFolder
from monoloss.runs.layout import EVALUATIONS
from monoloss.runs.saving import Checkpoints, SaveSchedule
from monoloss.runs.settings import shared_last
from monoloss.runs.shuffling import shuffled
from monoloss.runs.signals import stop_signals
from monoloss.runs.trainer import check_loggers, fit, make_trainer, print_note, quiet_lightning, resume_at_end
from monoloss.sae.model import MIN_CALIBRATION_ROWS, SparseAutoencoder
from monoloss.training.batches import ShuffledBatches
from monoloss.training.config import TrainingConfig
from monoloss.training.config_files import run_to_dict
from monoloss.training.module import SaeTrainingModule, TrainedSae
from monoloss.training.progress import TrainingProgress
from monoloss.training.run_folder import SAE_RUN, load_saes, run_config, save_saes
from monoloss.training.schedule import check_warmup
from monoloss.training.validation import Validation, check_validation

_CALIBRATION_ROWS = 4 * MIN_CALIBRATION_ROWS


def train_saes(
    store: FeatureStore,
    config: TrainingConfig,
    run: str | Path,
    *,
    validation: FeatureStore | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, SparseAutoencoder]:
    """Train every SAE of ``config`` on one pass over ``store``, in a folder from which a stopped run can be resumed.

    The folder: ``config.yaml``; ``logs/version_N/metrics.csv``, a new version each time the run is resumed;
    ``checkpoints/``; at the end ``evaluations/NAME/`` on the validation store, and ``saes/NAME/`` for
    ``from_pretrained``. On the CPU a run that was stopped or killed, then resumed, ends with the same bits as one that
    was not. Ctrl-C and SIGTERM end the run after its current step, which is saved; a second signal ends it at once.

    Args:
        store: the training rows.
        config: the SAEs and the settings that they share.
        run: folder of the run; made if missing.
        validation: held-out rows to evaluate the SAEs on.
        resume: resume the run in the folder; if it has no checkpoint yet, begin.
        progress: show a progress bar with score, explained variance, L0 and dead latents of each SAE.

    Returns:
        The trained SAEs by name, on the CPU, in ``eval()`` and calibrated: ready to encode.

    Raises:
        InputError: a batch larger than the data, a SAE or a store that cannot be used; a folder that holds a run while
            ``resume`` is off, that holds another run, or in which another process is training.

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
    check_loggers(config.loggers)
    folder = RunFolder(run, SAE_RUN)
    folder.check(resume)
    identity = run_to_dict(run_config(store, config, validation))
    with folder.claimed():
        folder.write_or_check_config(identity, resume)
        if folder.is_finished:
            saes = load_saes(folder, config.saes)
            print_note(f"{folder.path} is finished: these are its SAEs")
            return saes
        store.load_if_small()
        config = replace(config, log_every_steps=min(config.log_every_steps, n_steps))  # a short run logs its last step
        module = _module(config, store, n_steps)
        device = _fit(module, config, batches, folder, identity, validation, progress)
        return _finish(module, config, store, folder, validation, device)


def _module(config: TrainingConfig, store: FeatureStore, n_steps: int) -> SaeTrainingModule:
    """Build the SAEs and their losses from the configuration."""
    mean = store.mean.float()
    saes = {}
    for name, settings in config.saes.items():
        input_mean = mean if settings.sae.inputs.center else None
        sae = SparseAutoencoder(store.width, settings.sae, input_mean=input_mean, seed=settings.seed)
        mono_loss = MonoLoss(center=mean if settings.mono_center else None, memory=settings.mono_memory)
        saes[name] = TrainedSae(settings, sae, mono_loss)
    return SaeTrainingModule(saes, n_steps, config.log_every_steps)


def _fit(
    module: SaeTrainingModule,
    config: TrainingConfig,
    batches: ShuffledBatches,
    folder: RunFolder,
    identity: Mapping[str, Any],
    validation: FeatureStore | None,
    progress: bool,
) -> torch.device:
    """Train to the last step, from the newest checkpoint if there is one; return the device of the training."""

    def calibrated() -> dict[str, SparseAutoencoder]:
        module.check_finite()
        calibrate(module, batches.store, config.seed, config.batch_size)
        return module.by_name()

    start = folder.newest_checkpoint(identity, print_note)
    schedule = SaveSchedule(config.checkpoint_every_steps, config.checkpoint_every_minutes, config.keep_checkpoints)
    with quiet_lightning(), stop_signals() as stop:
        callbacks: list[Callback] = [TrainingProgress(tuple(config.saes))] if progress else []
        if validation is not None and config.validate_every_steps is not None:
            callbacks.append(Validation(validation, config.validate_every_steps, config.accumulate_batches, calibrated))
        callbacks.append(Checkpoints(folder.checkpoints, schedule, module.n_steps, batches, identity, stop, calibrated))
        trainer = make_trainer(config, folder.path, callbacks)
        if not resume_at_end(module, start, module.n_steps):
            fit(trainer, module, batches.to(trainer.strategy.root_device), start, stop, folder.path)
        return trainer.strategy.root_device


def _finish(
    module: SaeTrainingModule,
    config: TrainingConfig,
    store: FeatureStore,
    folder: RunFolder,
    validation: FeatureStore | None,
    device: torch.device,
) -> dict[str, SparseAutoencoder]:
    """Calibrate, evaluate (on ``device``) and save the trained SAEs; return them by name, on the CPU."""
    module.cpu()
    calibrate(module, store, config.seed, config.batch_size)
    shared = {key: value for key, value in shared_last(to_plain(config)).items() if key != "saes"}
    for name, settings, sae, _ in module.parts():
        options = {key: value for key, value in to_plain(settings).items() if key != "sae"}
        sae.eval().provenance = Provenance(
            store.manifest.encoder, store.fingerprint, {"name": name, **options, "run": shared}
        )
    summaries = {}
    if validation is not None:
        module.to(device)
        for name, evaluation in evaluate(validation, module.by_name()).items():
            evaluation.save(folder.path / EVALUATIONS / name)
            summaries[name] = evaluation.summary
        module.cpu()
    save_saes(folder, module.by_name(), summaries)
    return module.by_name()


def calibrate(module: SaeTrainingModule, store: FeatureStore, seed: int, batch_size: int) -> None:
    """Set BatchTopK's threshold for inference in each SAE from 16384 training rows, or all of a smaller store."""
    rows = shuffled(store.n_rows, seed, -1)[:_CALIBRATION_ROWS]
    for sae in module.by_name().values():
        device = sae.encoder_weight.device
        sae.calibrate_(on_device(map(store.rows, rows.split(batch_size)), device))
