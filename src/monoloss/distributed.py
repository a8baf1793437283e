"""Processes that work together, as torchrun starts them: their ranks, waiting for each other, comparing arguments."""

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

LONGEST_WAIT = timedelta(days=30)  # by which the slowest process may be behind the fastest


class Ranks:
    """The rank of this process, and the communication with the other processes of a run.

    Args:
        rank: number of this process, from 0.
        n_ranks: number of processes.
        group: torch's process group; None for a single process.
    """

    def __init__(self, rank: int = 0, n_ranks: int = 1, group: Any = None) -> None:
        self.rank, self.n_ranks, self._group = rank, n_ranks, group

    def writes(self, shard: int) -> bool:
        """Whether this process is the one that writes the shard with this number."""
        return shard % self.n_ranks == self.rank

    def wait(self) -> None:
        """Wait until all processes have called this.

        Raises:
            InputError: another process has ended instead.
        """
        if self._group is None:
            return
        try:
            dist.all_reduce(torch.zeros(1), group=self._group)
        except RuntimeError as error:
            expected = "all of them until the end; the same command resumes after the written shards"
            raise InputError("ranks", "a process that has ended early", expected) from error

    def check_same(self, metadata: Mapping[str, object]) -> None:
        """Raise `InputError`, with the rank, where a process passes other ``metadata`` (JSON values) than process 0."""
        if self._group is None:
            return
        digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode("ascii")).digest()
        local_digest = torch.tensor(list(digest), dtype=torch.uint8)
        digests = [torch.empty_like(local_digest) for _ in range(self.n_ranks)]
        dist.all_gather(digests, local_digest, group=self._group)
        for rank, rank_digest in enumerate(digests):
            if not torch.equal(rank_digest, digests[0]):
                raise InputError("ranks", f"other arguments or images in process {rank} than in process 0", "the same")


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun has started (RANK, WORLD_SIZE), or those of torch's existing process group.

    Without either the block gets the `Ranks` of a single process.

    Raises:
        InputError: WORLD_SIZE is above 1, but the processes cannot connect.
    """
    is_joined = dist.is_available() and dist.is_initialized()
    if not is_joined and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if not is_joined:
        try:
            dist.init_process_group("gloo")
        except (ValueError, RuntimeError) as error:
            got = f"WORLD_SIZE={os.environ['WORLD_SIZE']} and processes that cannot connect ({first_line(error)})"
            raise InputError("ranks", got, "processes that torchrun starts, or no WORLD_SIZE") from error
    try:
        n_ranks = dist.get_world_size()
        group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if n_ranks > 1 else None
        yield Ranks(dist.get_rank(), n_ranks, group)
    finally:
        if not is_joined:
            dist.destroy_process_group()


@contextmanager
def training_processes() -> Iterator[Ranks]:
    """Join processes as `joined_ranks`, for training: each has a GPU of its own if the machine has any.

    Raises:
        InputError: the processes cannot connect, or a machine with GPUs runs more processes than it has GPUs.
    """
    n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    starts_group = n_ranks > 1 and not dist.is_initialized()
    if starts_group and torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise InputError("processes", f"{local_rank + 1} on this machine", "a GPU for each process")
        torch.cuda.set_device(local_rank)
        dist.init_process_group("cuda:nccl,cpu:gloo")
    try:
        with joined_ranks() as ranks:
            yield ranks
    finally:
        if starts_group and dist.is_initialized():
            dist.destroy_process_group()


def processes_per_machine(n_ranks: int) -> int:
    """Return how many of the ``n_ranks`` processes run on this machine, as torchrun says; without torchrun all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", n_ranks))
