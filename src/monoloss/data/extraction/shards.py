"""Prepared images and what the encoder made of them -> shards."""

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
    """What the shards of a run have in common."""

    width: int  # d
    labels: str | None  # None, "single" or "multi"
    n_classes: int  # columns of "multi" labels
    thumbnail_size: int | None  # side of the thumbnails, if there are any


class ShardBuilder:
    """Collects the images of one shard at a time and writes them.

    An image whose row cannot be stored (NaN, inf, only zeros, too large) is skipped with that reason. Where that is so
    for every image of the very first batch, something is wrong with the encoder or the stored type, and it is an error.

    Args:
        writer: of the store.
        shape: of the shards.
    """

    def __init__(self, writer: FeatureStoreWriter, shape: ShardShape) -> None:
        self._writer, self._shape = writer, shape
        self._shard: int | None = None
        self._started = bool(writer.written)  # a row has been stored before
        self._clear()

    def needs_writing(self, batch: PreparedBatch) -> bool:
        """Whether a batch belongs to another shard than the one that is collected."""
        return self._shard is not None and batch.shard != self._shard

    def add(self, batch: PreparedBatch, embeddings: Shaped[Tensor, "n *p d"] | None) -> int:
        """Take up a batch of the shard that is collected, or of the next; gives how many images were skipped.

        Raises:
            InputError: the encoder's output has another shape, or none of the first rows can be stored.
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
        shape = (len(batch.images), *self._patches(), self._shape.width)
        if tuple(embeddings.shape) != shape:
            raise InputError("encoder", f"an output of shape {tuple(embeddings.shape)}", f"{shape}, as it says itself")
        faults = self._faults(embeddings)
        if not self._started and all(faults):
            expected = f"an encoder whose rows can be stored as {self._writer.dtype}"
            expected += "" if self._writer.scale is None else f" with scale {self._writer.scale:g}, and another scale"
            raise InputError("encoder", f"{faults[0]} for every image of the first batch", expected)
        kept: list[int] = []
        for number, (image, fault) in enumerate(zip(batch.images, faults, strict=True)):
            reason = _NO_LABEL if self._shape.labels is not None and image.label is None else fault
            if reason is None:
                kept.append(number)
            else:
                self._skipped.append(skipped_file(image, reason))
        self._started = self._started or bool(kept)
        self._images += [batch.images[number] for number in kept]
        stored = embeddings if self._writer.scale is not None else embeddings.to(DTYPES[self._writer.dtype])
        self._embeddings.append(stored[kept])
        if batch.thumbnails is not None:
            self._thumbnails.append(batch.thumbnails[kept])

    def write(self) -> None:
        """Write the shard that is collected, if there is one."""
        if self._shard is None:
            return
        images = self._images
        none = torch.empty(0, *self._patches(), self._shape.width)
        self._writer.write_shard(
            self._shard,
            torch.cat(self._embeddings) if self._embeddings else none,
            [image.id for image in images],
            self._labels(),
            paths=[image.path for image in images],
            thumbnails=self._small(),
            skipped=sorted(self._skipped, key=lambda file: file.position),
        )
        self._clear()

    def _clear(self) -> None:
        self._images: list[SourceImage] = []
        self._embeddings: list[Tensor] = []
        self._thumbnails: list[Tensor] = []
        self._skipped: list[SkippedFile] = []
        self._shard = None

    def _patches(self) -> tuple[int, ...]:
        grid = self._writer.patch_grid
        return () if grid is None else (grid.n_patches,)

    def _faults(self, embeddings: Float[Tensor, "n *p d"]) -> list[str | None]:
        """Why each image cannot be stored; of patches the first reason, with the patch."""
        grid: PatchGrid | None = self._writer.patch_grid
        rows = row_faults(embeddings.flatten(0, -2), self._writer.dtype, self._writer.scale)
        if grid is None:
            return rows
        faults: list[str | None] = []
        for first in range(0, len(rows), grid.n_patches):
            of_image = rows[first : first + grid.n_patches]
            bad = next((patch for patch, fault in enumerate(of_image) if fault is not None), None)
            faults.append(None if bad is None else f"{of_image[bad]}, {grid.name('patch ', bad).replace(' #', ' ')}")
        return faults

    def _labels(self) -> Tensor | None:
        if self._shape.labels is None:
            return None
        labels = [image.label for image in self._images]
        if self._shape.labels == "single":
            return torch.tensor(labels, dtype=torch.int64)
        several = torch.zeros(len(labels), self._shape.n_classes, dtype=torch.bool)
        for row, label in enumerate(labels):
            several[row, list(label)] = True  # type: ignore[arg-type] # "multi" labels are tuples
        return several

    def _small(self) -> UInt8[Tensor, "n s s 3"] | None:
        size = self._shape.thumbnail_size
        if size is None:
            return None
        return torch.cat([torch.empty(0, size, size, 3, dtype=torch.uint8), *self._thumbnails])
