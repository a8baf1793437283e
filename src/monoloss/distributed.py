"""Several processes that work together, as torchrun starts them: who is who, and how they wait for each other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from monoloss.errors import InputError, first_line

LONGEST_WAIT = timedelta(days=30)  # the slowest process may need that much longer than the fastest


class Ranks:
    """The processes of a run, and which of them this is.

    Args:
        rank: number of this process.
        n_ranks: of all.
        group: how they talk; None for a single process.
    """

    def __init__(self, rank: int = 0, n_ranks: int = 1, group: Any = None) -> None:
        self.rank, self.n_ranks, self._group = rank, n_ranks, group

    def writes(self, shard: int) -> bool:
        """Whether a shard is this process's to write."""
        return shard % self.n_ranks == self.rank

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            InputError: another one has ended instead.
        """
        if self._group is None:
            return
        try:
            dist.all_reduce(torch.zeros(1), group=self._group)
        except RuntimeError as error:
            expected = "all of them until the end; the same command goes on from the shards that are written"
            raise InputError("ranks", "a process that has ended early", expected) from error

    def check_same(self, metadata: Mapping[str, object]) -> None:
        """Raise `InputError` unless all processes were given the same."""
        if self._group is None:
            return
        digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode("ascii")).digest()
        mine = torch.tensor(list(digest), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self.n_ranks)]
        dist.all_gather(all_of_them, mine, group=self._group)
        for rank, other in enumerate(all_of_them):
            if not torch.equal(other, all_of_them[0]):
                raise InputError("ranks", f"other arguments or images in process {rank} than in process 0", "the same")


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The processes that torchrun has started (RANK, WORLD_SIZE), or those of the process group that is there."""
    here = dist.is_available() and dist.is_initialized()
    if not here and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if not here:
        try:
            dist.init_process_group("gloo")
        except (ValueError, RuntimeError) as error:
            got = f"WORLD_SIZE={os.environ['WORLD_SIZE']} and processes that do not meet ({first_line(error)})"
            raise InputError("ranks", got, "processes that torchrun starts, or no WORLD_SIZE") from error
    try:
        n_ranks = dist.get_world_size()
        group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if n_ranks > 1 else None
        yield Ranks(dist.get_rank(), n_ranks, group)
    finally:
        if not here:
            dist.destroy_process_group()


@contextmanager
def training_processes() -> Iterator[Ranks]:
    """The processes that torchrun has started (RANK, WORLD_SIZE), ready to train together; alone without it.

    Raises:
        InputError: processes that do not meet; more on a machine than it has GPUs.
    """
    n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    ours = n_ranks > 1 and not dist.is_initialized()
    if ours and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError("processes", f"{local + 1} on this machine", "a GPU for each process")
        torch.cuda.set_device(local)
        dist.init_process_group("cuda:nccl,cpu:gloo")
    try:
        with joined_ranks() as ranks:
            yield ranks
    finally:
        if ours and dist.is_initialized():
            dist.destroy_process_group()


def processes_per_machine(n_ranks: int) -> int:
    """How many of the processes run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", n_ranks))
