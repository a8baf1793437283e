"""Batches of images: their division by shard, and their decoding and preprocessing in worker processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from numpy import asarray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from monoloss.data.images.decode import UnreadableImage, decode_image
from monoloss.data.images.source import ImageSource, SourceImage
from monoloss.data.store.format import SkippedFile
from monoloss.errors import InputError

NOT_PREPARED = "cannot be prepared"  # start of the reason where the transform failed, for an image that was decoded
MAX_WORKERS = 8  # of the default; more help only where the model is faster than eight processes


class PreparedBatch(NamedTuple):
    """Images of one shard, ready for the encoder."""

    shard: int  # index of the shard
    images: list[SourceImage]  # the decoded images, in the order of the source, with empty `content`
    pixels: Float[Tensor, "n 3 h w"] | None  # of `images`; None where that is empty
    thumbnails: UInt8[Tensor, "n s s 3"] | None  # of `images`; None without thumbnails
    skipped: list[SkippedFile]  # the images that could not be decoded or prepared

    @property
    def n_source(self) -> int:
        """The number of images of the source in this batch, skipped ones included."""
        return len(self.images) + len(self.skipped)


class ShardBatches:
    """Batch sampler of a DataLoader: lists of images in the order of the source, each within one shard.

    Args:
        source: the images.
        rows_per_shard: number of images in a shard.
        batch_size: the most images in a list.
        is_selected: whether to yield the images of the shard with this index.
        check: called with the index and the images (without content) of each shard of a stream that is not selected.

    Attributes:
        n_seen: the number of images of the source; for a stream known after a pass over it.
    """

    def __init__(
        self,
        source: ImageSource,
        rows_per_shard: int,
        batch_size: int,
        is_selected: Callable[[int], bool],
        check: Callable[[int, Sequence[SourceImage]], None],
    ) -> None:
        self.source, self.rows_per_shard, self.batch_size = source, rows_per_shard, batch_size
        self.is_selected, self.check, self.n_seen = is_selected, check, source.n_images or 0

    def __iter__(self) -> Iterator[list[SourceImage]]:
        if self.source.n_images is None:
            yield from self._of_a_stream()
            return
        for start in range(0, self.source.n_images, self.rows_per_shard):
            if self.is_selected(start // self.rows_per_shard):
                yield from self._of_a_shard(start, min(start + self.rows_per_shard, self.source.n_images))

    def _of_a_shard(self, start: int, stop: int) -> Iterator[list[SourceImage]]:
        """Yield the batches of the shard that covers the positions `start` to `stop`."""
        images = shard_images(self.source, start, stop)
        for first in range(0, len(images), self.batch_size):
            yield images[first : first + self.batch_size]

    def _of_a_stream(self) -> Iterator[list[SourceImage]]:
        """Yield the batches of all selected shards of a stream, and check the other shards."""
        part: list[SourceImage] = []  # the next batch, or the images so far of a shard that is not selected
        shard, selected = -1, False
        for position, image in enumerate(self.source.images(0, None)):
            self.n_seen = position + 1
            if position // self.rows_per_shard != shard:
                yield from self._part_of(shard, part, selected=selected)
                shard, part = position // self.rows_per_shard, []
                selected = self.is_selected(shard)
            part.append(image if selected else image._replace(content=b""))
            if selected and len(part) == self.batch_size:
                yield part
                part = []
        yield from self._part_of(shard, part, selected=selected)

    def _part_of(self, shard: int, part: list[SourceImage], *, selected: bool) -> Iterator[list[SourceImage]]:
        """Yield the last batch of a selected shard, or check the images of another one."""
        if part and selected:
            yield part
        elif part:
            self.check(shard, part)


def shard_images(source: ImageSource, start: int, stop: int) -> list[SourceImage]:
    """Return the images at positions `start` to `stop` (exclusive); `InputError` if the source has fewer by now."""
    images = list(source.images(start, stop))
    if [image.position for image in images] != list(range(start, stop)):
        got = f"{len(images)} images at positions {start} to {stop - 1}"
        raise InputError(source.description, got, f"{stop - start}, as at the start of the run")
    return images


class ImagePreparation:
    """Data set of a DataLoader that decodes lists of images and prepares them for the encoder.

    Args:
        transform: from an RGB image to the encoder's input `(3, h, w)`.
        thumbnail_size: side of the thumbnails in pixels; None for no thumbnails.
        rows_per_shard: number of images in a shard.
    """

    def __init__(
        self, transform: Callable[[Image.Image], Tensor], thumbnail_size: int | None, rows_per_shard: int
    ) -> None:
        self.transform, self.thumbnail_size, self.rows_per_shard = transform, thumbnail_size, rows_per_shard

    def __getitems__(self, images: list[SourceImage]) -> PreparedBatch:
        """Decode and prepare the images of a list; those that fail are in `skipped`, with the reason."""
        decoded, pixels, thumbnails, skipped = [], [], [], []
        for image in images:
            try:
                picture = decode_image(image.content)
            except UnreadableImage as error:
                skipped.append(skipped_file(image, error.reason))
                continue
            try:
                prepared = self.transform(picture)
                small = None if self.thumbnail_size is None else thumbnail(picture, self.thumbnail_size)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                skipped.append(skipped_file(image, f"{NOT_PREPARED} ({type(error).__name__})"))
                continue
            decoded.append(image._replace(content=b""))
            pixels.append(prepared)
            thumbnails += [] if small is None else [small]
        shard = images[0].position // self.rows_per_shard
        joined_pixels = torch.stack(pixels) if pixels else None
        joined_thumbnails = torch.stack(thumbnails) if thumbnails else None
        return PreparedBatch(shard, decoded, joined_pixels, joined_thumbnails, skipped)


def skipped_file(image: SourceImage, reason: str) -> SkippedFile:
    """Return the store's record of an image without a row: its position, its path (else its id) and the reason."""
    return SkippedFile(image.position, image.id if image.path is None else image.path, reason)


def thumbnail(picture: Image.Image, size: int) -> UInt8[Tensor, "s s 3"]:
    """Return the middle square of an image, scaled to `size` pixels (bicubic)."""
    square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(asarray(square).copy())


def default_workers(device: str) -> int:
    """Return the default number of worker processes: the processors of this process, from 1 to `MAX_WORKERS`.

    For a model on the "cpu" a quarter of that: the model takes most of the time on the same processors.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available // 4 if device == "cpu" else available, MAX_WORKERS))


def prepared_batches(
    batches: ShardBatches, preparation: ImagePreparation, workers: int, *, pin_memory: bool
) -> Generator[PreparedBatch, None, None]:
    """Yield all batches in order, prepared by `workers` processes (0: by this one); `InputError` if one is killed."""
    loader: DataLoader[Any] = DataLoader(
        preparation,  # type: ignore[arg-type] # the loader calls __getitems__ alone
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,  # a batch is complete as it is
        pin_memory=pin_memory,
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn of any fork in a process with threads; the workers use none of the threads' locks.
        warnings.filterwarnings("ignore", message=r".*multi-threaded, use of fork\(\)", category=DeprecationWarning)
        prepared = iter(loader)
    while True:
        try:
            batch = next(prepared, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            expected = "fewer workers, a smaller batch_size, or more memory and shared memory (/dev/shm)"
            raise InputError("workers", f"one of {workers} processes that was killed", expected) from error
        if batch is None:
            return
        yield batch


def _unchanged(batch: Any) -> Any:
    return batch
