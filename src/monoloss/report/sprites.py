"""Sheets of 256 images in one file, because a page opened from the disk loads thousands of image files slowly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, features
from torch import Tensor

from monoloss.data.images.row_images import Picture, Pictures, fitted

COLUMNS = 16
PER_SHEET = COLUMNS * COLUMNS
_QUALITY = 70
_GREY = 128  # level of a cell without an image


def sheet_suffix() -> str:
    """Return the suffix of sheets' names: "webp" where Pillow supports it, else "jpg"."""
    return "webp" if features.check("webp") else "jpg"


def write_sheets(
    folder: Path,
    pictures: Pictures,
    rows: Int[Tensor, " items"],
    cell: int,
    advance: Callable[[int], object] = lambda _: None,
) -> list[int]:
    """Write the images of rows as ``sheet-0000.webp``, ...: row ``rows[i]`` is cell ``i % 256`` of sheet ``i // 256``.

    An image is the middle square of the row's picture, scaled to a cell; the cell of an unreadable image is grey. A
    line has 16 cells. At most one sheet for each processor is in memory.

    Args:
        folder: folder for the files, created.
        pictures: source of the images.
        rows: rows of the store.
        cell: side of a cell in pixels.
        advance: called with the number of images that have just been written.

    Returns:
        Positions in ``rows`` whose image could not be read, ascending.
    """
    folder.mkdir(parents=True)
    parts = rows.split(PER_SHEET) if len(rows) else ()
    n_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def write(number: int) -> tuple[int, list[int]]:
        images = pictures.read(parts[number], cell)
        save_sheet(folder / f"sheet-{number:04d}.{sheet_suffix()}", sheet_of(images, cell))
        first = number * PER_SHEET
        return len(images), [first + place for place, image in enumerate(images) if image is None]

    missing: list[int] = []
    with ThreadPoolExecutor(n_workers) as pool:
        try:
            for n_images, unreadable in pool.map(write, range(len(parts))):
                missing += unreadable
                advance(n_images)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return missing


def sheet_of(pictures: Sequence[Picture | None], cell: int) -> UInt8[np.ndarray, "h w 3"]:
    """Arrange up to 256 images in lines of 16 cells of `cell` pixels; grey for an image that is None."""
    n_lines = -(-len(pictures) // COLUMNS)
    sheet = np.full((n_lines, cell, COLUMNS, cell, 3), _GREY, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        if picture is not None:
            sheet[place // COLUMNS, :, place % COLUMNS] = fitted(picture, cell)
    return sheet.reshape(n_lines * cell, COLUMNS * cell, 3)


def save_sheet(path: Path, sheet: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a sheet as WebP or JPEG, by the suffix of its name."""
    options = {"method": 4} if path.suffix == ".webp" else {"optimize": True}
    Image.fromarray(sheet).save(path, quality=_QUALITY, **options)
