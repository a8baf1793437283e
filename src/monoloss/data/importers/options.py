"""What every importer takes, and how it finds labels, ids and paths."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from monoloss import terminal
from monoloss.data.store.rows import AnyArray
from monoloss.data.store.stream import RowColumns
from monoloss.data.store.writer import StoreOptions
from monoloss.errors import InputError
from monoloss.files.text import read_lines

EMBEDDING_KEYS = ("embeddings", "features")
LABEL_KEYS = ("labels", "targets")
ID_KEYS = ("ids",)
PATH_KEYS = ("paths",)


class ImportOptions(StoreOptions, total=False):
    """How other people's files become a store: keyword arguments of every importer, beside those of `StoreOptions`.

    Args:
        labels_path: a file with the labels, where the source holds none: an .npy file, or a text file with an integer
            on each line. It goes before labels that would be found under a usual name.
        ids_path: a file with the ids: an .npy file of strings or integers, or a text file with one on each line.
        paths_path: a file with the paths relative to the image root, likewise.
        progress: show a progress bar; needs the extra `cli`.
    """

    labels_path: str | os.PathLike[str] | None
    ids_path: str | os.PathLike[str] | None
    paths_path: str | os.PathLike[str] | None
    progress: bool


class ColumnFiles(NamedTuple):
    """The columns that come from files of their own; None for the others."""

    labels: Shaped[ndarray, "..."] | None
    ids: list[str] | None
    paths: list[str] | None

    @classmethod
    def read(cls, options: ImportOptions, **keys: str | None) -> ColumnFiles:
        """Read the files that are named; a column with both a key and a file is refused."""
        for name, key in keys.items():
            file = options.get(name.replace("_key", "_path"))
            if key is not None and file is not None:
                raise InputError(name, f"{key!r} beside the file {file}", "one of the two")
        labels, ids, paths = options.get("labels_path"), options.get("ids_path"), options.get("paths_path")
        return cls(
            None if labels is None else _label_file(labels),
            None if ids is None else _string_file(ids, "ids"),
            None if paths is None else _string_file(paths, "paths"),
        )


def columns_of(labels: AnyArray | None, ids: Sequence[str] | None, paths: Sequence[str | None] | None) -> RowColumns:
    """The columns of a source: without ids, the paths are the ids as well."""
    return RowColumns(labels, cast("Sequence[str] | None", paths) if ids is None else ids, paths)


def store_options(options: ImportOptions, usual_dtype: str) -> StoreOptions:
    """Those options that say how the store is written; `usual_dtype` where no stored type is asked for."""
    own = ImportOptions.__annotations__.keys() - StoreOptions.__annotations__.keys()
    kept: dict[str, Any] = {name: value for name, value in options.items() if name not in own}
    return cast("StoreOptions", {"dtype": usual_dtype, **kept})


def choose_key(
    argument: str, key: str | None, usual: Sequence[str], there: Collection[str], path: str | os.PathLike[str]
) -> str | None:
    """The key that is given, or else the only usual one that is there; None if there is none, or for an empty one."""
    found = [name for name in usual if name in there] if key is None else [key] if key else []
    if len(found) > 1:
        raise InputError(argument, f"no choice between {' and '.join(found)} in {path}", "one of them")
    if found and found[0] not in there:
        raise InputError(argument, repr(key), f"one of the keys of {path}: {', '.join(there)}")
    return found[0] if found else None


def no_embeddings(path: str | os.PathLike[str], there: Collection[str], usual: Sequence[str]) -> InputError:
    """What to raise for a source whose embeddings cannot be found."""
    needed = f"embeddings_key, or one of the keys {', '.join(usual)}"
    return InputError(str(path), f"the keys {', '.join(there) or '(none)'}", needed)


def import_progress(options: ImportOptions, n_rows: int | None) -> AbstractContextManager[Callable[..., None]]:
    """Show a progress bar of rows, if one is asked for."""
    return terminal.progress("importing", n_rows, "rows", shown=options.get("progress", False))


@contextmanager
def reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn whatever NumPy raises for an unreadable file into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            str(path), f"an unreadable {what} ({error})", "a whole file without pickled objects"
        ) from error


def open_array(path: str | os.PathLike[str]) -> Shaped[ndarray, "..."]:
    """The array of an .npy file, memory-mapped."""
    if zipfile.is_zipfile(path):
        raise InputError(str(path), "an archive of arrays", "an .npy file; archives are read by import_npz")
    with reading(path, "array"):
        return np.lib.format.open_memmap(path, mode="r")


def strings(values: Shaped[ndarray, "..."], name: str) -> list[str]:
    """Ids or paths as a list of strings."""
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise InputError(name, f"{values.dtype} of shape {values.shape}", "strings or integers of shape (rows,)")
    plain = values.tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in plain]


def _is_npy(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".npy"


def _label_file(path: str | os.PathLike[str]) -> Shaped[ndarray, "..."]:
    if _is_npy(path):
        return open_array(path)
    labels = np.empty(len(lines := read_lines(path)), dtype=np.int64)
    for row, line in enumerate(lines):
        try:
            labels[row] = int(line)
        except (ValueError, OverflowError) as error:
            raise InputError(str(path), f"{line!r} on line {row + 1}", "an integer on each line") from error
    return labels


def _string_file(path: str | os.PathLike[str], name: str) -> list[str]:
    return strings(open_array(path), name) if _is_npy(path) else read_lines(path)
