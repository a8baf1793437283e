"""The interface of every source of images, and the images that it yields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

Label: TypeAlias = int | tuple[int, ...] | None
LabelKind: TypeAlias = Literal["single", "multi"] | None


class SourceImage(NamedTuple):
    """One image, not yet decoded."""

    position: int  # index in the source, from 0
    id: str  # unique in the source; for files the path
    # of a file: relative to the source's `image_root`, "/" between its parts; of a dataset's row: the name of the image
    path: str | None
    label: Label  # class number; with labels "multi" the numbers of all positive classes, ascending (perhaps none)
    content: str | bytes  # the argument of `decode_image`: the absolute path of a file, or the encoded image


@runtime_checkable
class ImageSource(Protocol):
    """Images in a fixed order, with their labels; returned by `open_images`."""

    @property
    def description(self) -> str:
        """The source as the user wrote it."""

    @property
    def image_root(self) -> str | None:
        """The folder that the images' paths are relative to; None for datasets."""

    @property
    def labels(self) -> LabelKind:
        """The labels of an image: "single" (one), "multi" (any number), or None (unknown)."""

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes 0, 1, ...; None if unknown."""

    @property
    def n_images(self) -> int | None:
        """The number of images; None for a stream."""

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SourceImage]:
        """Yield the images at positions `start` to `stop` (exclusive; by default to the end), in order."""
