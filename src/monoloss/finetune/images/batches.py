"""Batches of prepared images, targets and embeddings; training resumes at any batch, bit for bit."""

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
from monoloss.errors import InputError
from monoloss.finetune.images.labelled import LabelledImages
from monoloss.finetune.images.mixing import BatchMixing
from monoloss.finetune.images.order import BatchRows, StoredOrder, TrainingOrder
from monoloss.finetune.images.transforms import TrainingTransform, Transform

_GRACE_S = 30  # that a worker lives on after SIGTERM


class ImageBatch(TypedDict):
    """What a model is trained or validated on.

    Attributes:
        images: `(n, 3, h, w)` float32.
        targets: `(n,)` int64, or `(n, n_classes)` float32 where the batch is mixed.
        embeddings: `(n, d)` float32, the stored rows at length 1 (mixed: what mixing makes of those); absent where
            there is no store.
        positions: `(n,)` int64, of the images in their source.
    """

    images: Float[Tensor, "n c h w"]
    targets: Tensor
    embeddings: NotRequired[Float[Tensor, "n d"]]
    positions: Int64[Tensor, " n"]


@dataclass(frozen=True)
class JoinedImages:
    """Images with the rows of a store that belong to them.

    Args:
        images: of a source.
        positions: which of these, in order; None for all.
        store: of their embeddings, or None.
        rows: of the store, one a position; None without a store.
    """

    images: LabelledImages
    positions: Int64[Tensor, " n"]
    store: FeatureStore | None = None
    rows: Int64[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def ids(self) -> list[str]:
        """Of the images, in order."""
        return [self.images.ids[position] for position in self.positions.tolist()]

    @property
    def fingerprint(self) -> str:
        """A hash of ids, labels and embeddings, to recognise the data by."""
        found = hashlib.sha256()
        for name, label in zip(self.ids, self.images.labels[self.positions].tolist(), strict=True):
            found.update(f"{name}\n{label}\n".encode("utf-8", "surrogateescape"))
        if self.store is not None and self.rows is not None:
            found.update(self.store.fingerprint.encode() + self.rows.numpy().tobytes())
        return found.hexdigest()

    def batch(self, numbers: Sequence[int], prepare: Callable[[int, Image.Image], Tensor]) -> ImageBatch:
        """Load rows by index; `prepare(position_in_batch, image)` returns the model's input."""
        chosen = torch.tensor(numbers)
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
    """Augmented batches in the order of a :class:`TrainingOrder`; iterating gives the rest of the current epoch.

    Then the next one begins. Augmentation follows from the seed, the epoch and the image (and its copy), mixing from
    the seed and the number of the batch: the number of workers, the processes that share a batch, and where a run was
    resumed change no bit of a batch. Mixing pairs neighbours in the batch of all processes: for its first row, one
    prepares the last image of the process before, too.

    Args:
        data: images, with or without embeddings.
        order: of the rows; its seed is that of the augmentation too.
        transform: of a picture.
        mixing: of a batch; None for none.
        workers: processes that decode and augment; 0 for this one.
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
        self.epoch = 0
        self.n_given = 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[ImageBatch]:
        first = self.n_given
        planned = list(self.order.batches(self.epoch, first))
        for i, batch in enumerate(_prepared(self._batch, planned, self.workers), start=first):
            self.n_given = i + 1
            if self.n_given == len(self):  # roll over before the last batch: a sized iterator is never asked again
                self.epoch, self.n_given = self.epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position of the iteration, and what identifies its data."""
        return {**self._identity(), "epoch": self.epoch, "n_given": self.n_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where another iteration over the same data stood, with any number of workers or processes.

        Raises:
            InputError: the state is of other data, another seed, or batches of another size.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise InputError(f"state[{name!r}]", state.get(name), f"that of these batches, {value}")
        self.epoch, self.n_given = state["epoch"], state["n_given"]

    def _identity(self) -> dict[str, Any]:
        order = self.order
        sizes = {"batch_size": order.batch_size, "accumulate": order.accumulate, "repeats": order.repeats}
        return {**sizes, "seed": order.seed, "data": self._fingerprint}

    def _batch(self, planned: BatchRows) -> ImageBatch:
        """Prepare one batch, in a worker or here."""
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
        if borrowed is not None:  # its own pair is not in this process
            batch["images"], batch["targets"] = batch["images"][1:], batch["targets"][1:]
            batch["positions"] = batch["positions"][1:]
            if "embeddings" in batch:
                batch["embeddings"] = batch["embeddings"][1:]
        return batch


class ValidationBatches:
    """Every image once over all processes, in stored order, prepared as for evaluation.

    Args:
        data: images, with or without embeddings.
        order: of the rows.
        transform: of a picture.
        workers: processes that decode; 0 for this one.
    """

    def __init__(self, data: JoinedImages, order: StoredOrder, transform: Transform, workers: int = 0) -> None:
        self.data, self.order, self.workers = data, order, workers
        self._transform = transform

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[ImageBatch]:
        return _prepared(self._batch, list(self.order.batches()), self.workers)

    def _batch(self, planned: BatchRows) -> ImageBatch:
        return self.data.batch(planned.rows, lambda _, picture: self._transform(picture))


class _Prepared:
    """What a DataLoader calls a data set: its items are whole batches, or why there is none."""

    def __init__(self, make: Callable[[BatchRows], ImageBatch]) -> None:
        self._make = make

    def __getitem__(self, planned: BatchRows) -> ImageBatch | InputError:
        try:
            return self._make(planned)
        except InputError as error:  # raised in a worker, it would come back as a traceback
            return error


def _prepared(
    make: Callable[[BatchRows], ImageBatch], planned: Sequence[BatchRows], workers: int
) -> Iterator[ImageBatch]:
    """Yield the batches in order, prepared by worker processes or in this one.

    Does not consume this process's random state.
    """
    loader: DataLoader[Any] = DataLoader(
        _Prepared(make),  # type: ignore[arg-type] # it has what the loader calls
        batch_size=None,
        sampler=planned,  # what it gives is handed to the data set
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn of any fork in a process with threads; the workers touch none of what these hold.
        warnings.filterwarnings("ignore", message=r".*multi-threaded, use of fork\(\)", category=DeprecationWarning)
        prepared = iter(loader)
    for left in range(len(planned) - 1, -1, -1):
        try:
            batch = next(prepared)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            expected = "fewer workers, a smaller batch_size, or more memory and shared memory (/dev/shm)"
            raise InputError("data.workers", f"one of {workers} processes that was killed", expected) from error
        if not left or isinstance(batch, InputError):
            del prepared  # ends the workers now: nobody may ask for more, and an error keeps what its frames hold
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _outlive_signals(_worker: int) -> None:
    """Ctrl-C and SIGTERM often reach all processes: the main one needs its batches to finish the step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S) and None)  # an alarm ends the process
