"""A resumable fine-tuning run: builds model, data and losses from the settings, trains, validates and saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from monoloss.checks import check_type
from monoloss.data.images import open_images
from monoloss.distributed import Ranks, processes_per_machine, training_processes
from monoloss.errors import InputError
from monoloss.files.dataclasses import to_plain
from monoloss.files.model_folder import Provenance
from monoloss.finetune.averaging import AveragedWeights, adjusted_decay
from monoloss.finetune.config import DataConfig, FineTuneConfig
from monoloss.finetune.config_files import FineTuneRecord, record_to_dict
from monoloss.finetune.data import FineTuneData, open_finetune_data
from monoloss.finetune.images.batches import TrainingBatches, ValidationBatches
from monoloss.finetune.images.labelled import LabelledImages
from monoloss.finetune.images.mixing import BatchMixing
from monoloss.finetune.images.order import StoredOrder, TrainingOrder
from monoloss.finetune.images.transforms import TrainingTransform, evaluation_preprocessing, evaluation_transform
from monoloss.finetune.model.backbone import pooled_width
from monoloss.finetune.model.folder import load_finetuned
from monoloss.finetune.model.model import FineTuneModel, build_model
from monoloss.finetune.module import FineTuneModule, sized_mono_loss
from monoloss.finetune.optimiser import SgdRecipe, learning_rate_factor
from monoloss.finetune.run_folder import FINETUNE_RUN, finish
from monoloss.finetune.seeded_steps import SeededSteps
from monoloss.runs.folder import RunFolder
from monoloss.runs.saving import Checkpoints, SaveSchedule
from monoloss.runs.signals import stop_signals
from monoloss.runs.trainer import check_loggers, fit, make_trainer, print_note, quiet_lightning, resume_at_end


class _Parts(NamedTuple):
    """What `_fit_and_finish` needs of a run; `config` has a `log_every_steps` of at most the run's steps."""

    config: FineTuneConfig
    data: FineTuneData
    module: FineTuneModule
    train: TrainingBatches
    validation: ValidationBatches | None
    steps_per_epoch: int
    ranks: Ranks

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch


def fine_tune(config: FineTuneConfig, run: str | Path, *, resume: bool = False, progress: bool = True) -> FineTuneModel:
    """Fine-tune a vision model with MonoLoss on a new layer, in a folder from which a stopped run can be resumed.

    The folder holds ``config.yaml``; ``logs/version_N/metrics.csv``, a new version for each resumption;
    ``checkpoints/``; and at the end ``validation.json`` and ``model/``, for ``load_finetuned``. On the CPU, a run that
    was stopped or killed, and resumed, ends with the same bits as one that ran through. Ctrl-C and SIGTERM save a
    checkpoint at the end of the step and stop; a second one stops at once. Under torchrun the processes share each
    batch.

    Args:
        config: settings of model, data, augmentation and optimisation.
        run: folder of the run; made if missing.
        resume: resume the run in the folder, from the beginning if nothing was saved yet.
        progress: show a progress bar.

    Returns:
        The trained model (with ``optimisation.ema_decay``, the average of its weights), on the CPU, in ``eval()``.

    Raises:
        InputError: before any training: a model or data that cannot be used; images without an embedding; a store of
            other images; a folder that holds a run while ``resume`` is off, or a different run, or one that another
            process trains. During training: a loss, weights or activations that are not finite.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from monoloss.finetune.config import ModelConfig
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        ...         (Path(folder) / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        ...         Image.radial_gradient("L").resize((32, 32)).save(Path(folder) / "images" / name)
        ...     config = FineTuneConfig(
        ...         ModelConfig("test_resnet", pretrained=False, image_size=32),
        ...         DataConfig(f"imagefolder:{folder}/images"),
        ...         epochs=1,
        ...         batch_size=4,
        ...     )
        ...     model = fine_tune(config, f"{folder}/run", progress=False)
        >>> model.layer(torch.zeros(1, 3, 32, 32)).shape == (1, model.width)
        True
    """
    check_type("config", config, FineTuneConfig, "a FineTuneConfig")
    check_loggers(config.loggers)
    folder = RunFolder(run, FINETUNE_RUN)
    folder.check(resume)
    with training_processes() as ranks, torch.random.fork_rng(devices=[]):  # leaves the caller's random state
        ranks.wait()  # until all have checked the folder, which one of them changes
        data = open_data(config.data)
        held_out = None if data.validation is None else data.validation.fingerprint
        record = FineTuneRecord(config, data.train.fingerprint, held_out)
        ranks.check_same(_shared_settings(record))
        # built before the folder is made: what cannot be trained leaves no folder behind
        parts = None if folder.is_finished else _build_parts(config, data, ranks)
        if ranks.rank:
            return _train(folder, record, parts, ranks, resume=resume, progress=False)
        with folder.claimed():
            return _train(folder, record, parts, ranks, resume=resume, progress=progress)


