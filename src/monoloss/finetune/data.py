"""The data of a run: images joined with the rows of feature stores, and checked before any training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.finetune.images.batches import JoinedImages
from monoloss.finetune.images.join import JoinOn, join_rows
from monoloss.finetune.images.labelled import LabelledImages


@dataclass(frozen=True)
class FineTuneData:
    """The data of a run."""

    train: JoinedImages
    """Images to train on, joined with their embeddings if there is a store."""
    validation: JoinedImages | None
    """Held-out images, joined in the same way; None where nothing is validated."""
    class_names: list[str]
    """Names of the classes 0, 1, ..., the same for training and validation."""
    width: int | None
    """Width d of the embeddings; None without a store."""


def open_finetune_data(
    images: LabelledImages,
    held_out: LabelledImages | None = None,
    *,
    embeddings: str | None = None,
    validation_embeddings: str | None = None,
    join_on: JoinOn = "id",
) -> FineTuneData:
    """Open the stores of a run and join their rows with its images.

    Changes `held_out` in place: its classes get the numbers that they have in `images`.

    Args:
        images: images to train on.
        held_out: images to validate on.
        embeddings: folder of the store for `images`.
        validation_embeddings: folder of the store for `held_out`.
        join_on: as for `join_rows`.

    Raises:
        InputError: the held-out images have a class that the training images lack; a store cannot be opened or does
            not fit its images (see `join_rows`); the two stores have embeddings of different widths.
    """
    if held_out is not None:
        held_out.use_classes_of(images)
    train = _joined(images, embeddings, join_on, "data.embeddings")
    argument = "data.validation_embeddings"
    validation = None if held_out is None else _joined(held_out, validation_embeddings, join_on, argument)
    stores = [joined.store for joined in (train, validation) if joined is not None and joined.store is not None]
    if len({store.width for store in stores}) > 1:
        got = f"{stores[1].folder}, with rows of {stores[1].width} numbers"
        raise InputError(argument, got, f"rows of the same encoder as those to train on, of {stores[0].width}")
    return FineTuneData(train, validation, images.class_names, stores[0].width if stores else None)


def _joined(images: LabelledImages, folder: str | None, join_on: JoinOn, argument: str) -> JoinedImages:
    """Match images with their rows in the store of embeddings in `folder`; no embeddings where it is None.

    Errors name `argument`.
    """
    if folder is None:
        return JoinedImages(images, torch.arange(len(images)))
    store = FeatureStore(folder)
    positions, rows = join_rows(images, store, join_on, argument)
    return JoinedImages(images, positions, store.load_if_small(), rows)
