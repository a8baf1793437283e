"""Other people's files -> FeatureStore. Arrays in memory are written by `FeatureStore.create` itself."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray
from numpy.lib.npyio import NpzFile

from monoloss.data.store import FeatureStore
from monoloss.data.store_writer import StoreOptions
from monoloss.errors import InputError

EMBEDDING_KEYS = ("embeddings", "features")
LABEL_KEYS = ("labels", "targets")
ID_KEYS = ("ids",)
PATH_KEYS = ("paths",)


def import_npz(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    embeddings_key: str | None = None,
    labels_key: str | None = None,
    ids_key: str | None = None,
    paths_key: str | None = None,
    **options: Unpack[StoreOptions],
) -> FeatureStore:
    """Write the arrays of an .npz file as a store.

    A key that is not given is looked for: `embeddings` or `features` (one of them must be there); `labels` or
    `targets`; `ids`; `paths`. Without ids the paths are the ids as well, without both the row numbers are.

    Args:
        path: the .npz file; pickled arrays in it are refused.
        folder: the store; it does not exist yet or is empty.
        embeddings_key: of the rows, `(n, d)`.
        labels_key: of the labels, `(n,)` integers or `(n, n_classes)` bool.
        ids_key: of the ids, `(n,)` strings or integers.
        paths_key: of the paths relative to the image root, `(n,)` strings.
        **options: as for `FeatureStore.create`; rows of bytes need `scale`.

    Returns:
        The store, open.

    Raises:
        InputError: the file or a key cannot be read (the error lists the keys that are there), or the arrays cannot be
            stored; no folder appears then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     np.savez(parent + "/train.npz", features=np.eye(3, dtype=np.float32), labels=np.array([0, 2, 1]))
        ...     import_npz(parent + "/train.npz", parent + "/store").labels().tolist()
        [0, 2, 1]
    """
    with _reading(path, "archive"), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, ndarray):
            raise InputError(str(path), "a single array", "an .npz file; single arrays are read by import_npy")
        names = archive.files
        embeddings = _member(archive, path, "embeddings_key", embeddings_key, EMBEDDING_KEYS)
        labels = _member(archive, path, "labels_key", labels_key, LABEL_KEYS)
        ids = _member(archive, path, "ids_key", ids_key, ID_KEYS)
        paths = _member(archive, path, "paths_key", paths_key, PATH_KEYS)
    if embeddings is None:
        needed = f"embeddings_key, or one of the keys {', '.join(EMBEDDING_KEYS)}"
        raise InputError(str(path), f"the keys {', '.join(names) or '(none)'}", needed)
    path_list = None if paths is None else _strings(paths, "paths")
    id_list = path_list if ids is None else _strings(ids, "ids")
    return FeatureStore.create(folder, embeddings, labels, id_list, paths=path_list, **options)


def import_npy(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    labels_path: str | os.PathLike[str] | None = None,
    ids_path: str | os.PathLike[str] | None = None,
    **options: Unpack[StoreOptions],
) -> FeatureStore:
    """Write an .npy file of embeddings as a store; it is memory-mapped and read a shard at a time.

    Args:
        path: the .npy file of the rows, `(n, d)`; pickled arrays are refused.
        folder: the store; it does not exist yet or is empty.
        labels_path: an .npy file of the labels, `(n,)` integers or `(n, n_classes)` bool.
        ids_path: an .npy file of the ids, `(n,)` strings or integers; by default the ids are the row numbers.
        **options: as for `FeatureStore.create`; rows of bytes need `scale`.

    Returns:
        The store, open.

    Raises:
        InputError: a file cannot be read, or the arrays cannot be stored; no folder appears then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     np.save(parent + "/train.npy", np.eye(3, dtype=np.float16))
        ...     import_npy(parent + "/train.npy", parent + "/store").embeddings(1, 2).tolist()
        [[0.0, 1.0, 0.0]]
    """
    labels = None if labels_path is None else _array(labels_path)
    ids = None if ids_path is None else _strings(_array(ids_path), "ids")
    return FeatureStore.create(folder, _array(path), labels, ids, **options)


@contextmanager
def _reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn whatever NumPy raises for an unreadable file into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            str(path), f"an unreadable {what} ({error})", "a whole file without pickled objects"
        ) from error


def _array(path: str | os.PathLike[str]) -> Shaped[ndarray, "..."]:
    if zipfile.is_zipfile(path):
        raise InputError(str(path), "an archive of arrays", "an .npy file; archives are read by import_npz")
    with _reading(path, "array"):
        return np.lib.format.open_memmap(path, mode="r")


def _member(
    archive: NpzFile, path: str | os.PathLike[str], argument: str, key: str | None, usual: Sequence[str]
) -> ndarray | None:
    """The array called `key`, or else the only one with a usual name; None if there is none."""
    there = ", ".join(archive.files)
    found = [name for name in usual if name in archive.files] if key is None else [key]
    if len(found) > 1:
        raise InputError(argument, f"no choice between {' and '.join(found)} in {path}", "one of them")
    if not found:
        return None
    if found[0] not in archive.files:
        raise InputError(argument, repr(key), f"one of the keys of {path}: {there}")
    with _reading(path, f"array {found[0]!r}"):
        member: ndarray = archive[found[0]]
    return member


def _strings(values: Shaped[ndarray, "..."], name: str) -> list[str]:
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise InputError(name, f"{values.dtype} of shape {values.shape}", "strings or integers of shape (rows,)")
    plain = values.tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in plain]
