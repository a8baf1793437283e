"""Which images of a source go together, and what worker processes make of them."""

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

NOT_PREPARED = "cannot be prepared"  # an image that could be decoded
MAX_WORKERS = 8  # by default; more only where the user knows that the model is faster than they are


class PreparedBatch(NamedTuple):
    """Images of one shard, ready for the encoder."""

    shard: int  # its number
    images: list[SourceImage]  # those that could be decoded, in the order of the source; their content stays behind
    pixels: Float[Tensor, "n 3 h w"] | None  # of these images; None where there are none
    thumbnails: UInt8[Tensor, "n s s 3"] | None  # of these images, if they are asked for
    skipped: list[SkippedFile]  # the others

    @property
    def n_source(self) -> int:
        """How many images of the source this is."""
        return len(self.images) + len(self.skipped)


class ShardBatches:
    """Lists of images in the order of the source; none crosses a shard. What a DataLoader calls a batch sampler.

    Args:
        source: the images.
        rows_per_shard: images of a shard.
        batch_size: images of a list, at most.
        is_wanted: whether the images of a shard are to be handed out.
        check: called with the number and the images of each shard that is not wanted, where the source has to be read
            from its start anyway.

    Attributes:
        n_seen: after a pass over a source of unknown length, how many images it has.
    """

    def __init__(
        self,
        source: ImageSource,
        rows_per_shard: int,
        batch_size: int,
        is_wanted: Callable[[int], bool],
        check: Callable[[int, Sequence[SourceImage]], None],
    ) -> None:
        self.source, self.rows_per_shard, self.batch_size = source, rows_per_shard, batch_size
        self.is_wanted, self.check, self.n_seen = is_wanted, check, source.n_images or 0

    def __iter__(self) -> Iterator[list[SourceImage]]:
        if self.source.n_images is None:
            yield from self._of_a_stream()
            return
        for start in range(0, self.source.n_images, self.rows_per_shard):
            if self.is_wanted(start // self.rows_per_shard):
                yield from self._of_a_shard(start, min(start + self.rows_per_shard, self.source.n_images))

    def _of_a_shard(self, start: int, stop: int) -> Iterator[list[SourceImage]]:
        images = shard_images(self.source, start, stop)
        for first in range(0, len(images), self.batch_size):
            yield images[first : first + self.batch_size]

    def _of_a_stream(self) -> Iterator[list[SourceImage]]:
        part: list[SourceImage] = []  # a batch, or what is there of a shard that is not wanted, without its content
        shard, wanted = -1, False
        for position, image in enumerate(self.source.images(0, None)):
            self.n_seen = position + 1
            if position // self.rows_per_shard != shard:
                yield from self._part_of(shard, part, wanted=wanted)
                shard, part = position // self.rows_per_shard, []
                wanted = self.is_wanted(shard)
            part.append(image if wanted else image._replace(content=b""))
            if wanted and len(part) == self.batch_size:
                yield part
                part = []
        yield from self._part_of(shard, part, wanted=wanted)

    def _part_of(self, shard: int, part: list[SourceImage], *, wanted: bool) -> Iterator[list[SourceImage]]:
        if part and wanted:
            yield part
        elif part:
            self.check(shard, part)


def shard_images(source: ImageSource, start: int, stop: int) -> list[SourceImage]:
    """The images from one position of a source to another; `InputError` where it has become another source."""
    images = list(source.images(start, stop))
    if [image.position for image in images] != list(range(start, stop)):
        got = f"{len(images)} images at positions {start} to {stop - 1}"
        raise InputError(source.description, got, f"{stop - start}, as when the run began")
    return images


class ImagePreparation:
    """Decode images and make them what the encoder takes. What a DataLoader calls a data set; it asks for whole lists.

    Args:
        transform: from an image to `(3, h, w)`.
        thumbnail_size: side of the thumbnails; None for none.
        rows_per_shard: images of a shard.
    """

    def __init__(
        self, transform: Callable[[Image.Image], Tensor], thumbnail_size: int | None, rows_per_shard: int
    ) -> None:
        self.transform, self.thumbnail_size, self.rows_per_shard = transform, thumbnail_size, rows_per_shard

    def __getitems__(self, images: list[SourceImage]) -> PreparedBatch:
        """What the images of a list become."""
        kept, pixels, thumbnails, skipped = [], [], [], []
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
            kept.append(image._replace(content=b""))
            pixels.append(prepared)
            thumbnails += [] if small is None else [small]
        return PreparedBatch(
            images[0].position // self.rows_per_shard,
            kept,
            torch.stack(pixels) if pixels else None,
            torch.stack(thumbnails) if thumbnails else None,
            skipped,
        )


def skipped_file(image: SourceImage, reason: str) -> SkippedFile:
    """An image that gives no row."""
    return SkippedFile(image.position, image.id if image.path is None else image.path, reason)


def thumbnail(picture: Image.Image, size: int) -> UInt8[Tensor, "s s 3"]:
    """The middle square of an image, `size` pixels wide."""
    square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(asarray(square).copy())


def default_workers(device: str) -> int:
    """A worker process for each processor that this process may use, up to `MAX_WORKERS`.

    For each four of them where the model runs on them as well: there it takes most of the time.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available // 4 if device == "cpu" else available, MAX_WORKERS))


def prepared_batches(
    batches: ShardBatches, preparation: ImagePreparation, workers: int, *, pin_memory: bool
) -> Generator[PreparedBatch, None, None]:
    """Prepare all batches in worker processes, in order; without workers in this process."""
    loader: DataLoader[Any] = DataLoader(
        preparation,  # type: ignore[arg-type] # it has what the loader calls
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,  # lists are prepared as a whole
        pin_memory=pin_memory,
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn of any fork in a process with threads; the workers touch none of what these hold.
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


def _as_it_is(batch: Any) -> Any:
    return batch
