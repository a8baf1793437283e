"""Encoding of prepared batches: a GPU encodes the next batch while the rows of the one before are copied back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from monoloss.data.extraction.batches import PreparedBatch
from monoloss.data.extraction.progress import Timing
from monoloss.data.transfer import DeviceCopies, started_ahead
from monoloss.errors import InputError


class EncodedBatch(NamedTuple):
    """A prepared batch, and its rows on the way from the encoder."""

    batch: PreparedBatch
    rows: Callable[[], Tensor | None]  # gives the rows on the CPU, once; None for a batch without images


def encoded_batches(
    batches: Iterable[PreparedBatch],
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
    batch_size: int,
    timing: Timing,
) -> Iterator[EncodedBatch]:
    """Yield all batches in order. On a GPU the next batch, if there is one, is queued before the caller gets one.

    There `rows` waits for the copy of its own rows alone; elsewhere `rows` encodes.

    Args:
        batches: the batches.
        encode: the encoder: from images on `device` to rows there. An exception is raised when its batch is due.
        device: the device of the encoder.
        batch_size: most images of a batch, for the `InputError` where they do not fit into the memory of a GPU.
        timing: its `model_s` counts the time of queueing; the caller adds that of `rows`.
    """
    copies = DeviceCopies(device)

    def begin(batch: PreparedBatch) -> Callable[[], Tensor | None]:
        if batch.pixels is None:
            return lambda: None
        try:
            return copies.fetch(encode(copies.send(batch.pixels)()))
        except torch.OutOfMemoryError as error:
            got = f"{batch_size}, which does not fit into the memory of {device}"
            raise InputError("batch_size", got, "a smaller one") from error

    def queue(batch: PreparedBatch) -> EncodedBatch:
        with timing.of("model_s"):
            return EncodedBatch(batch, begin(batch))

    def wait(batch: PreparedBatch) -> EncodedBatch:
        def rows() -> Tensor | None:
            return begin(batch)()

        return EncodedBatch(batch, rows)

    if device.type == "cuda":  # that encoder and copies overlap shows on a GPU alone: there model_s falls
        return started_ahead(queue, batches)
    return map(wait, batches)