def _train(
    folder: RunFolder, record: FineTuneRecord, parts: _Parts | None, ranks: Ranks, *, resume: bool, progress: bool
) -> FineTuneModel:
    """Train in the claimed folder and return the model; load it if the run is finished (`parts` may then be None)."""
    if parts is not None and not folder.is_finished:
        if not ranks.rank:
            folder.write_or_check_config(record_to_dict(record), resume)
        ranks.wait()
        return _fit_and_finish(parts, folder, record_to_dict(record), progress)
    if not ranks.rank:
        folder.write_or_check_config(record_to_dict(record), resume)
        print_note(f"{folder.path} is finished: this is its model")
    return load_finetuned(folder.result)


def open_data(config: DataConfig) -> FineTuneData:
    """Open the images and feature stores that the settings name, and join them."""
    images = LabelledImages(open_images(**config.source()))
    held_out = LabelledImages(open_images(**config.source(held_out=True))) if config.validates else None
    return open_finetune_data(
        images,
        held_out,
        embeddings=config.embeddings,
        validation_embeddings=config.validation_embeddings,
        join_on=config.join_on,
    )


def training_batches(
    config: FineTuneConfig, data: FineTuneData, preprocessing: Mapping[str, Any], rank: int = 0, world_size: int = 1
) -> TrainingBatches:
    """Build the training batches of process `rank` of `world_size`.

    `preprocessing` is that of the backbone, at the image size of the run.

    Raises:
        InputError: fewer images than a step takes, or a batch that cannot be shared among processes or copies.
    """
    options = asdict(config.augmentation)
    mix = {name: options.pop(name) for name in ("mixup", "cutmix", "mix_embeddings")}
    mixing = BatchMixing(len(data.class_names), **mix) if config.augmentation.mixes else None
    repeats, _ = options.pop("repeats"), options.pop("eval_resize")
    n, accumulate = len(data.train), config.accumulate_batches
    order = TrainingOrder(n, config.batch_size, config.seed, accumulate, repeats, rank, world_size)
    return TrainingBatches(data.train, order, TrainingTransform(preprocessing, **options), mixing, config.data.workers)


def validation_batches(
    config: FineTuneConfig, data: FineTuneData, preprocessing: Mapping[str, Any], rank: int = 0, world_size: int = 1
) -> ValidationBatches:
    """Build the validation batches of process `rank` of `world_size`; arguments as for `training_batches`.

    Raises:
        InputError: no held-out images, or fewer than processes.
    """
    if data.validation is None:
        raise InputError("data.validation", "nothing", "held-out images: validation or validation_split")
    order = StoredOrder(len(data.validation), config.batch_size, rank, world_size)
    transform = evaluation_transform(preprocessing, **_evaluation_options(config))
    return ValidationBatches(data.validation, order, transform, config.data.workers)


def _evaluation_options(config: FineTuneConfig) -> dict[str, Any]:
    """Return the options of `evaluation_preprocessing`."""
    return {"eval_resize": config.augmentation.eval_resize, "interpolation": config.augmentation.interpolation}


def decay_of(config: FineTuneConfig) -> float:
    """Return the decay of the average of the weights, adjusted to the run's length if so set; 0 without an average."""
    decay = config.optimisation.ema_decay or 0.0
    if not config.optimisation.ema_adjusted:
        return adjusted_decay(decay)
    images = config.batch_size * config.accumulate_batches * config.optimisation.ema_every_steps
    return adjusted_decay(decay, images, config.epochs)


def sgd_of(config: FineTuneConfig, steps_per_epoch: int) -> SgdRecipe:
    """Translate the settings of a run into options of SGD and a schedule."""
    options = asdict(config.optimisation)
    names = ("schedule", "step_epochs", "step_factor", "warmup_epochs", "warmup_from")
    factor = learning_rate_factor(steps_per_epoch, config.epochs, **{name: options[name] for name in names})
    return SgdRecipe(factor, **{name: options[name] for name in ("lr", "momentum", "weight_decay", "clip_norm")})


def module_of(
    config: FineTuneConfig,
    model: FineTuneModel,
    *,
    steps_per_epoch: int,
    width: int | None = None,
    center: Float[Tensor, " d"] | None = None,
    validation_embeddings: bool = False,
) -> FineTuneModule:
    """Build the LightningModule of a run: losses, measures and optimiser around its model.

    Args:
        config: settings of the run.
        model: from `build_model`, for the same settings.
        steps_per_epoch: optimiser steps of an epoch.
        width: width d of the embeddings; None without embeddings.
        center: mean vector that MonoLoss subtracts from the embeddings; None subtracts nothing.
        validation_embeddings: whether validation batches have embeddings.

    Raises:
        InputError: the backbone does not take images of ``augmentation.train_crop``.
    """
    if config.augmentation.train_crop is not None:
        pooled_width(model.backbone, config.augmentation.train_crop, "augmentation.train_crop")
    mono_loss = None
    if config.mono_weight > 0 and width is not None:
        mono_loss = sized_mono_loss(model.width, width, memory=config.mono_memory, center=center)
    return FineTuneModule(
        model,
        sgd_of(config, steps_per_epoch),
        label_smoothing=config.optimisation.label_smoothing,
        mono_weight=config.mono_weight,
        mono_loss=mono_loss,
        score_width=width if validation_embeddings else None,
        log_every_steps=config.log_every_steps,
        accumulate_batches=config.accumulate_batches,
    )


