"""Collection of images and their embeddings into the shards of a store."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from monoloss.data.extraction.batches import NOT_PREPARED, PreparedBatch, skipped_file
from monoloss.data.images.source import SourceImage
from monoloss.data.store.format import DTYPES, SkippedFile
from monoloss.data.store.patches import PatchGrid
from monoloss.data.store.rows import row_faults
from monoloss.data.store.writer import FeatureStoreWriter
from monoloss.errors import InputError

_NO_LABEL = "without a label"


class ShardShape(NamedTuple):
    """Sizes that all shards of a store share."""

    width: int  # number of entries of an embedding
    labels: str | None  # None, "single" or "multi"
    n_classes: int  # columns of "multi" labels
    thumbnail_size: int | None  # side of the thumbnails in pixels; None without thumbnails


class ShardBuilder:
    """Collects the images of one shard at a time and writes them.

    An image whose row cannot be stored (NaN, inf, only zeros, too large) is skipped with that reason. It is an
    `InputError` if no image of the first batch gives a row: the encoder or the stored type must be wrong.

    Args:
        writer: the writer of the store.
        shape: the sizes of its shards.
    """

    def __init__(self, writer: FeatureStoreWriter, shape: ShardShape) -> None:
        self._writer, self._shape = writer, shape
        self._shard: int | None = None
        self._started = bool(writer.written)  # whether a row is collected or a shard is written
        self._clear()

    def needs_writing(self, batch: PreparedBatch) -> bool:
        """Return whether a batch belongs to another shard than the collected one, which `write` has to write first."""
        return self._shard is not None and batch.shard != self._shard

    def add(self, batch: PreparedBatch, embeddings: Shaped[Tensor, "n *p d"] | None) -> int:
        """Add a batch to the collected shard, or start a new one with it; return how many of its images are skipped.

        Raises:
            InputError: the embeddings have another shape, or no image of the first batch gives a row.
        """
        self._shard = batch.shard
        n_before = len(self._skipped)
        self._skipped += batch.skipped
        failed = [file for file in batch.skipped if file.reason.startswith(NOT_PREPARED)]
        if not self._started and len(failed) == batch.n_source:
            got = f"a transform that fails ({failed[0].reason}) for every image of the first batch"
            raise InputError("encoder", got, "one that takes RGB images")
        if embeddings is not None:
            self._add_rows(batch, embeddings)
        return len(self._skipped) - n_before

    def _add_rows(self, batch: PreparedBatch, embeddings: Shaped[Tensor, "n *p d"]) -> None:
        """Add the images whose rows can be stored; list the others as skipped."""
        shape = (len(batch.images), *self._patches(), self._shape.width)
        if tuple(embeddings.shape) != shape:
            raise InputError("encoder", f"an output of shape {tuple(embeddings.shape)}", f"{shape}, as it says itself")
        faults = self._faults(embeddings)
        if not self._started and all(faults):
            expected = f"an encoder whose rows can be stored as {self._writer.dtype}"
            expected += "" if self._writer.scale is None else f" with scale {self._writer.scale:g}, and another scale"
            raise InputError("encoder", f"{faults[0]} for every image of the first batch", expected)
        stored: list[int] = []  # of the images of the batch, by index
        for number, (image, fault) in enumerate(zip(batch.images, faults, strict=True)):
            reason = _NO_LABEL if self._shape.labels is not None and image.label is None else fault
            if reason is None:
                stored.append(number)
            else:
                self._skipped.append(skipped_file(image, reason))
        self._started = self._started or bool(stored)
        self._images += [batch.images[number] for number in stored]
        rows = embeddings if self._writer.scale is not None else embeddings.to(DTYPES[self._writer.dtype])
        self._embeddings.append(rows[stored])
        if batch.thumbnails is not None:
            self._thumbnails.append(batch.thumbnails[stored])

    def write(self) -> None:
        """Write the collected shard, if there is one."""
        if self._shard is None:
            return
        no_rows = torch.empty(0, *self._patches(), self._shape.width)
        self._writer.write_shard(
            self._shard,
            torch.cat(self._embeddings) if self._embeddings else no_rows,
            [image.id for image in self._images],
            self._labels(),
            paths=[image.path for image in self._images],
            thumbnails=self._joined_thumbnails(),
            skipped=sorted(self._skipped, key=lambda file: file.position),
        )
        self._clear()

    def _clear(self) -> None:
        """Forget the images and files of the shard that is written, for the next one."""
        self._images: list[SourceImage] = []
        self._embeddings: list[Tensor] = []
        self._thumbnails: list[Tensor] = []
        self._skipped: list[SkippedFile] = []
        self._shard = None

    def _patches(self) -> tuple[int, ...]:
        """Return the axis of patches in the shape of embeddings: `(n_patches,)`, or `()` without patches."""
        grid = self._writer.patch_grid
        return () if grid is None else (grid.n_patches,)

    def _faults(self, embeddings: Float[Tensor, "n *p d"]) -> list[str | None]:
        """Return why each image cannot be stored, or None; of patches the fault of the first bad one, and its place."""
        grid: PatchGrid | None = self._writer.patch_grid
        rows = row_faults(embeddings.flatten(0, -2), self._writer.dtype, self._writer.scale)
        if grid is None:
            return rows
        faults: list[str | None] = []
        for first in range(0, len(rows), grid.n_patches):
            patches = rows[first : first + grid.n_patches]
            bad = next((patch for patch, fault in enumerate(patches) if fault is not None), None)
            faults.append(None if bad is None else f"{patches[bad]}, {grid.name('patch ', bad).replace(' #', ' ')}")
        return faults

    def _labels(self) -> Tensor | None:
        """Return the labels of the collected images: `(n,)` int64, or for "multi" labels `(n, n_classes)` bool."""
        if self._shape.labels is None:
            return None
        labels = [image.label for image in self._images]
        if self._shape.labels == "single":
            return torch.tensor(labels, dtype=torch.int64)
        is_positive = torch.zeros(len(labels), self._shape.n_classes, dtype=torch.bool)
        for row, label in enumerate(labels):
            is_positive[row, list(label)] = True  # type: ignore[arg-type] # "multi" labels are tuples
        return is_positive

    def _joined_thumbnails(self) -> UInt8[Tensor, "n s s 3"] | None:
        """Return the thumbnails of the shard as one tensor; None if the store has none."""
        size = self._shape.thumbnail_size
        if size is None:
            return None
        return torch.cat([torch.empty(0, size, size, 3, dtype=torch.uint8), *self._thumbnails])
