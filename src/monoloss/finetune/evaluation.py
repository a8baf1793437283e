"""What a fine-tuned model makes of the images behind the rows of a store, for `evaluate`."""

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


class _Pass(NamedTuple):
    """Where reading stands: what comes next, the row that is given next, and activations that are there already."""

    batches: Iterator[ImageBatch]
    next_row: int
    left: Tensor


class ImageActivations(nn.Module):
    """Activations of a fine-tuned model's layer on the images of a store, row by row those of the store.

    Images are joined with rows by id, read in the order of the rows, and prepared as the model was validated; a few at
    a time are in memory. For :func:`monoloss.evaluate`, which compares the store's embeddings.

    Args:
        model: on the device where it is to run; evaluation runs it in ``eval()``.
        images: one for each row, in any order; others may be among them.
        store: the rows.
        join_on: how a row finds its image: "id", or "name", the file name alone.
        batch_size: images that the model gets at a time.
        workers: processes that decode images; 0 for this one.

    Raises:
        InputError: a row without an image, or with one of another label; names that are not unique.

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
        ...     summary = evaluate(store, {"mine": ImageActivations(model, images, store)})["mine"].summary
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
        self._counts = torch.zeros(3, dtype=torch.float64)  # of this pass: rows, right, right among five

    @property
    def description(self) -> str:
        """What the activations are, in a few words."""
        return f"the layer of a fine-tuned {self.model.recipe['architecture']} on {self._data.images.description}"

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.new_layer.weight.device

    def rows(self, start: int, stop: int) -> Float[Tensor, "n m"]:
        """Activations of the rows ``start`` to ``stop`` (exclusive), float32, on ``device``.

        Rows that follow on those asked for last are the quick way: others begin to read anew.

        Raises:
            InputError: an image that cannot be read.
        """
        if start != self._pass.next_row:
            self._begin(start)
        current, there = self._pass, [self._pass.left]
        while sum(map(len, there)) < stop - start:
            there.append(self._activations(next(current.batches)))
        found = torch.cat([part.to(self.device) for part in there])
        self._pass = current._replace(next_row=stop, left=found[stop - start :])
        return found[: stop - start]

    def measures(self) -> dict[str, float]:
        """Accuracy over the rows asked for since row 0: ``top1`` and ``top5``.

        Nothing where the images have classes that the model does not know.
        """
        n, top1, top5 = self._counts.tolist()
        return {"top1": top1 / n, "top5": top5 / n} if n and self._class_numbers is not None else {}

    def model_metadata(self) -> dict[str, Any]:
        """The model's ``backbone``, and its ``training`` if that is known."""
        training = self.model.provenance.training
        known = {} if training is None else {"training": dict(training)}
        return {"backbone": self.model.recipe["architecture"]} | known

    def __len__(self) -> int:
        return len(self._data)

    def _begin(self, row: int) -> None:
        """Read images from those of a row on."""
        rest = dataclasses.replace(self._data, positions=self._data.positions[row:])
        batches = ValidationBatches(rest, StoredOrder(len(rest), self.batch_size), self._transform, self.workers)
        self._pass = _Pass(iter(batches), row, torch.zeros(0, self.model.width))
        self._counts = torch.zeros(3, dtype=torch.float64)

    @torch.no_grad()
    def _activations(self, batch: ImageBatch) -> Tensor:
        """Activations of some images, whose right classes are counted."""
        output = self.model.forward_both(batch["images"].to(self.device))
        if self._class_numbers is not None:
            targets = self._class_numbers[batch["targets"]].to(self.device)
            self._counts += top_counts(output.logits, targets)
        return output.activations.float()


class RunImages(NamedTuple):
    """Images to evaluate a model on, and how the rows of a store find them."""

    images: LabelledImages
    join_on: JoinOn


def images_of_run(model: FineTuneModel, join_on: JoinOn | None = None) -> RunImages:
    """The held-out images of the run that made a model.

    Args:
        model: from `load_finetuned`.
        join_on: in the place of the run's own.

    Raises:
        InputError: the run had no held-out images, or they are not where they were.
    """
    settings = (model.provenance.training or {}).get("data")
    if settings is None:
        raise InputError("images", "nothing", "the images of the store: the model does not say on what it was trained")
    data = from_mapping(DataConfig, settings, "training.data", complete=True)
    if not data.validates:
        raise InputError("images", "nothing", "the images of the store: the model's run had no held-out ones")
    return RunImages(LabelledImages(open_images(**data.source(held_out=True))), join_on or data.join_on)
