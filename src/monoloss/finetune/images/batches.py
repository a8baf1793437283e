"""Batches of transformed images, targets and embeddings; training can be resumed at any batch, bit for bit."""

from __future__ import annotations

import hashlib
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from monoloss.data.store import FeatureStore
from monoloss.data.transfer import on_device
from monoloss.errors import InputError
from monoloss.finetune.images.labelled import LabelledImages
from monoloss.finetune.images.mixing import BatchMixing
from monoloss.finetune.images.order import BatchRows, StoredOrder, TrainingOrder
from monoloss.finetune.images.transforms import TrainingTransform, Transform

_GRACE_S = 30  # seconds that a worker lives on after SIGTERM


class ImageBatch(TypedDict):
    """A batch of training or validation."""

    images: Float[Tensor, "n c h w"]
    """Transformed images `(n, 3, h, w)`, float32."""
    targets: Tensor
    """Class numbers `(n,)` int64; in a mixed batch the shares of the classes, `(n, n_classes)` float32."""
    embeddings: NotRequired[Float[Tensor, "n d"]]
    """Stored rows at length 1, `(n, d)` float32, mixed as the images are; absent without a store."""
    positions: Int64[Tensor, " n"]
    """Positions of the images in their source, `(n,)` int64."""


@dataclass(frozen=True)
class JoinedImages:
    """A selection of labelled images, each with the row of a store that holds its embedding."""

    images: LabelledImages
    positions: Int64[Tensor, " n"]
    """Positions of the selected images in `images`, in the order of the selection."""
    store: FeatureStore | None = None
    """Store of the embeddings; None for images without embeddings."""
    rows: Int64[Tensor, " n"] | None = None
    """Row of the store for each position; None without a store."""

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def ids(self) -> list[str]:
        """Ids of the selected images, in order."""
        return [self.images.ids[position] for position in self.positions.tolist()]

    @property
    def fingerprint(self) -> str:
        """A hash of ids, labels and embeddings, by which a resumed run recognises its data."""
        digest = hashlib.sha256()
        for name, label in zip(self.ids, self.images.labels[self.positions].tolist(), strict=True):
            digest.update(f"{name}\n{label}\n".encode("utf-8", "surrogateescape"))
        if self.store is not None and self.rows is not None:
            digest.update(self.store.fingerprint.encode() + self.rows.numpy().tobytes())
        return digest.hexdigest()

    def batch(self, indices: Sequence[int], prepare: Callable[[int, Image.Image], Tensor]) -> ImageBatch:
        """Load images, by index in the selection; `prepare(index_in_batch, image)` returns the model's input."""
        chosen = torch.tensor(indices)
        positions = self.positions[chosen]
        pictures = [prepare(i, self.images.read(position)) for i, position in enumerate(positions.tolist())]
        batch: ImageBatch = {
            "images": torch.stack(pictures),
            "targets": self.images.labels[positions],
            "positions": positions,
        }
        if self.store is not None and self.rows is not None:
            batch["embeddings"] = F.normalize(self.store.rows(self.rows[chosen]).cpu(), dim=1)
        return batch


