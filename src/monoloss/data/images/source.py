"""What a source of images hands out, wherever the images come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

Label: TypeAlias = int | tuple[int, ...] | None
LabelKind: TypeAlias = Literal["single", "multi"] | None


class SourceImage(NamedTuple):
    """One image, not yet decoded."""

    position: int  # its place in the source, from 0
    id: str  # its own in the whole source; for files the path
    # relative to the source's `image_root`, "/" between its parts; what a dataset calls the image, if it does
    path: str | None
    label: Label  # class number; for several labels the numbers of all positive classes, ascending (there may be none)
    content: str | bytes  # the absolute path of the file, or the encoded image itself: what `decode_image` takes


@runtime_checkable
class ImageSource(Protocol):
    """Images in a fixed order, with their labels; `open_images` makes one."""

    @property
    def description(self) -> str:
        """The source as the user wrote it."""

    @property
    def image_root(self) -> str | None:
        """The folder that paths are relative to; None for datasets."""

    @property
    def labels(self) -> LabelKind:
        """Whether an image has one label, any number of them, or none is known."""

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes 0, 1, ..., if they are known."""

    @property
    def n_images(self) -> int | None:
        """How many there are; None for a stream."""

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SourceImage]:
        """The images at positions `start` to `stop` (exclusive; by default to the end), in order."""
