"""All that a run reads: images and embeddings, opened, joined and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.finetune.config import DataConfig, FineTuneConfig
from monoloss.finetune.images.batches import JoinedImages, TrainingBatches, ValidationBatches
from monoloss.finetune.images.join import JoinOn, join_rows
from monoloss.finetune.images.labelled import LabelledImages, open_labelled
from monoloss.finetune.images.mixing import BatchMixing
from monoloss.finetune.images.order import StoredOrder, TrainingOrder
from monoloss.finetune.images.transforms import TrainingTransform, evaluation_transform


@dataclass(frozen=True)
class FineTuneData:
    """The data of a run.

    Attributes:
        train: images to train on, joined with their embeddings where there is a store.
        validation: held-out images, likewise; None where nothing is validated.
        class_names: of the classes 0, 1, ..., the same for both.
        width: d of the embeddings; None without a store.
    """

    train: JoinedImages
    validation: JoinedImages | None
    class_names: list[str]
    width: int | None

    def train_batches(
        self, config: FineTuneConfig, preprocessing: Mapping[str, Any], rank: int = 0, world_size: int = 1
    ) -> TrainingBatches:
        """The batches that one of the processes trains on.

        Args:
            config: of the run.
            preprocessing: of the backbone at the size of the run, as timm's `resolve_model_data_config` gives it.
            rank: which process this is.
            world_size: how many there are.

        Raises:
            InputError: there are too few images for a step, or a batch cannot be shared among processes or copies.
        """
        augmentation = config.augmentation
        mixing = None
        if augmentation.mixes:
            mixing = BatchMixing(
                len(self.class_names),
                mixup=augmentation.mixup,
                cutmix=augmentation.cutmix,
                mix_embeddings=augmentation.mix_embeddings,
            )
        order = TrainingOrder(
            len(self.train),
            config.batch_size,
            config.seed,
            config.accumulate_batches,
            augmentation.repeats,
            rank,
            world_size,
        )
        transform = TrainingTransform(augmentation, preprocessing)
        return TrainingBatches(self.train, order, transform, mixing, config.data.workers)

    def validation_batches(
        self, config: FineTuneConfig, preprocessing: Mapping[str, Any], rank: int = 0, world_size: int = 1
    ) -> ValidationBatches:
        """The batches that one of the processes is validated on; arguments as for `train_batches`.

        Raises:
            InputError: there are no held-out images, or fewer than processes.
        """
        if self.validation is None:
            raise InputError("data.validation", "nothing", "held-out images: validation or validation_split")
        order = StoredOrder(len(self.validation), config.batch_size, rank, world_size)
        transform = evaluation_transform(config.augmentation, preprocessing)
        return ValidationBatches(self.validation, order, transform, config.data.workers)


def open_finetune_data(config: DataConfig) -> FineTuneData:
    """Open the images and stores of a run, and join them.

    Raises:
        InputError: a source or store cannot be opened; images have not one label each; the held-out images have a class
            that those to train on have not; a store does not fit the images (see `join_rows`), or the two stores each
            other.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/a.png", "dog/b.png"):
        ...         (Path(folder) / "images" / name).parent.mkdir(parents=True)
        ...         Image.new("L", (2, 2)).save(Path(folder) / "images" / name)
        ...     _ = FeatureStore.create(folder + "/store", torch.eye(2), ids=["dog/b.png", "cat/a.png"])
        ...     data = open_finetune_data(DataConfig(f"imagefolder:{folder}/images", embeddings=folder + "/store"))
        ...     data.train.rows.tolist(), data.width, data.class_names
        ([1, 0], 2, ['cat', 'dog'])
    """
    images = open_labelled(config)
    held_out = open_labelled(config, held_out=True) if config.validates else None
    if held_out is not None:
        held_out.use_classes_of(images)
    train = _joined(images, config.embeddings, config.join_on, "data.embeddings")
    argument = "data.validation_embeddings"
    validation = None if held_out is None else _joined(held_out, config.validation_embeddings, config.join_on, argument)
    stores = [joined.store for joined in (train, validation) if joined is not None and joined.store is not None]
    if len({store.width for store in stores}) > 1:
        came = f"{stores[1].folder}, with rows of {stores[1].width} numbers"
        raise InputError(argument, came, f"rows of the same encoder as those to train on, of {stores[0].width}")
    return FineTuneData(train, validation, images.class_names, stores[0].width if stores else None)


def _joined(images: LabelledImages, folder: str | None, join_on: JoinOn, argument: str) -> JoinedImages:
    if folder is None:
        return JoinedImages(images, torch.arange(len(images)))
    store = FeatureStore(folder)
    positions, rows = join_rows(images, store, join_on, argument)
    return JoinedImages(images, positions, store.load_if_small(), rows)
