"""The rows of each batch: shuffled by (seed, epoch) for training, in stored order for validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from monoloss.checks import check_number
from monoloss.errors import InputError
from monoloss.runs.shuffling import shuffled


class BatchRows(NamedTuple):
    """The part of one batch that one process prepares."""

    number: int
    """Number of the batch in the whole run, from 0; the same in every process."""
    epoch: int
    """Number of the epoch, from 0."""
    rows: list[int]
    """Indices of the rows."""
    copies: list[int]
    """For each row, which copy of its image it is, from 0; above 0 only in repeated augmentation."""
    before: tuple[int, int] | None = None
    """Row before the first of `rows` in the batch of all processes, and its copy; None with a single process."""


@dataclass(frozen=True)
class TrainingOrder:
    """Training batches in an order that depends on ``(seed, epoch)`` alone; a new order every epoch.

    A batch is divided equally among the processes: the rows of a batch are the same with one process or more. Rows that
    do not fill a batch, and batches that do not fill a step of ``accumulate`` batches, are left out of that epoch,
    because batch norm and MonoLoss depend on the size of a batch.

    With ``repeats`` above 1 an epoch has as many batches, of fewer images: each batch holds ``repeats`` copies of
    ``batch_size / repeats`` images. Copies of an image are never neighbours in a batch (mixing pairs neighbours), and
    with as many processes as copies each process gets one copy.

    Args:
        n_rows: number of rows of the data.
        batch_size: rows of a batch, over all processes.
        seed: seed of the order.
        accumulate: batches of an optimiser step.
        repeats: copies of an image in a batch.
        rank: number of this process, from 0.
        world_size: number of processes.

    Raises:
        InputError: a step is larger than the data, or a batch cannot be shared among the processes or copies.
    """

    n_rows: int
    batch_size: int
    seed: int
    accumulate: int = 1
    repeats: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("n_rows", "batch_size", "accumulate", "repeats", "world_size"):
            check_number(name, getattr(self, name), at_least=1, integer=True)
        check_number("rank", self.rank, at_least=0, below=self.world_size, integer=True)
        if self.batch_size > self.n_rows:
            raise InputError("batch_size", self.batch_size, f"at most the images to train on, {self.n_rows}")
        if self.batch_size * self.accumulate > self.n_rows:
            expected = f"batches that hold no more than the images to train on, {self.n_rows}"
            raise InputError("accumulate_batches", f"{self.accumulate} of {self.batch_size} images", expected)
        for name, value in (("processes", self.world_size), ("augmentation.repeats", self.repeats)):
            if self.batch_size % value:
                raise InputError(name, value, f"a divisor of batch_size, {self.batch_size}")

    def __len__(self) -> int:
        return self.n_rows // (self.batch_size * self.accumulate) * self.accumulate

    def batches(self, epoch: int, first: int = 0) -> Iterator[BatchRows]:
        """Yield this process's part of the batches of an epoch, from the epoch's batch number `first` on."""
        n_images = self.batch_size // self.repeats
        order = shuffled(self.n_rows, self.seed, epoch)
        n_each = self.batch_size // self.world_size
        part = slice(self.rank * n_each, (self.rank + 1) * n_each)
        copies = torch.arange(self.repeats).repeat_interleave(n_images)
        for i in range(first, len(self)):
            rows = order[i * n_images : (i + 1) * n_images].repeat(self.repeats)
            before = (int(rows[part.start - 1]), int(copies[part.start - 1])) if self.world_size > 1 else None
            yield BatchRows(epoch * len(self) + i, epoch, rows[part].tolist(), copies[part].tolist(), before)


@dataclass(frozen=True)
class StoredOrder:
    """Validation batches in stored order, with each row exactly once over all processes, whatever their number.

    All processes have the same number of batches, none of them empty, so that none waits for another; the sizes of the
    batches differ by one row at most.

    Args:
        n_rows: number of rows of the data.
        batch_size: largest number of rows of a batch over all processes; at least one row for each process.
        rank: number of this process, from 0.
        world_size: number of processes.

    Raises:
        InputError: fewer rows than processes.
    """

    n_rows: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("n_rows", "batch_size", "world_size"):
            check_number(name, getattr(self, name), at_least=1, integer=True)
        check_number("rank", self.rank, at_least=0, below=self.world_size, integer=True)
        if self.n_rows < self.world_size:
            raise InputError("processes", self.world_size, f"at most the held-out images, {self.n_rows}")

    def __len__(self) -> int:
        return min(-(-self.n_rows // self.batch_size), self.n_rows // self.world_size)

    def batches(self) -> Iterator[BatchRows]:
        """Yield this process's part of the batches."""
        parts = torch.arange(self.n_rows).tensor_split(len(self) * self.world_size)
        for i in range(len(self)):
            rows = parts[i * self.world_size + self.rank].tolist()
            yield BatchRows(i, 0, rows, [0] * len(rows))
