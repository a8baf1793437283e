"""Which rows go together in a batch: an order from (seed, epoch), shared among processes, begun anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from monoloss.checks import check_number
from monoloss.errors import InputError
from monoloss.runs.shuffling import shuffled


class BatchRows(NamedTuple):
    """The rows of one batch, of one process.

    Args:
        number: of the batch in the whole run, from 0; the same in every process.
        epoch: from 0.
        rows: by number.
        copies: for repeated augmentation, which copy of its image each row is, from 0.
        before: the row in front of these in the batch of all processes, and its copy; None where one process has all.
    """

    number: int
    epoch: int
    rows: list[int]
    copies: list[int]
    before: tuple[int, int] | None = None


@dataclass(frozen=True)
class TrainingOrder:
    """Batches in an order that follows from ``(seed, epoch)`` alone; a new order every epoch.

    A batch is shared among the processes in equal parts, so one of 64 rows is the same 64 rows with one process or two.
    Rows that do not fill a batch, and batches that do not fill a step of ``accumulate`` batches, are left out of that
    epoch: a short batch would have statistics, and a MonoLoss, of its own.

    With ``repeats`` above 1 an epoch has as many batches as without, of fewer images: each batch holds ``repeats``
    copies of ``batch_size / repeats`` images. No copy stands beside another of the same image (mixing pairs
    neighbours), and processes get different copies where there are as many of them.

    Args:
        n_rows: rows there are.
        batch_size: rows of a batch, over all processes.
        seed: of the order.
        accumulate: batches of a step.
        repeats: copies of an image in a batch.
        rank: which process this is.
        world_size: how many there are.

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
        """The batches of an epoch from number `first` of it on."""
        n_images = self.batch_size // self.repeats
        order = shuffled(self.n_rows, self.seed, epoch)
        each = self.batch_size // self.world_size
        mine = slice(self.rank * each, (self.rank + 1) * each)
        copies = torch.arange(self.repeats).repeat_interleave(n_images)
        for i in range(first, len(self)):
            rows = order[i * n_images : (i + 1) * n_images].repeat(self.repeats)
            before = (int(rows[mine.start - 1]), int(copies[mine.start - 1])) if self.world_size > 1 else None
            yield BatchRows(epoch * len(self) + i, epoch, rows[mine].tolist(), copies[mine].tolist(), before)


@dataclass(frozen=True)
class StoredOrder:
    """Every row exactly once over all processes, in stored order; no row is repeated to fill a batch.

    All processes have the same number of batches, none of them empty, so that none waits for another; their sizes
    differ by one row at most.

    Args:
        n_rows: rows there are.
        batch_size: rows of a batch over all processes, at most (where it is less than the processes: one each).
        rank: which process this is.
        world_size: how many there are.

    Raises:
        InputError: there are fewer rows than processes.
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
        """The batches of this process."""
        parts = torch.arange(self.n_rows).tensor_split(len(self) * self.world_size)
        for i in range(len(self)):
            rows = parts[i * self.world_size + self.rank].tolist()
            yield BatchRows(i, 0, rows, [0] * len(rows))
