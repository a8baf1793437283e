"""Options of all importers; the choice of labels, ids and paths; writing the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from monoloss import terminal
from monoloss.data.array_files import (
    EMBEDDING_KEYS,
    ID_KEYS,
    LABEL_KEYS,
    PATH_KEYS,
    AnyArray,
    choose_key,
    dtype_name,
    open_npy,
)
from monoloss.data.store import FeatureStore
from monoloss.data.store.stream import RowColumns, usual_dtype, write_rows
from monoloss.data.store.writer import StoreOptions
from monoloss.errors import InputError
from monoloss.files.text import read_lines

USUAL = {"embeddings_key": EMBEDDING_KEYS, "labels_key": LABEL_KEYS, "ids_key": ID_KEYS, "paths_key": PATH_KEYS}
Keys: TypeAlias = Mapping[str, str | None]  # the keys that the user gives, by argument


class ImportOptions(StoreOptions, total=False):
    """Options of every importer, as keyword arguments, in addition to `StoreOptions`.

    Args:
        labels_path: a file with the labels: an .npy file, or a text file with an integer on each line. It replaces
            labels of the source that have a usual name.
        ids_path: a file with the ids: an .npy file of strings or integers, or a text file with an id on each line.
        paths_path: a file with the paths relative to the image root, in the same formats.
        progress: show a progress bar; needs the extra `cli`.
    """

    labels_path: str | os.PathLike[str] | None
    ids_path: str | os.PathLike[str] | None
    paths_path: str | os.PathLike[str] | None
    progress: bool


class ColumnFiles(NamedTuple):
    """Labels, ids and paths from `labels_path`, `ids_path` and `paths_path`; None for a column without a file."""

    labels: Shaped[ndarray, "..."] | None
    ids: list[str] | None
    paths: list[str] | None

    @classmethod
    def read(cls, options: ImportOptions, keys: Keys | None = None) -> ColumnFiles:
        """Read the files named in the options; `InputError` for a column with both a key in `keys` and a file."""
        for name, key in (keys or {}).items():
            file = options.get(name.replace("_key", "_path"))
            if key is not None and file is not None:
                raise InputError(name, f"{key!r} beside the file {file}", "one of the two")
        labels, ids, paths = options.get("labels_path"), options.get("ids_path"), options.get("paths_path")
        return cls(
            None if labels is None else _label_file(labels),
            None if ids is None else _string_file(ids, "ids"),
            None if paths is None else _string_file(paths, "paths"),
        )

    def choose_keys(
        self,
        keys: Keys,
        present_keys: Collection[str],
        path: str | os.PathLike[str],
        usual: Mapping[str, Sequence[str]] = USUAL,
    ) -> tuple[str, str | None, str | None, str | None]:
        """Choose the keys of embeddings, labels, ids and paths; None for columns that are absent or read from files."""
        embeddings, *others = (
            choose_key(argument, keys[argument], usual[argument], present_keys, path) if file is None else None
            for argument, file in zip(usual, (None, *self), strict=True)
        )
        if not embeddings:
            raise no_embeddings(path, present_keys, usual["embeddings_key"])
        labels, ids, paths = others
        return embeddings, labels, ids, paths

    def part(self, start: int, stop: int) -> ColumnFiles:
        """Return the columns of the rows `start` to `stop` (exclusive)."""
        columns: list[Any] = [None if column is None else column[start:stop] for column in self]
        return ColumnFiles(*columns)

    def beside(
        self,
        labels: AnyArray | None = None,
        ids: Sequence[str] | None = None,
        paths: Sequence[str | None] | None = None,
    ) -> RowColumns:
        """Combine these columns with those of a source: files take precedence; without ids, the paths are the ids."""
        labels = labels if self.labels is None else self.labels
        ids = ids if self.ids is None else self.ids
        paths = paths if self.paths is None else self.paths
        return RowColumns(labels, cast("Sequence[str] | None", paths) if ids is None else ids, paths)


def store_options(options: ImportOptions, usual_dtype: str) -> StoreOptions:
    """Return the `StoreOptions` among the options, with `usual_dtype` as the dtype if none is given."""
    import_only = ImportOptions.__annotations__.keys() - StoreOptions.__annotations__.keys()
    given: dict[str, Any] = {name: value for name, value in options.items() if name not in import_only}
    return cast("StoreOptions", {"dtype": usual_dtype, **given})


def no_embeddings(
    path: str | os.PathLike[str], present_keys: Collection[str], usual: Sequence[str] = EMBEDDING_KEYS
) -> InputError:
    """Return the error for a source that has none of the usual keys of embeddings."""
    expected = f"embeddings_key, or one of the keys {', '.join(usual)}"
    return InputError(str(path), f"the keys {', '.join(present_keys) or '(none)'}", expected)


def import_progress(options: ImportOptions, n_rows: int | None) -> AbstractContextManager[Callable[..., None]]:
    """Show a progress bar of rows if the options ask for one; calling what it yields advances the bar."""
    return terminal.progress("importing", n_rows, "rows", shown=options.get("progress", False))


def write_array(
    folder: str | os.PathLike[str], rows: AnyArray, columns: RowColumns, options: ImportOptions
) -> FeatureStore:
    """Write an array or tensor of rows as a store, and open it."""
    read = lambda start, stop: rows[start:stop]  # noqa: E731
    return write_store(folder, tuple(rows.shape), dtype_name(rows), read, columns, options)


def write_store(
    folder: str | os.PathLike[str],
    shape: tuple[int, ...],
    dtype: str,
    read: Callable[[int, int], AnyArray],
    columns: RowColumns,
    options: ImportOptions,
) -> FeatureStore:
    """Write a store of the rows that `read(start, stop)` returns, and open it; see `write_rows`."""
    with import_progress(options, shape[0] if shape else None) as advance:
        write_rows(folder, shape, read, columns, advance, **store_options(options, usual_dtype(dtype)))
    return FeatureStore(folder)


def strings(values: Shaped[ndarray, "..."], name: str) -> list[str]:
    """Return ids or paths as a list of strings; `InputError` unless they are strings or integers, `(n,)`."""
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise InputError(name, f"{values.dtype} of shape {values.shape}", "strings or integers of shape (rows,)")
    plain = values.tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in plain]


def _is_npy(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".npy"


def _label_file(path: str | os.PathLike[str]) -> Shaped[ndarray, "..."]:
    """Read labels from an .npy file, or from a text file with an integer on each line."""
    if _is_npy(path):
        return open_npy(path)
    labels = np.empty(len(lines := read_lines(path)), dtype=np.int64)
    for row, line in enumerate(lines):
        try:
            labels[row] = int(line)
        except (ValueError, OverflowError) as error:
            raise InputError(str(path), f"{line!r} on line {row + 1}", "an integer on each line") from error
    return labels


def _string_file(path: str | os.PathLike[str], name: str) -> list[str]:
    """Read the column `name` from an .npy file, or from a text file with a string on each line."""
    return strings(open_npy(path), name) if _is_npy(path) else read_lines(path)
