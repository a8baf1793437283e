"""Rows that are patches of images: row `i` is patch `i % p` of image `i // p`; patches are numbered row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar, overload

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from monoloss.errors import InputError

V = TypeVar("V")
T = TypeVar("T")


class PatchGrid(NamedTuple):
    """The number of patches of an image from top to bottom and from left to right."""

    height: int
    width: int

    @classmethod
    def checked(cls, grid: Sequence[object] | None) -> PatchGrid | None:
        """Return the grid that a user gives; `InputError` unless it is None or two positive integers."""
        if grid is None:
            return None
        sides = [side for side in grid if isinstance(side, int) and side > 0]
        if len(grid) != 2 or len(sides) != 2:
            raise InputError("patch_grid", repr(grid), "(height, width), each at least 1, or None")
        return cls(*sides)

    @property
    def n_patches(self) -> int:
        """Number of patches, hence of rows, of an image."""
        return self.height * self.width

    def name(self, image_id: str, patch: int) -> str:
        """Return the id of a patch: its image's id with its row and column in the grid, from 0: "a/b.png#3,5"."""
        return f"{image_id}#{patch // self.width},{patch % self.width}"

    def positions(self, rows: Int[Tensor, " n"]) -> Int64[Tensor, "n 3"]:
        """Return number of the image, row and column in the grid, `(n, 3)`, of the patches with these row numbers."""
        rows = rows.long()
        patch = rows % self.n_patches
        return torch.stack([rows // self.n_patches, patch // self.width, patch % self.width], dim=1)


class PatchRows(Sequence[T], Generic[V, T]):
    """A sequence of one value for each patch, computed on access from the value of the patch's image.

    Args:
        images: one value for each image.
        n_patches: number of patches of an image.
        make: `make(value, patch)` returns the value of a patch from that of its image and the number of the patch.
    """

    def __init__(self, images: Sequence[V], n_patches: int, make: Callable[[V, int], T]) -> None:
        self._images, self._n_patches, self._make = images, n_patches, make

    def __len__(self) -> int:
        return len(self._images) * self._n_patches

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        rows = range(len(self))[index]
        return self._row(rows) if isinstance(rows, int) else [self._row(row) for row in rows]

    def __iter__(self) -> Iterator[T]:
        return map(self._row, range(len(self)))

    def _row(self, row: int) -> T:
        """Return the value of a patch: that of its image, and its number in the image, through `make`."""
        return self._make(self._images[row // self._n_patches], row % self._n_patches)


def spread_labels(tensors: dict[str, Tensor], n_patches: int) -> dict[str, Tensor]:
    """Repeat the stored labels of images, `labels` or `label_offsets` and `label_values`, for each of their patches."""
    if "labels" in tensors:
        return {"labels": tensors["labels"].repeat_interleave(n_patches)}
    if "label_offsets" not in tensors:
        return {}
    counts = tensors["label_offsets"].diff()
    offsets = torch.zeros(len(counts) * n_patches + 1, dtype=torch.int64)
    offsets[1:] = counts.repeat_interleave(n_patches).cumsum(dim=0)
    parts = [part.repeat(n_patches) for part in tensors["label_values"].split(counts.tolist())]
    values = torch.cat(parts) if parts else tensors["label_values"]
    return {"label_offsets": offsets, "label_values": values}
