"""What an extraction will take, how far it is, and where its time went."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from monoloss.data.store.format import DTYPES
from monoloss.errors import InputError, needs_extra
from monoloss.terminal import progress, size_text, time_text

if TYPE_CHECKING:
    from rich.console import Console

_LINE_BYTES, _SHARD_BYTES = 200, 20_000  # of an id with its path, of a header: more than most need
_WARM_UP_S = 5.0  # after the first batch, before its speed says something about the rest


def bytes_of_an_image(width: int, n_patches: int, dtype: str, thumbnail_size: int | None) -> int:
    """What an image takes on the disk."""
    pixels = 0 if thumbnail_size is None else 3 * thumbnail_size**2
    return n_patches * (width * DTYPES[dtype].itemsize + 8) + pixels + _LINE_BYTES


def check_disk(folder: Path, n_images: int | None, n_shards: int, bytes_each: int) -> str:
    """What the images that are still to come take, in words.

    Args:
        folder: where the store is or will be.
        n_images: that are to come; None where it is not known.
        n_shards: that are to come.
        bytes_each: of an image.

    Raises:
        InputError: it is more than what is free.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    if n_images is None:
        return f"{size_text(bytes_each)} an image; {size_text(free)} free, for {free // bytes_each:,} images"
    expected = n_images * bytes_each + n_shards * _SHARD_BYTES
    if expected > free:
        raise InputError(
            str(folder), f"{size_text(free)} of free space", f"{size_text(expected)} for {n_images} images"
        )
    return f"{n_images:,} images, {size_text(expected)} on disk ({size_text(free)} free)"


@dataclass
class Timing:
    """Where the time of a run went; of this process, and of this run if it went on with an earlier one."""

    n_images: int = 0  # of the source, also those that were skipped
    n_skipped: int = 0  # of them
    wait_s: float = 0.0  # waiting for decoded images
    model_s: float = 0.0  # in the encoder, with the way to the device and back
    write_s: float = 0.0  # writing shards
    total_s: float = 0.0  # from the start of the first worker to the last shard
    _started: float = field(default_factory=time.perf_counter, repr=False)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the time of a block as one of the parts."""
        started = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            setattr(self, part, getattr(self, part) + now - started)
            self.total_s = now - self._started

    @property
    def images_per_s(self) -> float:
        """Speed of the whole run."""
        return self.n_images / self.total_s if self.total_s else 0.0

    def __str__(self) -> str:
        parts = {"model": self.model_s, "waiting for decoded images": self.wait_s, "writing": self.write_s}
        shares = ", ".join(f"{name} {seconds / max(self.total_s, 1e-9):.0%}" for name, seconds in parts.items())
        return f"{self.n_images:,} images in {time_text(self.total_s)}, {self.images_per_s:.1f} images/s ({shares})"


class ExtractionReport:
    """Lines and a progress bar on a console, or nothing.

    Args:
        show: whether to show anything; needs the extra `cli`.
    """

    def __init__(self, *, show: bool) -> None:
        self._console: Console | None = None
        if show:
            with needs_extra("vision"):
                from rich.console import Console
            self._console = Console(stderr=True)
        self._n_to_come: int | None = None
        self._started: tuple[float, int] | None = None  # when the first batch was done, and how many images that were
        self._estimated = False

    def say(self, text: str) -> None:
        """A line."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, n_images: int | None, n_done: int) -> Iterator[Callable[[int], None]]:
        """A progress bar of the images of this process; hands out what moves it."""
        if self._console is None:
            yield lambda _: None
            return
        self._n_to_come = None if n_images is None else n_images - n_done
        with progress("extracting", n_images, "images", done=n_done, console=self._console) as move:
            started, moved = time.perf_counter(), 0

            def advance(n: int) -> None:
                nonlocal moved
                moved += n
                move(n, f"images, {moved / max(time.perf_counter() - started, 1e-9):.1f} images/s")
                self._estimate(moved)

            yield advance

    def _estimate(self, n_images: int) -> None:
        """One line with the time that is left, once the speed is known; it stays where a bar does not."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now, n_images
        since, first = self._started
        if self._estimated or self._n_to_come is None or n_images == first or now - since < _WARM_UP_S:
            return
        self._estimated = True
        speed = (n_images - first) / (now - since)
        self.say(f"{speed:.1f} images/s: about {time_text((self._n_to_come - n_images) / max(speed, 1e-9))} to go")
