"""The file format of a feature store, which `writer` writes and `store` reads.

A store is a folder. Shard i covers the source positions from `i * rows_per_shard` to before `(i + 1) * rows_per_shard`
and can be read without the others:

- `shard-00000.safetensors`: `embeddings (rows, d)`; `labels (rows,)`, or `label_offsets (rows + 1,)` and `label_values`
  for several labels a row; `thumbnails (rows, h, w, c)`, if the store has any; `unit_sum (d,)`, the float64 sum of the
  shard's rows, each divided by its norm; and a `ShardHeader` in the metadata.
- `shard-00000.jsonl`: a line `{"id": ..., "path": ...}` for each row, in row order (no path if it is unknown), then a
  line `{"skipped": reason, "position": ..., "path": ...}` for each source file that gave no row.

If the rows are patches of images (`patch_grid`), each source position has `grid height * grid width` consecutive rows,
from left to right and from top to bottom, but one thumbnail and one line.

`manifest.json` is written last, from the shards; a store without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monoloss.errors import InputError
from monoloss.files.atomic import sha256
from monoloss.files.json import read_json, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "uint8": torch.uint8}
UNIT_NORM_TOLERANCE = 5e-3  # a unit row rounded to bfloat16 is off by up to 2e-3
_OPTIONAL = ("patch_grid", "source", "image_root")  # left out if None, as files of earlier versions lack them
_HEADER_KEY = "monoloss"  # one key: safetensors writes several in a random order, but equal shards must be equal files


def shard_names(index: int) -> tuple[str, str]:
    """Return the names of the two files of shard `index`: the tensor file and the .jsonl file."""
    return f"shard-{index:05d}.safetensors", f"shard-{index:05d}.jsonl"


def decode(stored: Shaped[Tensor, "n d"], scale: float | None) -> Float[Tensor, "n d"]:
    """Return stored rows as float32: `stored` itself if it is float32, else a copy; `scale * stored` for bytes."""
    rows = stored.to(torch.float32)
    return rows if scale is None else rows.mul_(scale)


@dataclass(frozen=True)
class SkippedFile:
    """A source file that gave no row."""

    position: int  # number of the file in the source, from 0
    path: str  # relative to the image root
    reason: str  # why it gave no row


@dataclass(frozen=True)
class ShardHeader:
    """Metadata of a shard and of its store, stored in the tensor file of the shard."""

    index: int  # number of the shard, so that a renamed file is noticed
    n_rows: int  # 0 if every source file was skipped
    width: int  # d
    dtype: str  # name of the stored dtype, a key of `DTYPES`
    scale: float | None  # for bytes, value = scale * byte
    labels: str | None  # None (no labels), "single" or "multi"
    n_classes: int  # width of multi-labels, number of class names, or largest label + 1
    class_names: list[str] | None  # names of the classes 0, 1, ..., if known
    thumbnails: list[int] | None  # (h, w, c), if the store has any
    norms: list[float] | None  # smallest and largest norm of a stored row; None without rows
    encoder: dict[str, Any] | None  # `name`, `weights` and `preprocessing` of the image model, if known
    rows_per_shard: int  # source positions that each shard covers
    lines_sha256: str  # sha256 of the shard's .jsonl
    # [height, width] of the grid of patches if the rows are patches of images; None if a row is an image
    patch_grid: list[int] | None = None
    source: str | None = None  # where images were read from, as the user wrote it; None for rows given as arrays
    image_root: str | None = None  # the folder that paths are relative to; None without `source`

    def check_same_store(self, other: ShardHeader, name: str) -> None:
        """Raise `InputError`, naming this shard by `name`, unless it has the store's metadata of the shard `other`."""
        per_shard = {"index", "n_rows", "norms", "lines_sha256"} | ({"n_classes"} if self.labels == "single" else set())
        for field in fields(self):
            got, expected = getattr(self, field.name), getattr(other, field.name)
            if field.name not in per_shard and got != expected:
                raise InputError(name, f"{field.name} {got!r}", f"{expected!r}, as in shard {other.index}")

    def to_metadata(self) -> dict[str, str]:
        """Return the header as metadata of a safetensors file."""
        content = {name: value for name, value in asdict(self).items() if value is not None or name not in _OPTIONAL}
        return {_HEADER_KEY: json.dumps({"format_version": FORMAT_VERSION, **content}, allow_nan=False)}


def check_metadata(path: Path, what: str, metadata: ShardHeader | Manifest, expected: Mapping[str, object]) -> None:
    """Raise `InputError`, naming the file and the first difference, unless metadata have the expected values.

    Args:
        path: the file of the metadata.
        what: what the error calls the file, such as "a shard".
        metadata: the metadata of a shard or of a store.
        expected: values by the name of the field; other fields may have any value.
    """
    for name, value in expected.items():
        for key, got, expected_value in _differences(name, getattr(metadata, name), value):
            raise InputError(str(path), f"{what} with {key} {_short(got)}", f"{_short(expected_value)}, as in this run")


def _differences(name: str, got: Any, expected: Any) -> Iterator[tuple[str, object, object]]:
    """Yield each difference of two JSON values: its dotted key (after `name`), the value got, the value expected."""
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        for key in dict.fromkeys([*expected, *got]):
            yield from _differences(f"{name}.{key}", got.get(key), expected.get(key))
    elif got != expected:
        yield name, got, expected


