"""Images of a store's rows, from image files or from the store's thumbnails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from monoloss.data.images.decode import UnreadableImage, decode_image
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError

Picture = UInt8[np.ndarray, "_ _ _"]  # height, width, 1 or 3


class Pictures(NamedTuple):
    """A reader of the images of a store's rows."""

    # `read(rows, cell)` returns an image ``(h, w, 1 or 3)`` for each row number, to be shown ``cell`` pixels wide
    # (image files are scaled to that size, thumbnails are not); None for an image that cannot be read
    read: Callable[[Int[Tensor, " n"], int], Sequence[Picture | None]]
    root: Path | None = None  # the folder of the image files; None for thumbnails


def pictures_of(store: FeatureStore, images: Path | None = None) -> Pictures | None:
    """Return a reader of the images of a store's rows, or None if the store has none.

    The first that exists of: the files below the folder ``images`` (if the store records the paths of its rows), the
    store's thumbnails, the files below the image root that the store records.
    """
    root = store.manifest.image_root
    if images is not None and _has_paths(store):
        return _files(store, images)
    if store.has_thumbnails:
        return Pictures(lambda rows, _: list(store.thumbnails(rows).numpy()))
    if root is not None and Path(root).is_dir() and _has_paths(store):
        return _files(store, Path(root))
    return None


def fitted(picture: Picture, cell: int) -> UInt8[np.ndarray, "s s c"]:
    """Scale the middle square of an image to ``(cell, cell)`` pixels.

    A square image whose side divides ``cell`` is enlarged by repeating its pixels, which stays sharp; any other is
    resampled (bicubic).
    """
    height, width = picture.shape[:2]
    if height == width and cell % height == 0:
        times = cell // height
        return picture if times == 1 else picture.repeat(times, axis=0).repeat(times, axis=1)
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    square = np.asarray(ImageOps.fit(image, (cell, cell), Image.Resampling.BICUBIC))
    return square[:, :, None] if square.ndim == 2 else square


def _files(store: FeatureStore, root: Path) -> Pictures:
    """Return a reader of the files below ``root`` at the paths of the store's rows; paths out of ``root`` give None."""
    if not root.is_dir():
        raise InputError("images", f"{root}, which is no folder", "the folder that the store's paths are relative to")
    resolved_root, paths = root.resolve(), store.paths

    def read(rows: Tensor, cell: int) -> list[Picture | None]:
        return [_read(resolved_root, paths[row], cell) for row in rows.tolist()]

    return Pictures(read, root)


def _has_paths(store: FeatureStore) -> bool:
    """Return whether the store records a path for any row."""
    rows_per_image = store.n_rows // store.n_images  # the patches of an image have the same path
    return any(store.paths[row] is not None for row in range(0, store.n_rows, rows_per_image))


def _read(root: Path, path: str | None, cell: int) -> Picture | None:
    """Return the image file ``root / path`` fitted to a cell; None without a path, outside ``root``, or unreadable."""
    if path is None:
        return None
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        return None
    try:
        return fitted(np.asarray(decode_image(str(file))), cell)
    except UnreadableImage:
        return None
