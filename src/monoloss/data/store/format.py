"""What the files of a feature store hold; `writer` writes them, `store` reads them.

A store is a folder. Shard i covers the source positions `i * rows_per_shard` up to the next shard's first, and is whole
in itself:

- `shard-00000.safetensors`: `embeddings (rows, d)`; `labels (rows,)`, or `label_offsets (rows + 1,)` and `label_values`
  for several labels a row; `thumbnails (rows, h, w, c)`, if there are any; `unit_sum (d,)`, the float64 sum of its unit
  rows; and a `ShardHeader` in the metadata.
- `shard-00000.jsonl`: a line `{"id": ..., "path": ...}` for each row, in row order (the path may be missing), then a
  line `{"skipped": reason, "position": ..., "path": ...}` for each source file that gave no row.

Where the rows are patches (`patch_grid`), each source position has `grid height * grid width` consecutive rows, in
reading order; thumbnails and lines are still one an image.

`manifest.json` is written last, from the shards; a folder without it is unfinished.
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
_OPTIONAL = ("patch_grid", "source", "image_root")  # left out where they are None: older files have none of them
_HEADER_KEY = "monoloss"  # one key only: safetensors writes several in a random order, and equal shards must be equal


def shard_names(index: int) -> tuple[str, str]:
    """The names of the two files of shard `index`: tensors, lines."""
    return f"shard-{index:05d}.safetensors", f"shard-{index:05d}.jsonl"


def decode(stored: Shaped[Tensor, "n d"], scale: float | None) -> Float[Tensor, "n d"]:
    """Stored rows as float32: `stored` itself where it is float32, else a copy; `scale * stored` for bytes."""
    rows = stored.to(torch.float32)
    return rows if scale is None else rows.mul_(scale)


@dataclass(frozen=True)
class SkippedFile:
    """A source file that gave no row."""

    position: int  # its place in the source, from 0
    path: str  # relative to the image root
    reason: str  # why it gave no row


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about itself, and about the store that it belongs to."""

    index: int  # the shard's number, so that a renamed file is noticed
    n_rows: int  # rows; 0 where every source file was skipped
    width: int  # d
    dtype: str  # the name of the stored type
    scale: float | None  # for bytes, value = scale * byte
    labels: str | None  # None (there are none), "single" or "multi"
    n_classes: int  # width of multi-labels, number of class names, or largest label + 1
    class_names: list[str] | None  # names of the classes, if known
    thumbnails: list[int] | None  # (h, w, c), if there are any
    norms: list[float] | None  # smallest and largest norm of a stored row; None without rows
    encoder: dict[str, Any] | None  # `name`, `weights` and `preprocessing` of the image model, if known
    rows_per_shard: int  # source positions that each shard covers
    lines_sha256: str  # of the .jsonl that belongs to it
    # [height, width] of the grid of patches that are the rows of an image; None where a row is an image
    patch_grid: list[int] | None = None
    source: str | None = None  # where images were read from, as the user wrote it; None for rows that came as arrays
    image_root: str | None = None  # the folder that paths are relative to; only where `source` is known

    def check_same_store(self, other: ShardHeader, name: str) -> None:
        """Raise `InputError`, naming `name` and what differs, unless this shard can stand in one store with `other`."""
        own = {"index", "n_rows", "norms", "lines_sha256"} | ({"n_classes"} if self.labels == "single" else set())
        for field in fields(self):
            got, expected = getattr(self, field.name), getattr(other, field.name)
            if field.name not in own and got != expected:
                raise InputError(name, f"{field.name} {got!r}", f"{expected!r}, as in shard {other.index}")

    def to_metadata(self) -> dict[str, str]:
        """As safetensors stores it."""
        content = {name: value for name, value in asdict(self).items() if value is not None or name not in _OPTIONAL}
        return {_HEADER_KEY: json.dumps({"format_version": FORMAT_VERSION, **content}, allow_nan=False)}


