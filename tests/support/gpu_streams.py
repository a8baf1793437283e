"""A stand-in for the streams of a GPU, which run late, so that what is read before its copy is waited for is wrong.

Only copies are imitated. A tensor "on the GPU" is an `OnGpu` in the machine's memory, full of NaN (integers: -1) until
the copy to it has run. The stream that computes runs at once; others run their copies when an event behind them is
waited for, never before. A copy that would make the process wait is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from monoloss.data import transfer
from monoloss.training import batches as batches_module
from monoloss.training.batches import ShuffledBatches

GPU = torch.device("cuda", 0)
_to = torch.Tensor.to


class Pinned(Tensor):
    """A tensor in pinned memory."""

    def pin_memory(self, *_: Any) -> Pinned:
        return self


class OnGpu(Tensor):
    """A tensor on the GPU."""

    @property
    def device(self) -> torch.device:
        return GPU

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        raise AssertionError("the process waits for a copy to the CPU")

    def values(self) -> Tensor:
        """The values, for the test."""
        return self.as_subclass(Tensor).clone()


class Stream:
    """A stream; `queued` holds what has not run yet."""

    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.gpu, self.name = gpu, name
        self.queued: list[Callable[[], object]] = []

    def queue(self, work: Callable[[], object]) -> None:
        self.queued.append(work)
        if self is self.gpu.compute:
            self.run(1)

    def run(self, n: int) -> None:
        for work in self.queued[:n]:
            work()
        del self.queued[:n]

    def record_event(self) -> Event:
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self.gpu.log.append(f"{self.name} waits for {event.stream.name}")
        event.run()

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(Event(other))


class Event:
    """The place behind all that a stream has been given so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.behind = stream, list(stream.queued)

    def run(self) -> None:
        left = [work for work in self.stream.queued if work in self.behind]
        self.stream.run(len(left))

    def synchronize(self) -> None:
        self.stream.gpu.log.append(f"process waits for {self.stream.name}")
        self.run()


class FakeGpu:
    """The streams of a GPU, and a log of the copies and of who waited for what."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.compute = Stream(self, "compute")
        self.current = self.compute
        self._n_streams = 0

    def new_stream(self, device: Any) -> Stream:
        self._n_streams += 1
        return Stream(self, f"stream {self._n_streams}")

    @contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`."""
        target = torch.device(args[0]) if args and isinstance(args[0], str | torch.device) else None
        if target is None or target.type == tensor.device.type == "cpu":
            return _to(tensor, *args, **kwargs)
        if target.type == tensor.device.type:
            return tensor
        assert kwargs.get("non_blocking"), f"the process waits for a copy to {target}"
        if target.type == "cuda":
            assert isinstance(tensor, Pinned), "the process waits for a copy from memory that is not pinned"
            self.log.append(f"{self.current.name} copies to the GPU")
            return self._copied(tensor.as_subclass(Tensor)).as_subclass(OnGpu)
        self.log.append(f"{self.current.name} copies back")
        return self._copied(tensor.as_subclass(Tensor))

    def _copied(self, source: Tensor) -> Tensor:
        copy = torch.full_like(source, torch.nan if source.is_floating_point() else -1)
        self.current.queue(lambda: copy.copy_(source))
        return copy

    def record_stream(self, tensor: Tensor, stream: Stream) -> None:
        """`Tensor.record_stream`."""
        assert isinstance(tensor, OnGpu)
        self.log.append(f"memory kept for {stream.name}")


def install(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Let the calls of torch that copy to and from a GPU go to a stand-in until the end of the test."""
    gpu = FakeGpu()

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return gpu.to(tensor, *args, **kwargs)

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        gpu.record_stream(tensor, stream)

    monkeypatch.setattr(torch.cuda, "Stream", gpu.new_stream)
    monkeypatch.setattr(torch.cuda, "stream", gpu.on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: gpu.current)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor.clone().as_subclass(Pinned))
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    return gpu


class CopiesOnCpu:
    """In place of `DeviceCopies`: copies that stay on the CPU, where a model can be trained on them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, batch: Tensor) -> Callable[[], Tensor]:
        copy = batch.clone()
        return lambda: copy


def send_training_batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let SAE training on the CPU send its batches as to a GPU, one ahead; return the list of batches that are read."""
    read: list[Tensor] = []

    def to_gpu(batches: ShuffledBatches, _: torch.device) -> ShuffledBatches:
        return to(batches, GPU)

    def kept(rows: Tensor, _: torch.device) -> Tensor:
        read.append(rows)
        return rows

    to = ShuffledBatches.to
    monkeypatch.setattr(ShuffledBatches, "to", to_gpu)
    monkeypatch.setattr(batches_module, "pinned", kept)
    monkeypatch.setattr(transfer, "DeviceCopies", CopiesOnCpu)
    return read
