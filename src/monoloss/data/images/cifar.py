"""Images of CIFAR-10 and CIFAR-100, read by torchvision from their official files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from monoloss.checks import check_number
from monoloss.data.images.source import Label, LabelKind, SourceImage
from monoloss.errors import InputError

_KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class CifarImages:
    """Images of one split of CIFAR, in the order of the files; the ids are "train/0", "train/1", ..."""

    description: str  # the source as the user wrote it
    split: str  # "train" or "test"
    pixels: UInt8[ndarray, "n 32 32 3"]
    numbers: Sequence[int]  # the class number of each image
    class_names: list[str]  # of the classes 0, 1, ...

    @property
    def image_root(self) -> str | None:
        """None: the images are not files of a folder."""
        return None

    @property
    def labels(self) -> LabelKind:
        """The kind of labels: one for each image."""
        return "single"

    @property
    def n_images(self) -> int:
        """The number of images."""
        return len(self.numbers)

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SourceImage]:
        """Yield the images at positions `start` to `stop` (exclusive; by default to the end) as PNG files, in order."""
        check_number("start", start, at_least=0, integer=True)
        for position in range(start, self.n_images if stop is None else min(stop, self.n_images)):
            file = io.BytesIO()
            Image.fromarray(self.pixels[position]).save(file, "png", compress_level=0)
            yield SourceImage(position, self._id(position), None, self.numbers[position], file.getvalue())

    def ids_and_labels(self) -> Iterator[tuple[str, Label]]:
        """Yield the id and the label of each image, without encoding it."""
        return ((self._id(position), number) for position, number in enumerate(self.numbers))

    def _id(self, position: int) -> str:
        return f"{self.split}/{position}"


def open_cifar(description: str, kind: str, path: str | os.PathLike[str], split: str | None) -> CifarImages:
    """Open a split of CIFAR-10 or CIFAR-100 (with its fine labels); see `open_images`.

    The official files are pickles; a file is read only if its MD5 is the published one.

    Args:
        description: the source as the user wrote it.
        kind: "cifar10" or "cifar100".
        path: the folder that holds `cifar-10-batches-py` or `cifar-100-python`.
        split: "train" or "test".

    Raises:
        InputError: the split is unknown, or a file is missing or is not the official one.
    """
    if split not in _SPLITS:
        raise InputError("split", repr(split), f"one of the splits of {kind}: {', '.join(_SPLITS)}")
    reader = _KINDS[kind]
    try:
        data = reader(path, train=split == "train")
    except RuntimeError as error:
        expected = f"the folder that holds {reader.base_folder}, unpacked from {reader.filename}"
        raise InputError(description, "files that are missing or are not the official ones", expected) from error
    return CifarImages(description, split, data.data, data.targets, list(data.classes))