def _short(value: object, length: int = 200) -> str:
    """Return the `repr` of a value, cut after `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[:length] + "..."


def open_tensors(path: Path, index: int) -> tuple[ShardHeader, dict[str, Tensor]]:
    """Open the tensor file of shard `index`: its header and its memory-mapped tensors by name.

    Raises:
        InputError: the file is missing or damaged, of another format version, or holds a shard of another number.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        content = json.loads(metadata[_HEADER_KEY])
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise InputError(str(path), f"format_version {version!r}", f"format_version {FORMAT_VERSION}")
        header = ShardHeader(**content)
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "the shard as it was written") from error
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise InputError(str(path), f"no shard of a store ({error})", "the shard as it was written") from error
    if header.index != index:
        raise InputError(str(path), f"shard {header.index}", f"shard {index}: files have been swapped")
    stored = tensors.get("embeddings")
    if stored is None or stored.shape != (header.n_rows, header.width) or stored.dtype != DTYPES.get(header.dtype):
        raise InputError(str(path), "embeddings that differ from its header", "the shard as it was written")
    return header, tensors


def lines_text(ids: Sequence[str], paths: Sequence[str | None] | None, skipped: Sequence[SkippedFile]) -> str:
    """Return the text of a shard's .jsonl, in ASCII, so that no character of an id breaks a line or an encoding."""
    records: list[dict[str, object]] = [{"id": name} for name in ids]
    for record, path in zip(records, paths or (), strict=paths is not None):
        if path is not None:
            record["path"] = path
    records += [{"skipped": file.reason, "position": file.position, "path": file.path} for file in skipped]
    return "".join(json.dumps(record) + "\n" for record in records)


@dataclass(frozen=True)
class ShardLines:
    """The contents of a shard's .jsonl: ids and paths in row order, and the skipped files."""

    ids: list[str]
    paths: list[str | None]
    skipped: list[SkippedFile]

    @classmethod
    def read(cls, path: Path, sha256: str) -> ShardLines:
        """Read a shard's .jsonl; `InputError` if the file is missing or its sha256 is another one."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(str(path), error.strerror or str(error), "the file as it was written") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(str(path), "changed contents", "the file as it was written")
        lines = cls([], [], [])
        for record in map(json.loads, content.decode("ascii").splitlines()):
            if "skipped" in record:
                lines.skipped.append(SkippedFile(record["position"], record["path"], record["skipped"]))
            else:
                lines.ids.append(record["id"])
                lines.paths.append(record.get("path"))
        return lines


@dataclass(frozen=True)
class ShardFiles:
    """A shard as the manifest lists it: number of rows, and size and sha256 of each file by its name."""

    n_rows: int
    n_bytes: dict[str, int]
    sha256: dict[str, str]

    @classmethod
    def of(cls, n_rows: int, *files: Path) -> ShardFiles:
        """Measure and hash the files of a shard with `n_rows` rows."""
        n_bytes = {file.name: file.stat().st_size for file in files}
        return cls(n_rows, n_bytes, {file.name: sha256(file) for file in files})


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`; fields without a comment mean what they mean in `ShardHeader`."""

    n_rows: int  # number of rows of all shards
    width: int
    dtype: str
    scale: float | None
    labels: str | None
    n_classes: int
    class_names: list[str] | None
    thumbnails: list[int] | None
    norms: list[float]  # smallest and largest norm of a stored row
    mean: list[float]  # `(d,)`, float64: the mean of the UNIT rows `e_i / |e_i|`, as arguments named `center` expect it
    encoder: dict[str, Any] | None
    image_root: str | None  # the folder that paths are relative to, if known; also without `source`
    rows_per_shard: int
    n_skipped: int  # source files that gave no row
    shards: list[ShardFiles]  # in the order of their rows
    patch_grid: list[int] | None = None
    source: str | None = None

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into the folder, whole or not at all."""
        write_json(folder / MANIFEST, asdict(self), format_version=FORMAT_VERSION)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of a folder; `InputError` naming the file if it is missing, damaged or contradictory."""
        path = folder / MANIFEST
        content = read_json(path, format_version=FORMAT_VERSION)
        try:
            content["shards"] = [ShardFiles(**shard) for shard in content["shards"]]
            manifest = cls(**content)
            fits = (
                manifest.dtype in DTYPES
                and all(isinstance(getattr(manifest, name), int) for name in ("n_rows", "width", "n_classes"))
                and all(isinstance(number, float) for number in (*manifest.mean, *manifest.norms))
                and manifest.n_rows == sum(shard.n_rows for shard in manifest.shards)
                and len(manifest.mean) == manifest.width
                and (manifest.class_names is None or len(manifest.class_names) == manifest.n_classes)
                and _is_grid(manifest.patch_grid, [shard.n_rows for shard in manifest.shards])
                and all(
                    tuple(files) == shard_names(index)
                    for index, shard in enumerate(manifest.shards)
                    for files in (shard.n_bytes, shard.sha256)
                )
            )
        except (KeyError, TypeError) as error:
            raise InputError(str(path), f"no manifest of a store ({error})", "the file as it was written") from error
        if not fits:
            raise InputError(str(path), "numbers that contradict each other", "the file as it was written")
        return manifest


def _is_grid(patch_grid: object, n_rows: list[int]) -> bool:
    """Return whether `patch_grid` is None, or two positive integers whose product divides the rows of each shard."""
    if patch_grid is None:
        return True
    if not isinstance(patch_grid, list) or len(patch_grid) != 2:
        return False
    if not all(isinstance(side, int) and side > 0 for side in patch_grid):
        return False
    return all(rows % (patch_grid[0] * patch_grid[1]) == 0 for rows in n_rows)
