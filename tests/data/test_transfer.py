"""Copies to a device: the same batches in the same order, one ahead on a GPU (a stand-in), unchanged on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from monoloss.data import transfer
from monoloss.data.store import StoredBatch
from monoloss.data.transfer import DeviceCopies, on_device, on_devices, pinned, queue_copy, started_ahead
from monoloss.errors import InputError
from support import gpu_streams
from support.gpu_streams import GPU, FakeGpu, OnGpu, Pinned

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return gpu_streams.install(monkeypatch)


def batch_of(number: int) -> StoredBatch:
    return StoredBatch(10 * number, torch.full((2, 3), float(number)), torch.tensor([number, number + 1]))


def logged(log: list[str], n: int, fails_at: int | None = None) -> Iterator[StoredBatch]:
    for number in range(n):
        log.append(f"read {number}")
        if number == fails_at:
            raise InputError("file", "bytes that changed", "the file as it was")
        yield batch_of(number)
    log.append("end")


# Starting ahead


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_items_stay_in_order(n):
    assert list(started_ahead(lambda item: item * 10, range(n))) == [10 * item for item in range(n)]


def test_the_next_is_started_before_one_is_handed_out_and_no_more():
    log: list[str] = []

    def start(item: int) -> int:
        log.append(f"start {item}")
        return item

    log.extend(f"use {item}" for item in started_ahead(start, range(3)))
    assert log == ["start 0", "start 1", "use 0", "start 2", "use 1", "use 2"]


@pytest.mark.parametrize("in_start", [False, True])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_exception_comes_where_its_item_is_due(bad, in_start):
    def start(item: int) -> int:
        if in_start and item == bad:
            raise ValueError(item)
        return item

    def items() -> Iterator[int]:
        for item in range(4):
            if item == bad and not in_start:
                raise ValueError(item)
            yield item

    results = started_ahead(start, items())
    assert [next(results) for _ in range(bad)] == list(range(bad))
    with pytest.raises(ValueError, match=str(bad)):
        next(results)
    assert list(results) == []


def test_a_start_that_runs_out_does_not_end_the_items():
    """`next` of something empty in ``start``: taken for the end, it would drop the item and all after it."""

    def start(item: int) -> int:
        return next(iter(())) if item == 2 else item

    results = started_ahead(start, [1, 2, 3])
    assert next(results) == 1
    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        next(results)


def test_an_interrupt_comes_at_once():
    def items() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(started_ahead(lambda item: item, items()))


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_source_is_closed_when_the_caller_stops(gpu, device):
    closed = []

    def batches() -> Iterator[Tensor]:
        try:
            while True:
                yield torch.zeros(1)
        finally:
            closed.append(True)

    iterator = on_device(batches(), device)
    next(iterator)
    assert not closed
    del iterator
    assert closed


# On the CPU


def test_on_the_cpu_tensors_are_the_same_objects_and_nothing_is_read_ahead():
    log: list[str] = []
    source = [torch.zeros(2), torch.ones(2)]
    assert all(given is kept for given, kept in zip(on_device(source, CPU), source, strict=True))
    batch = batch_of(3)
    (given,) = on_device([batch], CPU)
    assert type(given) is StoredBatch
    assert given.start == batch.start
    assert given.embeddings is batch.embeddings
    assert given.labels is batch.labels
    for number, given in enumerate(on_device(logged(log, 2), CPU)):
        log.append(f"use {given.start}")
        assert len(log) == 2 * number + 2
    assert log == ["read 0", "use 0", "read 1", "use 10", "end"]
    rows = torch.zeros(2)
    assert queue_copy(rows, CPU) is rows
    assert pinned(rows, CPU) is rows
    assert pinned(rows, None) is rows
    assert DeviceCopies(CPU).fetch(rows)() is rows


def test_on_the_cpu_no_batch_is_kept():
    iterator = on_device((torch.zeros(3) for _ in range(3)), CPU)
    alive = [ref(next(iterator))]
    alive.append(ref(next(iterator)))
    gc.collect()
    assert alive[0]() is None


# To a GPU


def values(batch: Any) -> tuple[int, list[Any], list[Any] | None]:
    labels = None if batch.labels is None else batch.labels.values().tolist()
    return batch.start, batch.embeddings.values().tolist(), labels


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_batches_arrive_on_the_gpu_as_they_were(gpu, n):
    given = []
    for batch in on_device((batch_of(number) for number in range(n)), GPU):
        assert isinstance(batch, StoredBatch)
        assert isinstance(batch.embeddings, OnGpu)
        assert isinstance(batch.labels, OnGpu)
        given.append(values(batch))  # NaN where the copy has not been waited for
    assert given == [(b.start, b.embeddings.tolist(), b.labels.tolist()) for b in map(batch_of, range(n))]


def test_the_next_copy_is_queued_before_a_batch_is_handed_out_and_not_waited_for(gpu):
    batches = on_device((torch.full((1,), float(number)) for number in range(3)), GPU)
    first = next(batches)
    assert gpu.log == [
        "stream 1 copies to the GPU",
        "stream 1 copies to the GPU",
        "compute waits for stream 1",
        "memory kept for compute",
    ]
    gpu.log.clear()
    next(batches)
    next(batches)
    assert gpu.log == [
        "stream 1 copies to the GPU",
        *["compute waits for stream 1", "memory kept for compute"] * 2,
    ]
    assert first.values().tolist() == [0.0]


def test_only_the_copy_that_is_needed_is_waited_for(gpu):
    copies = DeviceCopies(GPU)
    first, second = copies.send(torch.tensor([1.0])), copies.send(torch.tensor([2.0]))
    assert first().values().tolist() == [1.0]
    assert len(copies._there.queued) == 1  # the second copy
    assert second().values().tolist() == [2.0]


def test_an_error_of_the_source_comes_after_the_batches_before_it(gpu):
    log: list[str] = []
    batches = on_device(logged(log, 4, fails_at=2), GPU)
    assert [next(batches).start, next(batches).start] == [0, 10]
    with pytest.raises(InputError, match="file: got bytes that changed"):
        next(batches)
    assert log == ["read 0", "read 1", "read 2"]


def test_mappings_and_what_is_no_tensor(gpu):
    batch = {"rows": torch.ones(2), "none": None, "name": "a", "inner": StoredBatch(4, torch.zeros(1, 1), None)}
    (given,) = on_device([batch], GPU)
    assert list(given) == list(batch)
    assert given["rows"].values().tolist() == [1.0, 1.0]
    assert (given["none"], given["name"], given["inner"].start, given["inner"].labels) == (None, "a", 4, None)
    assert isinstance(given["inner"].embeddings, OnGpu)


def test_what_is_pinned_or_on_the_gpu_is_not_copied_again(gpu, monkeypatch):
    rows = pinned(torch.ones(2), GPU)
    assert isinstance(rows, Pinned)
    (on_gpu,) = on_device([rows], GPU)
    gpu.log.clear()
    (same,) = on_device([on_gpu], GPU)
    assert same is on_gpu
    assert not [line for line in gpu.log if "copies" in line]
    assert pinned(on_gpu, GPU) is on_gpu


def test_several_devices_get_each_batch_from_one_reading(gpu):
    log: list[str] = []
    given = list(on_devices(logged(log, 3), [CPU, GPU, CPU]))
    assert log == ["read 0", "read 1", "read 2", "end"]
    for number, batches in enumerate(given):
        assert list(batches) == [CPU, GPU]
        assert torch.equal(batches[CPU].embeddings, batch_of(number).embeddings)
        assert values(batches[GPU])[0] == batches[CPU].start
        assert values(batches[GPU])[1] == batches[CPU].embeddings.tolist()


# Back from a GPU


def test_rows_are_copied_back_beside_the_work_and_waited_for_when_asked(gpu):
    copies = DeviceCopies(GPU)
    rows = torch.tensor([1.0, 2.0]).as_subclass(OnGpu)
    fetched = copies.fetch(rows)
    assert gpu.log == ["stream 2 waits for compute", "stream 2 copies back", "memory kept for stream 2"]
    copies.send(torch.zeros(1))()  # does not queue behind the copy back
    gpu.log.clear()
    given = fetched()
    assert gpu.log == ["process waits for stream 2"]
    assert type(given) is Tensor
    assert given.tolist() == [1.0, 2.0]


def test_rows_that_an_encoder_gives_on_the_cpu_are_taken_as_they_are(gpu):
    rows = torch.zeros(2)
    assert DeviceCopies(GPU).fetch(rows)() is rows
    assert gpu.log == []


@pytest.mark.parametrize("wrong", ["no wait", "not pinned", "one stream"])
def test_the_stand_in_rejects_wrong_copies(gpu, monkeypatch, wrong):
    if wrong == "not pinned":
        monkeypatch.setattr(transfer, "pinned", lambda tensor, _: tensor)
        with pytest.raises(AssertionError, match="memory that is not pinned"):
            list(on_device([torch.zeros(1)], GPU))
    elif wrong == "no wait":
        monkeypatch.setattr(gpu_streams.Stream, "wait_event", lambda *_: None)
        (batch,) = on_device([torch.zeros(1)], GPU)
        assert batch.values().isnan().all()
    else:
        copies = DeviceCopies(GPU)
        copies._back = copies._there
        copies.fetch(torch.zeros(1).as_subclass(OnGpu))
        gpu.log.clear()
        copies.send(torch.zeros(1))()
        assert copies._there.queued == []  # the copy to the GPU took the copy back with it
