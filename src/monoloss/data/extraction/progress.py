"""Estimates, progress and timing of an extraction."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from monoloss.data.store.format import DTYPES
from monoloss.errors import InputError, needs_extra
from monoloss.terminal import progress, size_text, time_text

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")

_LINE_BYTES, _SHARD_BYTES = 200, 20_000  # upper estimates: an id with its path, the header of a shard
_WARM_UP_S = 5.0  # from the first batch to the estimate of the time that is left


def bytes_of_an_image(width: int, n_patches: int, dtype: str, thumbnail_size: int | None) -> int:
    """Return the estimated bytes of an image in a store: rows, labels, thumbnail, id and path."""
    pixels = 0 if thumbnail_size is None else 3 * thumbnail_size**2
    return n_patches * (width * DTYPES[dtype].itemsize + 8) + pixels + _LINE_BYTES


def check_disk(folder: Path, n_images: int | None, n_shards: int, bytes_each: int) -> str:
    """Return a line about the disk space that the images to be written take, and the free space.

    Args:
        folder: the store, which may not exist yet.
        n_images: number of images to be written; None if unknown.
        n_shards: number of shards to be written.
        bytes_each: bytes of an image, from `bytes_of_an_image`.

    Raises:
        InputError: the images take more than the free space.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if n_images is None:
        return f"{size_text(bytes_each)} an image; {size_text(free)} free, for {free // bytes_each:,} images"
    expected = n_images * bytes_each + n_shards * _SHARD_BYTES
    if expected > free:
        got = f"{size_text(free)} of free space"
        raise InputError(str(folder), got, f"{size_text(expected)} for {n_images} images")
    return f"{n_images:,} images, {size_text(expected)} on disk ({size_text(free)} free)"


@dataclass
class Timing:
    """Images and seconds of a run in this process; a resumed run counts from where it resumed."""

    n_images: int = 0  # images of the source, skipped ones included
    n_skipped: int = 0  # images that gave no row
    wait_s: float = 0.0  # waiting for decoded images
    model_s: float = 0.0  # in the encoder, with the copies to the device and back
    write_s: float = 0.0  # writing shards
    total_s: float = 0.0  # from the start of the first worker to the last shard
    _started: float = field(default_factory=time.perf_counter, repr=False)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of the `with` block to the field `part`, such as "model_s"."""
        started = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            setattr(self, part, getattr(self, part) + now - started)
            self.total_s = now - self._started

    def waits_for(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items; the time until each comes is added to `wait_s`."""
        while True:
            with self.of("wait_s"):
                item = next(items, None)
            if item is None:
                return
            yield item

    @property
    def images_per_s(self) -> float:
        """Images of the source in a second, over the whole run; 0 before the first block."""
        return self.n_images / self.total_s if self.total_s else 0.0

    def __str__(self) -> str:
        parts = {"model": self.model_s, "waiting for decoded images": self.wait_s, "writing": self.write_s}
        shares = ", ".join(f"{name} {seconds / max(self.total_s, 1e-9):.0%}" for name, seconds in parts.items())
        return f"{self.n_images:,} images in {time_text(self.total_s)}, {self.images_per_s:.1f} images/s ({shares})"


class ExtractionReport:
    """Lines and a progress bar on standard error, or nothing.

    Args:
        show: whether to show anything; needs the extra `cli`.
    """

    def __init__(self, *, show: bool) -> None:
        self._console: Console | None = None
        if show:
            with needs_extra("vision"):
                from rich.console import Console
            self._console = Console(stderr=True)
        self._n_to_do: int | None = None  # images that this run will take; None if unknown
        self._started: tuple[float, int] | None = None  # time and images at the end of the first batch
        self._estimated = False

    def say(self, text: str) -> None:
        """Show a line of text."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, n_images: int | None, n_done: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar of `n_images` (None: unknown) from `n_done` on; yield the function that advances it."""
        if self._console is None:
            yield lambda _: None
            return
        self._n_to_do = None if n_images is None else n_images - n_done
        with progress("extracting", n_images, "images", done=n_done, console=self._console) as move:
            started, moved = time.perf_counter(), 0

            def advance(n: int) -> None:
                nonlocal moved
                moved += n
                move(n, f"images, {moved / max(time.perf_counter() - started, 1e-9):.1f} images/s")
                self._estimate(moved)

            yield advance

    def _estimate(self, n_images: int) -> None:
        """Show a line with the time that is left, once, when the speed is known; the line stays, unlike the bar."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now, n_images
        since, n_first = self._started
        if self._estimated or self._n_to_do is None or n_images == n_first or now - since < _WARM_UP_S:
            return
        self._estimated = True
        speed = (n_images - n_first) / (now - since)
        self.say(f"{speed:.1f} images/s: about {time_text((self._n_to_do - n_images) / max(speed, 1e-9))} to go")
