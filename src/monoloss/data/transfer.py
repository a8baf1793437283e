"""Copies between the memory of the machine and a GPU that run beside the work of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")
Item = TypeVar("Item")
Started = TypeVar("Started")


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches with their tensors on a device; to a GPU each is copied while the caller works on the one before.

    Then the source is one batch ahead: it has been asked for the next batch before the caller gets one. A position that
    a checkpoint saves therefore counts the batches that this iterator yields. Elsewhere batches pass as they come.

    Args:
        batches: tensors, or mappings and named tuples of tensors; what is no tensor stays as it is. An exception of
            this iterator is raised when its batch is due.
        device: where the batches are needed.
    """
    return map(itemgetter(device), on_devices(batches, [device]))


def on_devices(batches: Iterable[Batch], devices: Iterable[torch.device]) -> Iterator[Mapping[torch.device, Batch]]:
    """Yield each batch on several devices, by device; as `on_device` does on one."""
    copies = [DeviceCopies(device) for device in dict.fromkeys(devices)]

    def send(batch: Batch) -> list[tuple[torch.device, Callable[[], Batch]]]:
        return [(one.device, one.send(batch)) for one in copies]

    def receive(sent: list[tuple[torch.device, Callable[[], Batch]]]) -> Mapping[torch.device, Batch]:
        return {device: received() for device, received in sent}

    needs_time = any(one.device.type == "cuda" for one in copies)
    return map(receive, started_ahead(send, batches) if needs_time else map(send, batches))


def started_ahead(start: Callable[[Item], Started], items: Iterable[Item]) -> Iterator[Started]:
    """Yield ``start(item)`` for each item, in order; the next one is started before the caller gets the current one.

    An exception of ``items`` or ``start`` is raised when that item is due.
    """
    started: list[Started] = []
    try:
        for item in items:
            started.append(start(item))
            if len(started) == 2:
                yield started.pop(0)
    except Exception:
        yield from started
        raise
    yield from started


class DeviceCopies:
    """Copies of batches to a device, and of tensors back from it.

    To and from a GPU they use pinned memory and streams of their own, so that neither the process nor the GPU's work
    waits for them; the work that needs a copy does. Elsewhere tensors are copied at once, or not at all on the CPU.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._there: torch.cuda.Stream | None = None
        self._back: torch.cuda.Stream | None = None  # another one: a copy back waits for work, which none to it need
        if device.type == "cuda":
            self._there, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def send(self, batch: Batch) -> Callable[[], Batch]:
        """Begin to copy a batch to the device; return a function that gives it there.

        On a GPU the function makes the work that the caller queues from then on wait for the copy.
        """
        stream = self._there
        if stream is None:
            return lambda: _with_tensors(batch, lambda tensor: tensor.to(self.device))
        sent: list[Tensor] = []

        def queue(tensor: Tensor) -> Tensor:
            sent.append(queue_copy(tensor, self.device))
            return sent[-1]

        with torch.cuda.stream(stream):
            on_gpu = _with_tensors(batch, queue)
            copied = stream.record_event()

        def received() -> Batch:
            # Without a GPU no test sees that this suffices: the event for the values, record_stream for the memory.
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for tensor in sent:
                tensor.record_stream(current)
            return on_gpu

        return received

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a tensor to the CPU; return a function that waits for the copy and gives it."""
        stream = self._back
        if stream is None or tensor.device.type == "cpu":
            return tensor.cpu
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            fetched = tensor.to("cpu", non_blocking=True)  # PyTorch pins the memory; without a GPU no test sees it
            copied = stream.record_event()
        tensor.record_stream(stream)

        def received() -> Tensor:
            copied.synchronize()
            return fetched

        return received


def queue_copy(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a copy to a GPU is queued from pinned memory, and the process does not wait."""
    return pinned(tensor, device).to(device, non_blocking=device.type == "cuda")


def pinned(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Return a tensor in pinned memory if it has to be copied to a GPU, else the tensor itself."""
    is_copied = device is not None and device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory() if is_copied else tensor


def _with_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch with each of its tensors replaced by ``change(tensor)``."""
    changed: Any = batch
    if isinstance(batch, Tensor):
        changed = change(batch)
    elif isinstance(batch, Mapping):
        changed = {name: _with_tensors(part, change) for name, part in batch.items()}
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        changed = type(batch)(*(_with_tensors(part, change) for part in batch))
    return changed  # type: ignore[no-any-return]