class TrainingBatches:
    """Augmented batches in the order of a :class:`TrainingOrder`; each iteration yields the rest of the current epoch.

    The random choices of augmentation depend on the seed, the epoch, the image and its copy; those of mixing on the
    seed and the number of the batch. So no bit of a batch depends on the number of workers, on how many processes share
    the batch, or on where the run was resumed. Mixing pairs neighbours in the batch of all processes: each process also
    prepares the last image of the process before it, as the partner of its first row.

    Args:
        data: images, with or without embeddings.
        order: rows of each batch; its seed is the seed of augmentation and mixing too.
        transform: augmentation of one image.
        mixing: mixup or cutmix of a batch; None mixes nothing.
        workers: processes that decode and augment; 0 prepares batches in this process.
    """

    def __init__(
        self,
        data: JoinedImages,
        order: TrainingOrder,
        transform: TrainingTransform,
        mixing: BatchMixing | None = None,
        workers: int = 0,
    ) -> None:
        self.data, self.order, self.workers = data, order, workers
        self._transform, self._mixing = transform, mixing
        self._fingerprint = data.fingerprint
        self._device = torch.device("cpu")
        self.epoch = 0
        self.n_given = 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[ImageBatch]:
        first = self.n_given
        planned = list(self.order.batches(self.epoch, first))
        batches = on_device(_prepared(self._batch, planned, self.workers), self._device)
        for i, batch in enumerate(batches, start=first):  # counts none that is prepared ahead
            self.n_given = i + 1
            if self.n_given == len(self):  # before the last yield: Lightning never asks a sized iterator again
                self.epoch, self.n_given = self.epoch + 1, 0
            yield batch

    def to(self, device: torch.device) -> TrainingBatches:
        """Give the batches on ``device`` from the next iteration on; to a GPU each is copied a batch ahead."""
        self._device = device
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the batches given in it, and what identifies the data: sizes, seed and fingerprint."""
        return {**self._identity(), "epoch": self.epoch, "n_given": self.n_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch of another iteration over the same data, under any workers or processes.

        Raises:
            InputError: the state is of other data, another seed, or batches of another size.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise InputError(f"state[{name!r}]", state.get(name), f"that of these batches, {value}")
        self.epoch, self.n_given = state["epoch"], state["n_given"]

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for a state to fit these batches."""
        order = self.order
        sizes = {"batch_size": order.batch_size, "accumulate": order.accumulate, "repeats": order.repeats}
        return {**sizes, "seed": order.seed, "data": self._fingerprint}

    def _batch(self, planned: BatchRows) -> ImageBatch:
        """Prepare one batch, in a worker or in this process."""
        rows, copies = planned.rows, planned.copies
        borrowed = planned.before if self._mixing is not None else None
        if borrowed is not None:
            rows, copies = [borrowed[0], *rows], [borrowed[1], *copies]
        seed, positions = self.order.seed, self.data.positions[rows].tolist()

        def prepare(i: int, picture: Image.Image) -> Tensor:
            return self._transform(picture, seed, planned.epoch, positions[i], copies[i])

        batch = self.data.batch(rows, prepare)
        if self._mixing is not None:
            embeddings = batch.get("embeddings")
            mixed = self._mixing(batch["images"], batch["targets"], embeddings, seed, planned.number)
            batch["images"], batch["targets"] = mixed.images, mixed.targets
            if mixed.embeddings is not None:
                batch["embeddings"] = mixed.embeddings
        if borrowed is not None:  # drop the row of the process before: it was only to be mixed with
            batch["images"], batch["targets"] = batch["images"][1:], batch["targets"][1:]
            batch["positions"] = batch["positions"][1:]
            if "embeddings" in batch:
                batch["embeddings"] = batch["embeddings"][1:]
        return batch


class ValidationBatches:
    """Batches in which each image appears once over all processes, in stored order, transformed as for evaluation.

    Args:
        data: images, with or without embeddings.
        order: rows of each batch.
        transform: preprocessing of one image.
        workers: processes that decode; 0 prepares batches in this process.
    """

    def __init__(self, data: JoinedImages, order: StoredOrder, transform: Transform, workers: int = 0) -> None:
        self.data, self.order, self.workers = data, order, workers
        self._transform = transform
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[ImageBatch]:
        return on_device(_prepared(self._batch, list(self.order.batches()), self.workers), self._device)

    def to(self, device: torch.device) -> ValidationBatches:
        """Give the batches on ``device`` from the next iteration on; to a GPU each is copied a batch ahead."""
        self._device = device
        return self

    def _batch(self, planned: BatchRows) -> ImageBatch:
        return self.data.batch(planned.rows, lambda _, picture: self._transform(picture))


class _Prepared:
    """The data set of a DataLoader: each item is a whole batch, or the error that its preparation raised."""

    def __init__(self, make: Callable[[BatchRows], ImageBatch]) -> None:
        self._make = make

    def __getitem__(self, planned: BatchRows) -> ImageBatch | InputError:
        try:
            return self._make(planned)
        except InputError as error:  # raised in a worker, its text would become a traceback
            return error


def _prepared(
    make: Callable[[BatchRows], ImageBatch], planned: Sequence[BatchRows], workers: int
) -> Iterator[ImageBatch]:
    """Yield the planned batches in order, made by worker processes or in this one.

    Does not consume this process's random state.
    """
    loader: DataLoader[Any] = DataLoader(
        _Prepared(make),  # type: ignore[arg-type] # it has the one method that the loader calls
        batch_size=None,
        sampler=planned,  # its items are the arguments of `_Prepared.__getitem__`
        num_workers=workers,
        collate_fn=_identical,
        pin_memory=torch.cuda.is_available(),  # for `on_device`; only a GPU shows that it pins nothing twice
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn of any fork in a process with threads; the workers take none of their locks.
        warnings.filterwarnings("ignore", message=r".*multi-threaded, use of fork\(\)", category=DeprecationWarning)
        prepared = iter(loader)
    for n_left in range(len(planned) - 1, -1, -1):
        try:
            batch = next(prepared)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            expected = "fewer workers, a smaller batch_size, or more memory and shared memory (/dev/shm)"
            raise InputError("data.workers", f"one of {workers} processes that was killed", expected) from error
        if not n_left or isinstance(batch, InputError):
            del prepared  # ends the workers now: nobody may ask for more, and a raised error would keep them alive
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _identical(batch: Any) -> Any:
    """Return the batch as it is; unlike a lambda, it can be pickled for workers that are spawned."""
    return batch


def _outlive_signals(_worker: int) -> None:
    """Make a worker ignore SIGINT, and end only `_GRACE_S` seconds after SIGTERM.

    Both signals often reach all processes of a job, and the main one needs batches to finish its step and save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S) and None)  # an alarm ends the process
