"""Images of rows as sheets: one file for some hundreds, since a page from the disk loads thousands of files slowly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, features
from torch import Tensor

from monoloss.data.image_decode import UnreadableImage, decode_image
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError

COLUMNS = 16
PER_SHEET = COLUMNS * COLUMNS
_QUALITY = 75
_GREY = 128  # of a cell without an image
Picture = UInt8[np.ndarray, "h w c"]


class Pictures(NamedTuple):
    """Where the images of a store's rows come from.

    Attributes:
        read: gives the images of some row numbers, ``(h, w, 1 or 3)`` bytes each; None for one that cannot be read.
        root: the folder of the image files; None for thumbnails.
    """

    read: Callable[[Int[Tensor, " n"]], Sequence[Picture | None]]
    root: Path | None = None


def pictures_of(store: FeatureStore, images: Path | None = None) -> Pictures | None:
    """Where the images of a store come from, or None.

    In this order: below ``images``, where the store knows its rows' paths; its thumbnails; the image root that it
    names, if that is still there.
    """
    root = store.manifest.image_root
    if images is not None and any(path is not None for path in store.paths):
        return _files(store, images)
    if store.has_thumbnails:
        return Pictures(lambda rows: list(store.thumbnails(rows).numpy()))
    if root is not None and Path(root).is_dir() and any(path is not None for path in store.paths):
        return _files(store, Path(root))
    return None


def sheet_suffix() -> str:
    """The format of sheets as the end of their names: WebP where Pillow writes it, else JPEG."""
    return "webp" if features.check("webp") else "jpg"


def write_sheets(
    folder: Path,
    pictures: Pictures,
    rows: Int[Tensor, " items"],
    cell: int,
    advance: Callable[[int], object] = lambda _: None,
) -> int:
    """Write the images of rows as ``sheet-0000.webp``, ...: row ``rows[i]`` is cell ``i % 256`` of sheet ``i // 256``.

    An image is the middle square of its picture, at the size of a cell; a cell stays grey where there is none. Cells
    stand in lines of 16. Some sheets are in memory at a time, one for each processor.

    Args:
        folder: for the files; made.
        pictures: where the images come from.
        rows: row numbers of the store.
        cell: side of a cell in pixels.
        advance: called with a number of images whenever so many are written.

    Returns:
        How many images could not be read.
    """
    folder.mkdir(parents=True)
    parts = rows.split(PER_SHEET)
    n_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def write(number: int) -> tuple[int, int]:
        found = pictures.read(parts[number])
        save_sheet(folder / f"sheet-{number:04d}.{sheet_suffix()}", sheet_of(found, cell))
        return len(found), sum(picture is None for picture in found)

    n_unreadable = 0
    with ThreadPoolExecutor(n_workers) as pool:
        try:
            for n_images, n_missing in pool.map(write, range(len(parts))):
                n_unreadable += n_missing
                advance(n_images)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return n_unreadable


def sheet_of(pictures: Sequence[Picture | None], cell: int) -> UInt8[np.ndarray, "h w 3"]:
    """Up to 256 images in lines of 16, as bytes; lines without an image are left out.

    Example:
        >>> sheet_of([np.zeros((8, 8, 1), dtype=np.uint8)] * 17, 4).shape
        (8, 64, 3)
    """
    n_lines = -(-len(pictures) // COLUMNS)
    sheet = np.full((n_lines, cell, COLUMNS, cell, 3), _GREY, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        if picture is not None:
            sheet[place // COLUMNS, :, place % COLUMNS] = fitted(picture, cell)
    return sheet.reshape(n_lines * cell, COLUMNS * cell, 3)


def fitted(picture: Picture, cell: int) -> UInt8[np.ndarray, "s s 3 or 1"]:
    """The middle square of an image at the size of a cell; pixels of small images become squares, sharp.

    Sharp where a pixel fills a whole number of the cell's; else smoothed.

    Example:
        >>> fitted(np.array([[[9], [200]], [[0], [0]]], dtype=np.uint8), 4)[0, :, 0].tolist()
        [9, 9, 200, 200]
    """
    height, width = picture.shape[:2]
    if height == width and cell % height == 0:
        times = cell // height
        return picture if times == 1 else picture.repeat(times, axis=0).repeat(times, axis=1)
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    square = np.asarray(ImageOps.fit(image, (cell, cell), Image.Resampling.BICUBIC))
    return square[:, :, None] if square.ndim == 2 else square


def save_sheet(path: Path, sheet: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a sheet in the format of its name's end."""
    options = {"method": 4} if path.suffix == ".webp" else {"optimize": True}
    Image.fromarray(sheet).save(path, quality=_QUALITY, **options)


def _files(store: FeatureStore, root: Path) -> Pictures:
    """Image files below a root, by the paths of the store's rows; a path that leads out of the root is not followed."""
    if not root.is_dir():
        raise InputError("images", f"{root}, which is no folder", "the folder that the store's paths are relative to")
    whole, paths = root.resolve(), store.paths

    def read(rows: Tensor) -> list[Picture | None]:
        return [_read(whole, paths[row]) for row in rows.tolist()]

    return Pictures(read, root)


def _read(root: Path, path: str | None) -> Picture | None:
    if path is None:
        return None
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        return None
    try:
        return np.asarray(decode_image(str(file)))
    except UnreadableImage:
        return None
