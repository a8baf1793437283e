"""The images of a store's rows, from wherever they are."""

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
    """Where the images of a store's rows come from."""

    # gives the images of some row numbers, ``(h, w, 1 or 3)`` bytes each, for cells of a size (it may make them smaller
    # itself); None for one that cannot be read
    read: Callable[[Int[Tensor, " n"], int], Sequence[Picture | None]]
    root: Path | None = None  # the folder of the image files; None for thumbnails


def pictures_of(store: FeatureStore, images: Path | None = None) -> Pictures | None:
    """Where the images of a store come from, or None.

    In this order: below ``images``, where the store knows its rows' paths; its thumbnails; the image root that it
    names, if that is still there.
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
    """The middle square of an image at the size of a cell; pixels of small images become squares, sharp.

    Sharp where a pixel fills a whole number of the cell's; else smoothed.
    """
    height, width = picture.shape[:2]
    if height == width and cell % height == 0:
        times = cell // height
        return picture if times == 1 else picture.repeat(times, axis=0).repeat(times, axis=1)
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    square = np.asarray(ImageOps.fit(image, (cell, cell), Image.Resampling.BICUBIC))
    return square[:, :, None] if square.ndim == 2 else square


def _files(store: FeatureStore, root: Path) -> Pictures:
    """Image files below a root, by the paths of the store's rows; a path that leads out of the root is not followed."""
    if not root.is_dir():
        raise InputError("images", f"{root}, which is no folder", "the folder that the store's paths are relative to")
    whole, paths = root.resolve(), store.paths

    def read(rows: Tensor, cell: int) -> list[Picture | None]:
        return [_read(whole, paths[row], cell) for row in rows.tolist()]

    return Pictures(read, root)


def _has_paths(store: FeatureStore) -> bool:
    """Whether the path of some image is known."""
    rows_each = store.n_rows // store.n_images  # the patches of an image have the same
    return any(store.paths[row] is not None for row in range(0, store.n_rows, rows_each))


def _read(root: Path, path: str | None, cell: int) -> Picture | None:
    if path is None:
        return None
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        return None
    try:
        return fitted(np.asarray(decode_image(str(file))), cell)
    except UnreadableImage:
        return None