def _build_parts(config: FineTuneConfig, data: FineTuneData, ranks: Ranks) -> _Parts:
    """Build model, batches and losses; raise `InputError` where the settings do not fit the data or each other."""
    model = build_model(class_names=data.class_names, seed=config.seed, **asdict(config.model))
    share = {"rank": ranks.rank, "world_size": ranks.n_ranks}
    train = training_batches(config, data, model.preprocessing, **share)
    validation = None if data.validation is None else validation_batches(config, data, model.preprocessing, **share)
    model.preprocessing = to_plain(evaluation_preprocessing(model.preprocessing, **_evaluation_options(config)))
    store, training = data.train.store, to_plain(config)  # `images_of_run` reads the source of the images from it
    model.provenance = Provenance(training=training)
    if store is not None:
        model.provenance = Provenance(store.manifest.encoder, store.fingerprint, training)
    steps_per_epoch = len(train) // config.accumulate_batches
    n_steps = config.epochs * steps_per_epoch
    config = replace(config, log_every_steps=min(config.log_every_steps, n_steps))  # a short run logs its last step
    module = module_of(
        config,
        model,
        steps_per_epoch=steps_per_epoch,
        width=data.width,
        center=store.mean.float() if store is not None and config.mono_center else None,
        validation_embeddings=data.validation is not None and data.validation.store is not None,
    )
    module.train()  # timm builds backbones in eval mode, and Lightning leaves the mode as it is
    return _Parts(config, data, module, train, validation, steps_per_epoch, ranks)


def _fit_and_finish(parts: _Parts, folder: RunFolder, identity: Mapping[str, Any], progress: bool) -> FineTuneModel:
    """Train from the newest checkpoint, or from the start, to the last step; validate, save and return the model."""
    config, module = parts.config, parts.module
    start = folder.newest_checkpoint(identity, print_note)
    parts.ranks.wait()  # no process writes a checkpoint before all have read the newest
    measures: dict[str, float] = {}
    with quiet_lightning(), stop_signals() as stop:
        if not resume_at_end(module, start, parts.n_steps):
            callbacks: list[Callback] = [SeededSteps(config.seed, parts.ranks.rank)]
            if config.optimisation.ema_decay is not None:  # before `Checkpoints`, which save the updated average
                n_warmup = config.optimisation.warmup_epochs * parts.steps_per_epoch
                callbacks.append(AveragedWeights(decay_of(config), config.optimisation.ema_every_steps, n_warmup))
            schedule = SaveSchedule(
                config.checkpoint_every_steps, config.checkpoint_every_minutes, config.keep_checkpoints
            )
            where, check = folder.checkpoints, module.check_finite
            callbacks.append(Checkpoints(where, schedule, parts.n_steps, parts.train, identity, stop, check))
            trainer = _trainer(parts, folder.path, callbacks, progress)
            fit(trainer, module, parts.train, start, stop, folder.path, parts.validation)
            if config.epochs % config.validate_every_epochs == 0:  # the last epoch has been validated
                measures = module.measures
        if parts.validation is not None and not measures:
            trainer = _trainer(parts, folder.path, [], progress)
            trainer.validate(module, parts.validation, verbose=False)
            measures = module.measures
    model = module.model.cpu().eval()
    if not parts.ranks.rank:
        finish(folder, model, measures)
    parts.ranks.wait()
    return load_finetuned(folder.result)


def _trainer(parts: _Parts, run: Path, callbacks: list[Callback], progress: bool) -> Trainer:
    """Build the Trainer of a run that logs to the folder `run`, over all of its processes; batches go to its device."""
    config, n_ranks = parts.config, parts.ranks.n_ranks
    options: dict[str, Any] = {"num_sanity_val_steps": 0, "use_distributed_sampler": False}
    options["check_val_every_n_epoch"] = config.validate_every_epochs
    if n_ranks > 1:
        devices = processes_per_machine(n_ranks)
        options |= {"strategy": "ddp", "devices": devices, "num_nodes": n_ranks // devices}
    if progress:
        options["enable_progress_bar"] = True
        callbacks = [*callbacks, RichProgressBar()]
    trainer = make_trainer(config, run, callbacks, **options)
    for batches in (parts.train, parts.validation):
        if batches is not None:
            batches.to(trainer.strategy.root_device)
    return trainer


def _shared_settings(record: FineTuneRecord) -> dict[str, Any]:
    """Return the settings and fingerprints that all processes must have in common; the paths of the data may differ."""
    return {key: value for key, value in record_to_dict(record).items() if key != "data"}
