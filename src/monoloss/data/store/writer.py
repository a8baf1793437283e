"""Writing a feature store shard by shard, in any order; the manifest is written last."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from monoloss.checks import check_choice, check_number
from monoloss.data.array_files import AnyArray, to_tensor
from monoloss.data.store.format import (
    DTYPES,
    MANIFEST,
    Manifest,
    ShardFiles,
    ShardHeader,
    ShardLines,
    SkippedFile,
    check_metadata,
    lines_text,
    open_tensors,
    shard_names,
)
from monoloss.data.store.patches import PatchGrid, spread_labels
from monoloss.data.store.rows import check_ids, check_same_rows, encode_labels, encode_rows, encode_thumbnails
from monoloss.errors import InputError
from monoloss.files.atomic import atomic_file, check_new_folder, remove_temporaries, write_text
from monoloss.files.tensors import save_tensors

_OF_ALL_SHARDS = ("width", "dtype", "scale", "labels", "class_names", "thumbnails", "encoder", "rows_per_shard",
                  "patch_grid", "source")  # fmt: skip


class StoreOptions(TypedDict, total=False):
    """Options of `FeatureStore.create` and of the importers, as keyword arguments; see `FeatureStoreWriter`."""

    dtype: str
    scale: float | None
    class_names: Sequence[str] | None
    encoder: Mapping[str, object] | None
    image_root: str | None
    rows_per_shard: int


class FeatureStoreWriter:
    """Write a feature store shard by shard, in any order, from one process or several.

    Each `write_shard` leaves a whole shard or nothing. At the end one process calls `finish`, which reads the shards
    back and writes the manifest; `FeatureStore` refuses an unfinished folder. To write whole arrays, use
    `FeatureStore.create`.

    Args:
        folder: the store; it does not exist yet or is empty (but see `resume`).
        dtype: name of the stored dtype: "float32", "float16", "bfloat16" or "uint8".
        scale: for "uint8", and only for it: value = scale * byte. Bytes are stored as they are; floating-point rows
            are rounded to the nearest byte and must lie in [0, 255 * scale].
        class_names: names of the classes 0, 1, ...; without them the number of classes is the largest label + 1.
        encoder: metadata of the image model: a mapping with `name`, `weights` and `preprocessing`, storable as JSON.
        image_root: the folder that paths are relative to.
        rows_per_shard: source positions that a shard covers; its rows, if no file is skipped and a row is an image.
        patch_grid: (height, width) of the grid of patches, if the rows are patches of images.
        source: where the images are read from, as the user wrote it; None for rows that are given as arrays.
        resume: resume an unfinished store, whose shards were written with the same arguments; also in a new folder.

    Attributes:
        first: header of the first shard that this writer opened or wrote; None before that.

    Raises:
        InputError: an argument is out of its range, or the folder is not as described; nothing has been written.
    """

    def __init__(  # noqa: PLR0913 - each is an option
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        scale: float | None = None,
        class_names: Sequence[str] | None = None,
        encoder: Mapping[str, object] | None = None,
        image_root: str | None = None,
        rows_per_shard: int = 65536,
        patch_grid: Sequence[int] | None = None,
        source: str | None = None,
        resume: bool = False,
    ) -> None:
        check_stored_type(dtype, scale)
        check_number("rows_per_shard", rows_per_shard, at_least=1, integer=True)
        self.folder = Path(folder)
        self.dtype, self.scale = dtype, None if scale is None else float(scale)
        self.class_names = _checked_names(class_names)
        self.encoder = checked_encoder(encoder)
        self.image_root, self.rows_per_shard = image_root, rows_per_shard
        self.patch_grid, self.source = PatchGrid.checked(patch_grid), source
        self.first: ShardHeader | None = None  # every other shard must have its metadata
        self._check_folder(resume=resume)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def metadata(self) -> dict[str, Any]:
        """The fields of `ShardHeader` that all shards of this store share and the arguments determine."""
        names = ("dtype", "scale", "class_names", "encoder", "rows_per_shard", "source")
        metadata = {name: getattr(self, name) for name in names}
        grid = None if self.patch_grid is None else list(self.patch_grid)
        image_root = None if self.source is None else self.image_root  # compared when an extraction resumes
        return {**metadata, "image_root": image_root, "patch_grid": grid}

    @property
    def written(self) -> list[int]:
        """The numbers of the shards in the folder, ascending."""
        return written_shards(self.folder)

    def write_shard(
        self,
        index: int,
        embeddings: Shaped[Tensor, "n *p d"] | Shaped[ndarray, "n *p d"],
        ids: Sequence[str],
        labels: Shaped[Tensor, "n *c"] | Shaped[ndarray, "n *c"] | None = None,
        *,
        paths: Sequence[str | None] | None = None,
        thumbnails: UInt8[Tensor, "n h w c"] | UInt8[ndarray, "n h w c"] | None = None,
        skipped: Sequence[SkippedFile] = (),
    ) -> None:
        """Check and write one shard, whole or not at all.

        Args:
            index: number of the shard, from 0.
            embeddings: `(n, d)`, 0 <= n <= rows_per_shard, floating point, or bytes for dtype "uint8"; with a
                `patch_grid` `(n, height * width, d)`, and n is the number of images here and below.
            ids: n strings, unique in the whole store.
            labels: `(n,)` integers from 0, or `(n, n_classes)` bool for any number of labels a row.
            paths: n paths relative to the image root; None for an unknown path.
            thumbnails: `(n, h, w, c)` bytes, c = 1 or 3.
            skipped: source files of this shard that gave no row.

        Raises:
            InputError: row counts that differ; a row that is zero or not finite, before or after its conversion to the
                stored dtype; a repeated id; a label out of range; a shard that exists, or differs from the first in
                metadata or shape. Rows are numbered from `index * rows_per_shard`. Nothing has been written.
        """
        check_number("index", index, at_least=0, integer=True)
        tensor_name, line_name = shard_names(index)
        if (self.folder / tensor_name).exists():
            got = f"{index}, which is written already in {self.folder}, by another process or an earlier call"
            raise InputError("index", got, "the number of a new shard")
        embeddings = to_tensor("embeddings", embeddings)
        patches = () if self.patch_grid is None else (self.patch_grid.n_patches,)
        fits = embeddings.ndim == 2 + len(patches) and embeddings.shape[1:-1] == patches
        if not fits or embeddings.shape[-1] == 0 or len(embeddings) > self.rows_per_shard:
            sides = ", ".join(["rows", *map(str, patches), "width"])
            expected = f"({sides}) with at most {self.rows_per_shard} rows and a width of at least 1"
            raise InputError("embeddings", f"shape {tuple(embeddings.shape)}", expected)
        check_same_rows(len(embeddings), ids=ids, labels=labels, paths=paths, thumbnails=thumbnails)
        check_ids(ids, index * self.rows_per_shard)
        lines = lines_text(ids, paths, skipped)
        tensors, header = self._encode(index, embeddings, ids, labels, thumbnails, lines)
        if self.first is not None:
            header.check_same_store(self.first, f"shard {index}")
        write_text(self.folder / line_name, lines)
        with atomic_file(self.folder / tensor_name) as temporary:  # written last: its presence marks a whole shard
            save_tensors(tensors, temporary, header.to_metadata())
        self.first = self.first or header

    def _encode(
        self,
        index: int,
        embeddings: Shaped[Tensor, "n *p d"],
        ids: Sequence[str],
        labels: AnyArray | None,
        thumbnails: AnyArray | None,
        lines: str,
    ) -> tuple[dict[str, Tensor], ShardHeader]:
        """Return the tensors and the header of a shard with checked row counts; `lines` is the text of its .jsonl."""
        grid = self.patch_grid
        rows_each = 1 if grid is None else grid.n_patches
        embeddings = embeddings.flatten(0, -2)

        def image_name(image: int) -> str:
            return f"row {(index * self.rows_per_shard + image) * rows_each}, id {ids[image]!r}"

        def row_name(row: int) -> str:
            name = ids[row] if grid is None else grid.name(ids[row // rows_each], row % rows_each)
            return f"row {index * self.rows_per_shard * rows_each + row}, id {name!r}"

        label_kind, n_classes, tensors = encode_labels(labels, self.class_names, image_name)
        if grid is not None:
            tensors = spread_labels(tensors, rows_each)
        if thumbnails is not None:
            tensors["thumbnails"] = encode_thumbnails(thumbnails)
        tensors["embeddings"], tensors["unit_sum"], norms = encode_rows(embeddings, self.dtype, self.scale, row_name)
        return tensors, ShardHeader(
            index=index,
            n_rows=embeddings.shape[0],
            width=embeddings.shape[1],
            labels=label_kind,
            n_classes=n_classes,
            thumbnails=None if thumbnails is None else list(thumbnails.shape[1:]),
            norms=norms,
            lines_sha256=hashlib.sha256(lines.encode("ascii")).hexdigest(),
            **self.metadata,
        )

    def finish(self, n_shards: int | None = None) -> None:
        """Read all shards back and write the manifest, which completes the store. Call it in one process, once.

        Args:
            n_shards: number of shards that the store must have; by default the largest shard number + 1.

        Raises:
            InputError: a shard is missing, damaged, has other metadata than the first, or repeats an id; or the store
                has no rows. No manifest has been written.
        """
        written = self.written
        expected = range(max(written, default=0) + 1 if n_shards is None else n_shards)
        for index in sorted(set(expected) ^ set(written)):
            got = "no such shard" if index in expected else "a shard too many"
            raise InputError(str(self.folder / shard_names(index)[0]), got, f"shards 0 to {len(expected) - 1}")
        headers: list[ShardHeader] = []
        shards: list[ShardFiles] = []
        shard_of_id: dict[str, int] = {}
        unit_sum, n_skipped = torch.zeros((), dtype=torch.float64), 0
        for index in written:
            tensor_file, line_file = (self.folder / name for name in shard_names(index))
            header, tensors = open_tensors(tensor_file, index)
            header.check_same_store((headers or [header])[0], str(tensor_file))
            lines = ShardLines.read(line_file, header.lines_sha256)
            for name in lines.ids:
                if shard_of_id.setdefault(name, index) != index:
                    got = f"{name!r} twice (shards {shard_of_id[name]} and {index})"
                    raise InputError("ids", got, "an id of its own for every row")
            headers.append(header)
            shards.append(ShardFiles.of(header.n_rows, tensor_file, line_file))
            unit_sum = unit_sum + tensors["unit_sum"]
            n_skipped += len(lines.skipped)
        if not shard_of_id:
            why = f" ({n_skipped} files were skipped: its .jsonl files say why)" if n_skipped else ""
            expected_rows = "at least one row; delete the folder before you try again"
            raise InputError(str(self.folder), f"a store without rows{why}", expected_rows)
        remove_temporaries(self.folder)
        manifest_of(headers, shards, unit_sum, self.image_root, n_skipped).write(self.folder)

    def _check_folder(self, *, resume: bool) -> None:
        """Raise `InputError` unless the folder is new or, to resume, an unfinished store with the same metadata."""
        check_new_folder(self.folder, allow_full=resume)
        if not self.folder.exists():
            return
        if (self.folder / MANIFEST).exists():
            raise InputError(str(self.folder), "a finished store", "an unfinished store to resume")
        for file in self.folder.iterdir():
            if not re.fullmatch(r"shard-\d{5,}\.(safetensors|jsonl)|\..*", file.name):
                raise InputError(str(file), "a file that is no part of a store", "a folder with nothing but shards")
        for index in self.written:
            path = self.folder / shard_names(index)[0]
            header, _ = open_tensors(path, index)
            check_metadata(path, "a shard", header, self.metadata)
            self.first = self.first or header


def check_stored_type(dtype: str, scale: float | None) -> None:
    """Raise `InputError` unless `dtype` is a key of `DTYPES`, with a positive scale if and only if it is "uint8"."""
    check_choice("dtype", dtype, list(DTYPES))
    if dtype == "uint8" and scale is None:
        raise InputError("scale", "None", "a number for dtype 'uint8', where value = scale * byte, from 0 to 255")
    if dtype != "uint8" and scale is not None:
        raise InputError("scale", repr(scale), f"None for dtype {dtype!r}; only 'uint8' has a scale")
    if scale is not None:
        check_number("scale", scale, above=0, below=float("inf"))


def written_shards(folder: Path) -> list[int]:
    """Return the numbers of the shards in a folder, ascending; a shard counts once its tensor file exists."""
    names = (re.fullmatch(r"shard-(\d{5,})\.safetensors", file.name) for file in folder.glob("shard-*"))
    return sorted(int(name[1]) for name in names if name)


def manifest_of(
    headers: Sequence[ShardHeader],
    shards: list[ShardFiles],
    unit_sum: Float64[Tensor, " d"],
    image_root: str | None,
    n_skipped: int,
) -> Manifest:
    """Merge the headers of all shards into a manifest; `unit_sum` is the sum of their `unit_sum`, in shard order."""
    first, n_rows = headers[0], sum(header.n_rows for header in headers)
    norms = [norm for header in headers for norm in header.norms or ()]
    return Manifest(
        n_rows=n_rows,
        n_classes=max(header.n_classes for header in headers),
        norms=[min(norms), max(norms)],
        mean=(unit_sum / n_rows).tolist(),
        image_root=image_root,
        n_skipped=n_skipped,
        shards=shards,
        **{name: getattr(first, name) for name in _OF_ALL_SHARDS},
    )


def _checked_names(class_names: Sequence[str] | None) -> list[str] | None:
    """Return class names as a list; `InputError` unless they are None or strings, at least one."""
    if class_names is None:
        return None
    names = list(class_names)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("class_names", repr(class_names), "a sequence of strings, or None")
    return names


def checked_encoder(encoder: Mapping[str, object] | None) -> dict[str, object] | None:
    """Return the metadata of an encoder as JSON reads them back; `InputError` for other keys or values of no JSON."""
    if encoder is None:
        return None
    expected = "name, weights and preprocessing, with values that JSON can hold"
    if set(encoder) != {"name", "weights", "preprocessing"}:
        raise InputError("encoder", f"the keys {sorted(encoder)}", expected)
    try:
        plain: dict[str, object] = json.loads(json.dumps(dict(encoder), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError("encoder", str(error), expected) from error
    return plain
