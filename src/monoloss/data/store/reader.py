"""The tensors of all shards of a store, memory-mapped and addressed by the row numbers of the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from monoloss.data.store.format import MANIFEST, Manifest, open_tensors, shard_names
from monoloss.data.transfer import queue_copy
from monoloss.errors import InputError

_SHARED = ("width", "dtype", "scale", "labels", "patch_grid", "thumbnails")  # must be equal in shards and manifest


class MappedShards:
    """The tensors of all shards of a store, read by tensor name and row number.

    Args:
        folder: the store.
        manifest: the manifest of the store.

    Attributes:
        offsets: number of the first row of each shard, then the number of all rows.
        device: the device of the embeddings that are returned.

    Raises:
        InputError: a file is missing, or its size or header contradicts the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._shards = [_open_shard(folder, manifest, index) for index in range(len(manifest.shards))]
        absolute = folder.resolve()  # each read opens a file again, after the working directory may have changed
        self._files = [absolute / shard_names(index)[0] for index in range(len(manifest.shards))]
        self._loaded: Tensor | None = None  # all embeddings
        self.device = torch.device("cpu")
        self.offsets = [0]
        for shard in manifest.shards:
            self.offsets.append(self.offsets[-1] + shard.n_rows)

    @property
    def is_loaded(self) -> bool:
        """Whether all embeddings are in memory."""
        return self._loaded is not None

    def load(self, device: str | torch.device) -> None:
        """Copy all embeddings to `device` in their stored dtype; later reads return rows of this copy."""
        like = self._shards[0]["embeddings"]
        loaded = torch.empty(self.offsets[-1], like.shape[1], dtype=like.dtype, device=device)
        for shard, file, first in zip(self._shards, self._files, self.offsets, strict=False):
            rows = loaded[first : first + len(shard["embeddings"])]
            if rows.device.type == "cpu":
                _read_rows(file, 0, rows)
            else:
                rows.copy_(shard["embeddings"])
        self._loaded, self.device = loaded, loaded.device

    def parts(self, start: int, stop: int | None) -> Iterator[tuple[dict[str, Tensor], int, int]]:
        """Yield the tensors of each shard with rows from `start` to `stop`, and the range of these rows in it."""
        stop = self.offsets[-1] if stop is None else stop
        if not 0 <= start <= stop <= self.offsets[-1]:
            raise InputError("start, stop", f"{start}, {stop}", f"0 <= start <= stop <= {self.offsets[-1]}")
        if start == stop:
            yield self._shards[0], 0, 0
        for shard, first, last in zip(self._shards, self.offsets, self.offsets[1:], strict=False):
            if max(start, first) < min(stop, last):
                yield shard, max(start, first) - first, min(stop, last) - first

    def range(self, name: str, start: int, stop: int | None) -> Shaped[Tensor, "n ..."]:
        """Return rows `start` to `stop` of tensor `name`: a view if loaded or all in one shard, else a copy."""
        parts = list(self.parts(start, stop))
        if self._loaded is not None and name == "embeddings":
            return self._loaded[start:stop]
        rows = [shard[name][first:last] for shard, first, last in parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def read_embeddings(self, start: int, stop: int | None) -> Shaped[Tensor, "n d"]:
        """Return a copy of the embeddings of rows `start` to `stop` in their stored dtype.

        The files are read, not mapped, so that no mapped pages fill the memory.

        Raises:
            InputError: a file has become shorter or unreadable since the store was opened.
        """
        if self._loaded is not None:
            return self.range("embeddings", start, stop).clone()
        n_rows = sum(last - first for _, first, last in self.parts(start, stop))
        like = self._shards[0]["embeddings"]
        rows = torch.empty(n_rows, like.shape[1], dtype=like.dtype)
        for file, first, last in zip(self._files, self.offsets, self.offsets[1:], strict=False):
            begin, end = max(start, first), min(start + n_rows, last)
            if begin < end:
                _read_rows(file, begin - first, rows[begin - start : end - start])
        return rows

    def gather(self, name: str, indices: Int[Tensor, " n"], each: int = 1) -> Shaped[Tensor, "n ..."]:
        """Return a copy of rows `indices` of tensor `name`, which has one entry for every `each` rows of the store."""
        expected = f"integers of shape (n,) from 0 to {self.offsets[-1] - 1}"
        if indices.ndim != 1 or indices.dtype not in {torch.int64, torch.int32}:
            raise InputError("indices", f"{indices.dtype} of shape {tuple(indices.shape)}", expected)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.offsets[-1]):
            raise InputError("indices", f"values from {int(indices.min())} to {int(indices.max())}", expected)
        if self._loaded is not None and name == "embeddings":
            return self._loaded.index_select(0, queue_copy(indices, self.device))
        indices = indices.to("cpu", torch.int64)
        like = self._shards[0][name]
        if len(self._shards) == 1:
            return like.index_select(0, indices // each)
        shard_of_row = torch.bucketize(indices, torch.tensor(self.offsets[1:]), right=True)
        gathered = torch.empty(len(indices), *like.shape[1:], dtype=like.dtype)
        for shard in shard_of_row.unique().tolist():
            places = (shard_of_row == shard).nonzero()[:, 0]
            entries = (indices[places] - self.offsets[shard]) // each
            gathered[places] = self._shards[shard][name].index_select(0, entries)
        return gathered


def _read_rows(file: Path, first: int, rows: Shaped[Tensor, "n d"]) -> None:
    """Fill `rows` with the embeddings of a shard's tensor file, from row `first` of the shard on."""
    if not rows.numel():
        return
    buffer = rows.view(torch.uint8).numpy().data.cast("B")
    try:
        with file.open("rb", buffering=0) as opened:
            header_length = int.from_bytes(opened.read(8), "little")
            begin, _ = json.loads(opened.read(header_length))["embeddings"]["data_offsets"]
            opened.seek(8 + header_length + begin + first * rows.shape[1] * rows.element_size())
            while len(buffer):
                n_bytes = opened.readinto(buffer)
                if not n_bytes:
                    raise InputError(str(file), "a file that has become shorter", "the shard as it was opened")
                buffer = buffer[n_bytes:]
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(file), f"an unreadable file ({error})", "the shard as it was opened") from error


def _open_shard(folder: Path, manifest: Manifest, index: int) -> dict[str, Tensor]:
    """Return the memory-mapped tensors of a shard; `InputError` if its files contradict the manifest."""
    listed = manifest.shards[index]
    for name, n_bytes in listed.n_bytes.items():
        file = folder / name
        if not file.is_file():
            raise InputError(str(file), "no such file", f"the {n_bytes} bytes that {MANIFEST} lists")
        if file.stat().st_size != n_bytes:
            raise InputError(str(file), f"{file.stat().st_size} bytes", f"the {n_bytes} that {MANIFEST} lists")
    tensor_name, line_name = shard_names(index)
    header, tensors = open_tensors(folder / tensor_name, index)
    same = all(getattr(header, name) == getattr(manifest, name) for name in _SHARED)
    if not same or header.n_rows != listed.n_rows or header.lines_sha256 != listed.sha256[line_name]:
        raise InputError(str(folder / tensor_name), "a shard of another store", f"the one that {MANIFEST} lists")
    return tensors
