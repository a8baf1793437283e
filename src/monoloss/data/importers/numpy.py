"""NumPy files -> FeatureStore. Arrays in memory are written by `FeatureStore.create` itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray
from numpy.lib.npyio import NpzFile

from monoloss.data.importers.options import (
    EMBEDDING_KEYS,
    ID_KEYS,
    LABEL_KEYS,
    PATH_KEYS,
    ColumnFiles,
    ImportOptions,
    choose_key,
    columns_of,
    import_progress,
    no_embeddings,
    open_array,
    reading,
    store_options,
    strings,
)
from monoloss.data.store import FeatureStore
from monoloss.data.store.stream import RowColumns, usual_dtype, write_rows
from monoloss.errors import InputError


def import_npz(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    embeddings_key: str | None = None,
    labels_key: str | None = None,
    ids_key: str | None = None,
    paths_key: str | None = None,
    **options: Unpack[ImportOptions],
) -> FeatureStore:
    """Write the arrays of an .npz file as a store.

    A key that is not given is looked for: `embeddings` or `features` (one of them must be there); `labels` or
    `targets`; `ids`; `paths`. An empty key leaves out what would be found. Without ids the paths are the ids as well,
    without both the row numbers are.

    Args:
        path: the .npz file; pickled arrays in it are refused.
        folder: the store; it does not exist yet or is empty.
        embeddings_key: of the rows, `(n, d)`.
        labels_key: of the labels, `(n,)` integers or `(n, n_classes)` bool.
        ids_key: of the ids, `(n,)` strings or integers.
        paths_key: of the paths relative to the image root, `(n,)` strings.
        **options: see `ImportOptions` and `StoreOptions`; rows of bytes need `scale`.

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
    files = ColumnFiles.read(options, labels_key=labels_key, ids_key=ids_key, paths_key=paths_key)
    with reading(path, "archive"), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, ndarray):
            raise InputError(str(path), "a single array", "an .npz file; single arrays are read by import_npy")
        key = choose_key("embeddings_key", embeddings_key, EMBEDDING_KEYS, archive.files, path)
        if key is None:
            raise no_embeddings(path, archive.files, EMBEDDING_KEYS)
        embeddings = _member(archive, path, key)
        labels, ids, paths = files
        if labels is None and (key := choose_key("labels_key", labels_key, LABEL_KEYS, archive.files, path)):
            labels = _member(archive, path, key)
        if ids is None and (key := choose_key("ids_key", ids_key, ID_KEYS, archive.files, path)):
            ids = strings(_member(archive, path, key), "ids")
        if paths is None and (key := choose_key("paths_key", paths_key, PATH_KEYS, archive.files, path)):
            paths = strings(_member(archive, path, key), "paths")
    return _write_array(folder, embeddings, columns_of(labels, ids, paths), options)


def import_npy(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    **options: Unpack[ImportOptions],
) -> FeatureStore:
    """Write an .npy file of embeddings as a store; it is memory-mapped and read a shard at a time.

    Args:
        path: the .npy file of the rows, `(n, d)`; pickled arrays are refused.
        folder: the store; it does not exist yet or is empty.
        **options: see `ImportOptions` (labels, ids and paths come from files of their own; by default the ids are the
            row numbers) and `StoreOptions`; rows of bytes need `scale`.

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
    return _write_array(folder, open_array(path), columns_of(*ColumnFiles.read(options)), options)


def _write_array(
    folder: str | os.PathLike[str], embeddings: Shaped[ndarray, "..."], columns: RowColumns, options: ImportOptions
) -> FeatureStore:
    with import_progress(options, len(embeddings) if embeddings.ndim else None) as advance:
        dtype = usual_dtype(embeddings.dtype.name)
        read = lambda start, stop: embeddings[start:stop]  # noqa: E731
        write_rows(folder, embeddings.shape, read, columns, advance, **store_options(options, dtype))
    return FeatureStore(folder)


def _member(archive: NpzFile, path: str | os.PathLike[str], key: str) -> Shaped[ndarray, "..."]:
    with reading(path, f"array {key!r}"):
        member: ndarray = archive[key]
    return member