def check_metadata(path: Path, what: str, found: ShardHeader | Manifest, expected: Mapping[str, object]) -> None:
    """Raise `InputError`, naming the file and the first difference, unless a shard or a store has certain facts.

    Args:
        path: the file that they were read from.
        what: what the error calls it.
        found: its facts.
        expected: what they must be, by name.
    """
    for name, value in expected.items():
        for where, got, wanted in _differences(name, getattr(found, name), value):
            raise InputError(str(path), f"{what} with {where} {_short(got)}", f"{_short(wanted)}, as in this run")


def _differences(name: str, got: Any, expected: Any) -> Iterator[tuple[str, object, object]]:
    """Where two values of JSON differ, as dotted names, with both values there."""
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        for key in dict.fromkeys([*expected, *got]):
            yield from _differences(f"{name}.{key}", got.get(key), expected.get(key))
    elif got != expected:
        yield name, got, expected


def _short(value: object, length: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= length else text[:length] + "..."


def open_tensors(path: Path, index: int) -> tuple[ShardHeader, dict[str, Tensor]]:
    """The header of shard `index` and its tensors, memory-mapped: nothing is read before it is looked at.

    Raises:
        InputError: the file is missing or torn, no shard of this version, or another shard.
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
    """The text of a shard's .jsonl. ASCII, so that no id, whatever it holds, breaks a line or an encoding."""
    records: list[dict[str, object]] = [{"id": name} for name in ids]
    for record, path in zip(records, paths or (), strict=paths is not None):
        if path is not None:
            record["path"] = path
    records += [{"skipped": file.reason, "position": file.position, "path": file.path} for file in skipped]
    return "".join(json.dumps(record) + "\n" for record in records)


@dataclass(frozen=True)
class ShardLines:
    """A shard's .jsonl: ids and paths in row order, and the skipped files."""

    ids: list[str]
    paths: list[str | None]
    skipped: list[SkippedFile]

    @classmethod
    def read(cls, path: Path, sha256: str) -> ShardLines:
        """Read a shard's lines; `InputError` where the file is missing or its contents are not those of `sha256`."""
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
    """A shard as the manifest lists it: its rows, and size and sha256 of its files by name."""

    n_rows: int
    n_bytes: dict[str, int]
    sha256: dict[str, str]

    @classmethod
    def of(cls, n_rows: int, *files: Path) -> ShardFiles:
        """Measure the files of a shard."""
        n_bytes = {file.name: file.stat().st_size for file in files}
        return cls(n_rows, n_bytes, {file.name: sha256(file) for file in files})


@dataclass(frozen=True)
class Manifest:
    """What a store is; the fields that it shares with `ShardHeader` mean the same."""

    n_rows: int  # rows of all shards
    width: int
    dtype: str
    scale: float | None
    labels: str | None
    n_classes: int
    class_names: list[str] | None
    thumbnails: list[int] | None
    norms: list[float]  # smallest and largest norm of a stored row
    mean: list[float]  # `(d,)` in float64: the mean of the UNIT rows `e_i / |e_i|`, which is what `center` takes
    encoder: dict[str, Any] | None
    image_root: str | None  # the folder that paths are relative to, if known
    rows_per_shard: int
    n_skipped: int  # source files that gave no row
    shards: list[ShardFiles]  # in the order of their rows
    patch_grid: list[int] | None = None  # as in `ShardHeader`
    source: str | None = None  # as in `ShardHeader`

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, whole."""
        write_json(folder / MANIFEST, asdict(self), format_version=FORMAT_VERSION)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `manifest.json`; whatever is wrong with it is an `InputError` that names it."""
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
            raise InputError(str(path), "figures that contradict each other", "the file as it was written")
        return manifest


def _is_grid(patch_grid: object, n_rows: list[int]) -> bool:
    """Whether there is no grid, or one that divides the rows of each shard."""
    if patch_grid is None:
        return True
    if not isinstance(patch_grid, list) or len(patch_grid) != 2:
        return False
    if not all(isinstance(side, int) and side > 0 for side in patch_grid):
        return False
    return all(rows % (patch_grid[0] * patch_grid[1]) == 0 for rows in n_rows)
