"""Activations of a fine-tuned model on the images that belong to the rows of a store, as `evaluate` reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.checks import check_number, check_type
from monoloss.data.images import open_images
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.files.dataclasses import from_mapping
from monoloss.finetune.config import DataConfig
from monoloss.finetune.images.batches import ImageBatch, JoinedImages, ValidationBatches
from monoloss.finetune.images.join import JoinOn, images_of_rows
from monoloss.finetune.images.labelled import LabelledImages, class_numbers
from monoloss.finetune.images.order import StoredOrder
from monoloss.finetune.images.transforms import evaluation_transform
from monoloss.finetune.measures import top_counts
from monoloss.finetune.model.model import FineTuneModel
from monoloss.precision import sums_device


class _Pass(NamedTuple):
    """The state of one pass over the rows of a store."""

    batches: Iterator[ImageBatch]
    """Batches of images that the model has not seen yet, on its device."""
    next_row: int
    """Row after the last one returned."""
    buffered: Tensor
    """Activations of the rows from `next_row` on that the model has computed but `rows` has not returned."""


class ImageActivations(nn.Module):
    """The activations of a fine-tuned model's new layer on the image of each row of a store, in the store's order.

    :func:`monoloss.evaluate` scores them against the store's embeddings. Images are matched with rows by id, and
    prepared as in the model's validation; only about one batch of them is in memory at a time.

    Args:
        model: on the device where it is to run; evaluation runs it in ``eval()``.
        images: an image for each row, in any order; further images are ignored.
        store: the rows.
        join_on: how images and rows are matched: by "id", or by "name", the file name alone.
        batch_size: images that the model gets at a time.
        workers: processes that decode images; 0 decodes in this process.

    Raises:
        InputError: a row without an image, or with another label than its image; names that are not unique.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from monoloss import evaluate
        >>> from monoloss.finetune.model.model import build_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/a.png", "dog/b.png"):
        ...         (Path(folder) / "images" / name).parent.mkdir(parents=True)
        ...         Image.radial_gradient("L").save(Path(folder) / "images" / name)
        ...     images = LabelledImages(open_images(f"imagefolder:{folder}/images"))
        ...     store = FeatureStore.create(folder + "/store", torch.eye(2), ids=["dog/b.png", "cat/a.png"])
        ...     model = build_model("test_resnet", ["cat", "dog"], pretrained=False, image_size=32)
        ...     summary = evaluate(store, {"tuned": ImageActivations(model, images, store)})["tuned"].summary
        ...     summary["n_latents"], summary["top1"] in (0.0, 0.5, 1.0)
        (96.0, True)
    """

    def __init__(
        self,
        model: FineTuneModel,
        images: LabelledImages,
        store: FeatureStore,
        *,
        join_on: JoinOn = "id",
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        super().__init__()
        check_type("model", model, FineTuneModel, "a FineTuneModel; load_finetuned gives one")
        check_type("images", images, LabelledImages, "LabelledImages(open_images(...))")
        check_number("batch_size", batch_size, at_least=1, integer=True)
        check_number("workers", workers, at_least=0, integer=True)
        self.model, self.batch_size, self.workers = model, batch_size, workers
        self._data = JoinedImages(images, images_of_rows(images, store, join_on))
        self._transform = evaluation_transform(model.preprocessing)
        self._class_numbers = class_numbers(images.class_names, model.class_names)
        self._pass = _Pass(iter(()), -1, torch.zeros(0, model.width))
        self._counts = torch.zeros(3, dtype=torch.float64)  # `top_counts` of this pass

    @property
    def description(self) -> str:
        """A phrase for messages: which layer of which backbone, on which images."""
        return f"the layer of a fine-tuned {self.model.recipe['architecture']} on {self._data.images.description}"

    @property
    def device(self) -> torch.device:
        """The device of the model, where `rows` returns its activations."""
        return self.model.new_layer.weight.device

    def rows(self, start: int, stop: int) -> Float[Tensor, "n m"]:
        """Return the activations of the rows ``start`` to ``stop`` (exclusive), float32, on ``device``.

        Fast for rows that follow those of the last call; any other ``start`` begins a new pass.

        Raises:
            InputError: an image that cannot be read.
        """
        if start != self._pass.next_row:
            self._begin(start)
        current, parts = self._pass, [self._pass.buffered]
        while sum(map(len, parts)) < stop - start:
            parts.append(self._activations(next(current.batches)))
        activations = torch.cat(parts)
        self._pass = current._replace(next_row=stop, buffered=activations[stop - start :])
        return activations[: stop - start]

    def measures(self) -> dict[str, float]:
        """Return the accuracies ``top1`` and ``top5`` over the images read in this pass, in [0, 1].

        Empty before the first image, and where the images have classes that the model does not know.
        """
        n, top1, top5 = self._counts.tolist()
        return {"top1": top1 / n, "top5": top5 / n} if n and self._class_numbers is not None else {}

    def model_metadata(self) -> dict[str, Any]:
        """Return the ``backbone``'s name and, if the model has them, the settings of its ``training``."""
        training = self.model.provenance.training
        settings = {} if training is None else {"training": dict(training)}
        return {"backbone": self.model.recipe["architecture"]} | settings

    def __len__(self) -> int:
        return len(self._data)

    def _begin(self, row: int) -> None:
        """Begin a pass at a row: images are read from that row on, and the accuracy starts anew."""
        rest = dataclasses.replace(self._data, positions=self._data.positions[row:])
        batches = ValidationBatches(rest, StoredOrder(len(rest), self.batch_size), self._transform, self.workers)
        self._pass = _Pass(iter(batches.to(self.device)), row, torch.zeros(0, self.model.width, device=self.device))
        self._counts = torch.zeros(3, dtype=torch.float64, device=sums_device(self.device))
        if self._class_numbers is not None:
            self._class_numbers = self._class_numbers.to(self.device)

    @torch.no_grad()
    def _activations(self, batch: ImageBatch) -> Tensor:
        """Return the activations of a batch, and count its correct classifications."""
        output = self.model.forward_both(batch["images"])
        if self._class_numbers is not None:
            self._counts += top_counts(output.logits, self._class_numbers[batch["targets"]])
        return output.activations.float()


class RunImages(NamedTuple):
    """Images to evaluate a model on, and how they are matched with the rows of a store."""

    images: LabelledImages
    join_on: JoinOn


def images_of_run(model: FineTuneModel, join_on: JoinOn | None = None) -> RunImages:
    """Open the held-out images of the run that trained a model, as its settings name them.

    Args:
        model: from `load_finetuned`.
        join_on: how images and rows are matched; None for the setting of the run.

    Raises:
        InputError: the model does not record its run, the run had no held-out images, or they have moved.
    """
    settings = (model.provenance.training or {}).get("data")
    if settings is None:
        raise InputError("images", "nothing", "the images of the store: the model does not record its training data")
    data = from_mapping(DataConfig, settings, "training.data", complete=True)
    if not data.validates:
        raise InputError("images", "nothing", "the images of the store: the model's run had no held-out images")
    return RunImages(LabelledImages(open_images(**data.source(held_out=True))), join_on or data.join_on)
