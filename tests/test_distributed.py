"""Processes that work together, seen from one of them; two that really run are in tests/behaviour."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from monoloss.distributed import Ranks, joined_ranks, processes_per_machine, training_processes
from monoloss.errors import InputError


@pytest.fixture(autouse=True)
def _without_torchrun(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("joined", [joined_ranks, training_processes])
def test_a_process_alone_writes_everything_and_waits_for_nobody(joined):
    with joined() as ranks:
        assert (ranks.rank, ranks.n_ranks) == (0, 1)
        assert all(ranks.writes(shard) for shard in range(5))
        ranks.wait()
        ranks.check_same({"a": 1})
    assert not dist.is_initialized()


def test_each_shard_is_written_by_one_process():
    for shard in range(7):
        assert [rank for rank in range(3) if Ranks(rank, 3).writes(shard)] == [shard % 3]


def test_an_existing_group_is_joined_and_left_as_it_is(monkeypatch):
    destroyed = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "new_group", lambda **options: options["backend"])
    monkeypatch.setattr(dist, "destroy_process_group", lambda: destroyed.append(1))
    for joined in (joined_ranks, training_processes):
        with joined() as ranks:
            assert (ranks.rank, ranks.n_ranks, ranks._group) == (1, 2, "gloo")
    assert destroyed == []


def test_how_many_processes_run_on_this_machine(monkeypatch):
    assert processes_per_machine(8) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_per_machine(8) == 4


@pytest.mark.door
def test_another_process_with_other_arguments_is_named(monkeypatch):
    def gather(digests, digest, group):
        for rank, gathered in enumerate(digests):
            gathered.copy_(digest + (rank == differing))

    monkeypatch.setattr(dist, "all_gather", gather)
    ranks, differing = Ranks(0, 3, group="a group"), 7
    ranks.check_same({"a": 1})
    differing = 2
    with pytest.raises(InputError) as caught:
        ranks.check_same({"a": 1})
    assert str(caught.value) == "ranks: got other arguments or images in process 2 than in process 0; expected the same"


@pytest.mark.door
def test_a_process_that_has_ended_is_an_error_of_the_others(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(dist, "all_reduce", broken)
    with pytest.raises(InputError) as caught:
        Ranks(0, 2, group="a group").wait()
    expected = "all of them until the end; the same command resumes after the written shards"
    assert str(caught.value) == f"ranks: got a process that has ended early; expected {expected}"


@pytest.mark.door
def test_processes_that_cannot_connect(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError) as caught:
        joined_ranks().__enter__()
    assert str(caught.value).startswith("ranks: got WORLD_SIZE=2 and processes that cannot connect (")
    assert caught.value.expected == "processes that torchrun starts, or no WORLD_SIZE"


@pytest.mark.door
def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError) as caught:
        training_processes().__enter__()
    assert str(caught.value) == "processes: got 4 on this machine; expected a GPU for each process"
