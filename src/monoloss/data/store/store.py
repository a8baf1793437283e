"""FeatureStore: a folder of embeddings, labels and ids in row order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from monoloss.checks import check_number
from monoloss.data.array_files import check_array, dtype_name
from monoloss.data.store.format import (
    DTYPES,
    MANIFEST,
    UNIT_NORM_TOLERANCE,
    Manifest,
    ShardLines,
    SkippedFile,
    decode,
    open_tensors,
    shard_names,
)
from monoloss.data.store.patches import PatchGrid, PatchRows
from monoloss.data.store.read_ahead import read_ahead
from monoloss.data.store.reader import MappedShards
from monoloss.data.store.stream import RowColumns, usual_dtype, write_rows
from monoloss.data.store.writer import StoreOptions, manifest_of
from monoloss.data.transfer import queue_copy
from monoloss.errors import InputError
from monoloss.files.atomic import check_new_folder, sha256


class StoredBatch(NamedTuple):
    """Consecutive rows of a store."""

    start: int  # number of the first row
    embeddings: Float[Tensor, "n d"]  # `(n, d)` float32, as stored
    labels: Int64[Tensor, " n"] | Bool[Tensor, "n c"] | None  # `(n,)` int64, `(n, n_classes)` bool, or None


class FeatureStore:
    """A folder with the embeddings, labels and ids of a data set; rows keep the order in which they were written.

    Opening reads the manifest and the headers of the shards. Rows are read on access (rows by number, labels and
    thumbnails through a memory map) and returned as they are stored (not normalised), in float32.

    Args:
        folder: a finished store, written by `FeatureStore.create`, `FeatureStoreWriter` or an importer.

    Attributes:
        folder: path of the store.
        manifest: the contents of its `manifest.json`.
        n_rows, width: n and d.
        n_classes: number of classes; 0 without labels.
        class_names: names of the classes 0, 1, ..., or None.
        multi_label: whether labels are `(n, n_classes)` bool, not `(n,)` integers.
        has_labels, has_thumbnails: whether the store has labels or thumbnails.
        normalised: whether every stored row has norm 1, within 0.005.
        mean: `(d,)` float64, the mean of the UNIT rows `e_i / |e_i|`, as arguments named `center` expect it.
        fingerprint: a hash of all contents, equal for stores with equal files.
        shard_offsets: number of the first row of each shard, then `n_rows`.
        patch_grid: (height, width) of the grid of patches if the rows are patches of images, else None.
        n_images: number of images: n, unless the rows are patches.

    Raises:
        InputError: the store is unfinished or of another format version, or a file is missing or has a wrong size or
            header; the error names the file. Only `verify` compares the contents of the files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     store = FeatureStore.create(parent + "/store", torch.eye(3), torch.tensor([0, 1, 1]), ["a", "b", "c"])
        ...     print(len(store), store.n_classes, store.ids, store.rows(torch.tensor([2, 0])).tolist())
        3 2 ['a', 'b', 'c'] [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.is_dir() and not (self.folder / MANIFEST).exists():
            raise InputError(str(self.folder), f"a folder without {MANIFEST}", "a store that has been finished")
        self.manifest = manifest = Manifest.read(self.folder)
        self._shards = MappedShards(self.folder, manifest)
        self.n_rows, self.width, self.n_classes = manifest.n_rows, manifest.width, manifest.n_classes
        self.class_names, self.multi_label = manifest.class_names, manifest.labels == "multi"
        self.has_labels, self.has_thumbnails = manifest.labels is not None, manifest.thumbnails is not None
        self.normalised = all(abs(norm - 1) <= UNIT_NORM_TOLERANCE for norm in manifest.norms)
        self.mean = torch.tensor(manifest.mean, dtype=torch.float64)
        hashes = [shard.sha256[name] for shard in manifest.shards for name in sorted(shard.sha256)]
        self.fingerprint = hashlib.sha256("\n".join(hashes).encode("ascii")).hexdigest()
        self.shard_offsets = self._shards.offsets
        self.patch_grid = PatchGrid.checked(manifest.patch_grid)
        self._rows_each = 1 if self.patch_grid is None else self.patch_grid.n_patches
        self.n_images = self.n_rows // self._rows_each

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        embeddings: Shaped[Tensor, "n d"] | Shaped[ndarray, "n d"],
        labels: Shaped[Tensor, "n *c"] | Shaped[ndarray, "n *c"] | None = None,
        ids: Sequence[str] | None = None,
        *,
        paths: Sequence[str | None] | None = None,
        thumbnails: UInt8[Tensor, "n h w c"] | UInt8[ndarray, "n h w c"] | None = None,
        **options: Unpack[StoreOptions],
    ) -> FeatureStore:
        """Write arrays as a store, whole or not at all, and open it.

        Arrays are read a shard at a time, so memory-mapped arrays may be larger than the memory.

        Args:
            folder: the store; it does not exist yet or is empty.
            embeddings: `(n, d)` with n >= 1, floating point, or bytes for dtype "uint8".
            labels: `(n,)` integers from 0, or `(n, n_classes)` bool for any number of labels a row.
            ids: one string for each row, all different; by default the row numbers.
            paths: one for each row, relative to the image root; None for an unknown path.
            thumbnails: `(n, h, w, c)` bytes, c = 1 or 3.
            **options: see `StoreOptions`; `dtype` is by default that of the embeddings, float32 for float64.

        Raises:
            InputError: as `FeatureStoreWriter` and its `write_shard` do, with the number of the row.
        """
        check_new_folder(folder)
        check_array("embeddings", embeddings)
        options.setdefault("dtype", usual_dtype(dtype_name(embeddings)))
        columns = RowColumns(labels, ids, paths, thumbnails)
        write_rows(folder, embeddings.shape, lambda start, stop: embeddings[start:stop], columns, **options)
        return cls(folder)

    def embeddings(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "n d"]:
        """Return a copy of the rows `start` to `stop` (exclusive; None: to the end), `(n, d)` float32, on `device`."""
        return decode(self._shards.read_embeddings(start, stop), self.manifest.scale)

    def labels(self, start: int = 0, stop: int | None = None) -> Int64[Tensor, " n"] | Bool[Tensor, "n c"]:
        """Return the labels of rows `start` to `stop`: `(n,)` int64, or `(n, n_classes)` bool for a multi-label store.

        Raises:
            InputError: the store has no labels, or the range is not within the store.
        """
        if not self.has_labels:
            raise InputError("labels", f"{self.folder}, a store without labels", "a store that was written with labels")
        if not self.multi_label:
            return queue_copy(self._shards.range("labels", start, stop).clone(), self.device)
        labels_of_shards = []
        for shard, first, last in self._shards.parts(start, stop):
            offsets = shard["label_offsets"][first : last + 1]
            labels = torch.zeros(last - first, self.n_classes, dtype=torch.bool)
            rows = torch.arange(last - first).repeat_interleave(offsets.diff())
            labels[rows, shard["label_values"][offsets[0] : offsets[-1]]] = True
            labels_of_shards.append(labels)
        return queue_copy(torch.cat(labels_of_shards), self.device)

    def rows(self, indices: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the rows with the numbers `indices` (repeats allowed), in that order, `(n, d)` float32, on `device`.

        Raises:
            InputError: an index is outside 0 to `n_rows - 1`.
        """
        return decode(self._shards.gather("embeddings", indices), self.manifest.scale)

    def thumbnails(self, indices: Int[Tensor, " n"]) -> UInt8[Tensor, "n h w c"]:
        """Return the thumbnails of the rows `indices`, in that order, on the CPU; of a patch, that of its image.

        Raises:
            InputError: the store has no thumbnails, or an index is outside 0 to `n_rows - 1`.
        """
        if not self.has_thumbnails:
            got = f"{self.folder}, a store without thumbnails"
            raise InputError("thumbnails", got, "a store that was written with thumbnails")
        return self._shards.gather("thumbnails", indices, self._rows_each)

    def patches(self, indices: Int[Tensor, " n"]) -> Int64[Tensor, "n 3"]:
        """Return for each patch `indices` the number of its image in `image_ids`, and its row and column in the grid.

        Raises:
            InputError: the rows are images.
        """
        if self.patch_grid is None:
            raise InputError("patches", f"{self.folder}, whose rows are images", "a store whose rows are patches")
        return self.patch_grid.positions(indices)

    def batches(self, batch_size: int) -> Iterator[StoredBatch]:
        """Yield every row once, in stored order; a batch never crosses shards, so the last of a shard may be short.

        Unless the store is loaded, a thread reads the next batch while the caller works on one. Files are read, not
        mapped, so no more than two batches are in memory.

        Args:
            batch_size: number of rows of a full batch, at least 1.
        """
        check_number("batch_size", batch_size, at_least=1, integer=True)
        return self._batches(batch_size)

    def load(self, device: str | torch.device = "cpu") -> FeatureStore:
        """Hold all embeddings in memory on `device`, in their stored dtype; return the store.

        Takes `n_bytes` of memory. Rows and labels are then returned on `device`; a random batch costs one gather.
        """
        self._shards.load(device)
        return self

    def load_if_small(self) -> FeatureStore:
        """Load the embeddings unless they are loaded or exceed a quarter of the machine's memory; return the store."""
        memory = self.n_bytes * 4  # on a system that does not report its memory
        if hasattr(os, "sysconf"):
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if not self._shards.is_loaded and self.n_bytes <= memory // 4:
            self._shards.load(self.device)
        return self

    def verify(self) -> None:
        """Compare the sha256 of every file, and the metadata of every shard, with the manifest; reads all files.

        Raises:
            InputError: files are missing or have changed; the error names all of them.
        """
        changed = [
            name
            for shard in self.manifest.shards
            for name, expected in shard.sha256.items()
            if not (self.folder / name).is_file() or sha256(self.folder / name) != expected
        ]
        if not changed and self._rebuilt_manifest() != self.manifest:
            changed.append(MANIFEST)
        if changed:
            got = f"changed contents in {', '.join(changed)}"
            raise InputError(str(self.folder), got, f"the files whose sha256 {MANIFEST} holds")

    def _rebuilt_manifest(self) -> Manifest:
        """Return the manifest that follows from the shards' headers."""
        headers, unit_sum = [], torch.zeros((), dtype=torch.float64)
        for index in range(len(self.manifest.shards)):
            header, tensors = open_tensors(self.folder / shard_names(index)[0], index)
            headers.append(header)
            unit_sum = unit_sum + tensors["unit_sum"]
        return manifest_of(headers, self.manifest.shards, unit_sum, self.manifest.image_root, len(self.skipped))

    @property
    def ids(self) -> Sequence[str]:
        """The id of each row, in stored order; the files of ids are read once, and their sha256 is checked.

        A patch has the id of its image with its row and column, "a/b.png#3,5", which is computed on access.
        """
        grid, images = self.patch_grid, self._lines.ids
        return images if grid is None else PatchRows(images, grid.n_patches, grid.name)

    @property
    def paths(self) -> Sequence[str | None]:
        """The path of each row relative to `manifest.image_root`, or None if it is unknown."""
        images = self._lines.paths
        return images if self.patch_grid is None else PatchRows(images, self._rows_each, lambda path, _: path)

    @property
    def image_ids(self) -> list[str]:
        """The id of each image, in stored order; equal to `ids` unless the rows are patches."""
        return self._lines.ids

    @property
    def skipped(self) -> list[SkippedFile]:
        """The source files that gave no row."""
        return self._lines.skipped

    @property
    def device(self) -> torch.device:
        """The device of rows and labels that are returned: that of the last `load`, before it the CPU."""
        return self._shards.device

    @property
    def is_loaded(self) -> bool:
        """Whether `load` holds all embeddings in memory."""
        return self._shards.is_loaded

    @property
    def n_bytes(self) -> int:
        """The memory in bytes that `load` takes: n_rows * width times the size of the stored dtype."""
        return self.n_rows * self.width * DTYPES[self.manifest.dtype].itemsize

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        classes = f", {self.n_classes} classes" * self.has_labels + ", several labels a row" * self.multi_label
        grid = "" if self.patch_grid is None else f" ({self.n_images} images x {self._rows_each} patches)"
        size = f"{self.n_rows} x {self.width} {self.manifest.dtype}{grid}"
        return f"FeatureStore({str(self.folder)!r}: {size}{classes}, {len(self.manifest.shards)} shards)"

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.folder.resolve(),)  # a pickle holds the path only; unpickling opens the store again

    @cached_property
    def _lines(self) -> ShardLines:
        """The contents of the .jsonl files of all shards, one after the other."""
        lines = ShardLines([], [], [])
        for index, shard in enumerate(self.manifest.shards):
            name = shard_names(index)[1]
            part = ShardLines.read(self.folder / name, shard.sha256[name])
            lines.ids.extend(part.ids)
            lines.paths.extend(part.paths)
            lines.skipped.extend(part.skipped)
        return lines

    def _batches(self, batch_size: int) -> Iterator[StoredBatch]:
        """Yield all rows in batches that end at shard ends, read ahead if the rows are on the disk."""
        spans = (
            (start, min(start + batch_size, last))
            for first, last in zip(self.shard_offsets, self.shard_offsets[1:], strict=False)
            for start in range(first, last, batch_size)
        )
        return read_ahead(lambda span: self._batch(*span), spans, ahead=not self.is_loaded)

    def _batch(self, start: int, stop: int) -> StoredBatch:
        return StoredBatch(start, self.embeddings(start, stop), self.labels(start, stop) if self.has_labels else None)
