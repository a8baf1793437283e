"""Images with one label each, read by position in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from monoloss.data.images.decode import UnreadableImage, decode_image
from monoloss.data.images.source import ImageSource, Label
from monoloss.errors import InputError

_MOST_CLASSES = 2**20


@runtime_checkable
class ListedSource(ImageSource, Protocol):
    """A source of images whose ids and labels can be read without the images."""

    def ids_and_labels(self) -> Iterator[tuple[str, Label]]:
        """Yield the id and the label of each image, in order."""


class LabelledImages:
    """The images of a source and their labels; ids and labels are in memory, an image is decoded by each `read`.

    Args:
        source: a source from `open_images`.

    Attributes:
        source: the source.
        ids: ids of the images, in the order of the source.
        labels: class numbers of the images, `(n,)` int64.
        class_names: names of the classes 0, 1, ...; their numbers as text if the source has no names.

    Raises:
        InputError: the source has no labels, or several for an image, or is a stream; a label of 2^20 or more, if the
            source has no class names (it is an identifier rather than a class).
    """

    def __init__(self, source: ImageSource) -> None:
        if source.labels != "single":
            got = "images without labels" if source.labels is None else "images with several labels each"
            raise InputError(source.description, got, "images with one label each")
        if not isinstance(source, ListedSource) or source.n_images is None:
            raise InputError(source.description, "a stream", "images that can be read in any order")
        listed = list(source.ids_and_labels())
        self.source = source
        self.ids: Sequence[str] = [name for name, _ in listed]
        self.labels: Int64[Tensor, " n"] = torch.tensor([label for _, label in listed], dtype=torch.int64)
        largest = int(self.labels.max()) if listed else 0
        if source.class_names is None and largest >= _MOST_CLASSES:
            raise InputError(source.description, f"the label {largest}", f"class numbers from 0, below {_MOST_CLASSES}")
        self.class_names = source.class_names or [str(number) for number in range(int(self.labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def description(self) -> str:
        """The source as the user wrote it."""
        return self.source.description

    def read(self, position: int) -> Image.Image:
        """Decode the image at a position: RGB, upright.

        Raises:
            InputError: the image cannot be decoded.
        """
        image = next(self.source.images(position, position + 1))
        try:
            return decode_image(image.content)
        except UnreadableImage as error:
            got = f"an image that cannot be read: {image.id} ({error.reason})"
            raise InputError(self.description, got, "images that can be read; take this one away") from error

    def use_classes_of(self, other: LabelledImages) -> None:
        """Renumber the labels by the classes of other images, matched by name; changes `labels` and `class_names`.

        Raises:
            InputError: a class that the other images do not have.
        """
        numbers = class_numbers(self.class_names, other.class_names)
        if numbers is None:
            unknown = [name for name in self.class_names if name not in other.class_names]
            got = f"{len(self.class_names)} classes, {len(unknown)} of them ({', '.join(unknown[:3])}) not of "
            expected = f"the {len(other.class_names)} classes of the images to train on"
            raise InputError(self.description, got + other.description, expected)
        self.labels = numbers[self.labels]
        self.class_names = other.class_names


def class_numbers(names: Sequence[str], numbered: Sequence[str]) -> Int64[Tensor, " c"] | None:
    """Return the index in `numbered` of each class name; None if one of the names is not in `numbered`."""
    number_of_name = {name: i for i, name in enumerate(numbered)}
    return torch.tensor([number_of_name[name] for name in names]) if number_of_name.keys() >= set(names) else None
