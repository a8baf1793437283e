"""Import of NumPy files. `FeatureStore.create` writes arrays that are in memory."""

from __future__ import annotations

import os
from typing import Unpack

from monoloss.data.array_files import open_npy, open_npz, read_member
from monoloss.data.importers import options as importing
from monoloss.data.store import FeatureStore


def import_npz(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    embeddings_key: str | None = None,
    labels_key: str | None = None,
    ids_key: str | None = None,
    paths_key: str | None = None,
    **options: Unpack[importing.ImportOptions],
) -> FeatureStore:
    """Write the arrays of an .npz file as a store, and open it.

    A key that is not given is chosen by name: `embeddings` or `features` (required); `labels` or `targets`; `ids`;
    `paths`. Give "" for no such column. Without ids, the paths become the ids; without both, the row numbers.

    Args:
        path: the .npz file; pickled arrays in it are refused.
        folder: the store; it does not exist yet or is empty.
        embeddings_key: key of the rows, `(n, d)`.
        labels_key: key of the labels, `(n,)` integers or `(n, n_classes)` bool.
        ids_key: key of the ids, `(n,)` strings or integers.
        paths_key: key of the paths relative to the image root, `(n,)` strings.
        **options: see `ImportOptions` and `StoreOptions`; rows of bytes need `scale`.

    Raises:
        InputError: the file or a key cannot be read (the error lists the keys of the file), or the arrays cannot be
            stored; no folder is made.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     np.savez(parent + "/train.npz", features=np.eye(3, dtype=np.float32), labels=np.array([0, 2, 1]))
        ...     import_npz(parent + "/train.npz", parent + "/store").labels().tolist()
        [0, 2, 1]
    """
    keys = {"embeddings_key": embeddings_key, "labels_key": labels_key, "ids_key": ids_key, "paths_key": paths_key}
    files = importing.ColumnFiles.read(options, keys)
    with open_npz(path) as archive:
        key, *others = files.choose_keys(keys, archive.files, path)
        rows = read_member(archive, path, key)
        labels, ids, paths = (None if key is None else read_member(archive, path, key) for key in others)
    columns = files.beside(
        labels,
        None if ids is None else importing.strings(ids, "ids"),
        None if paths is None else importing.strings(paths, "paths"),
    )
    return importing.write_array(folder, rows, columns, options)


def import_npy(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    **options: Unpack[importing.ImportOptions],
) -> FeatureStore:
    """Write an .npy file of embeddings as a store, and open it; the file is memory-mapped and read a shard at a time.

    Args:
        path: the .npy file of the rows, `(n, d)`; pickled arrays are refused.
        folder: the store; it does not exist yet or is empty.
        **options: see `ImportOptions` (labels, ids and paths are read from other files; by default the ids are the row
            numbers) and `StoreOptions`; rows of bytes need `scale`.

    Raises:
        InputError: a file cannot be read, or the arrays cannot be stored; no folder is made.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     np.save(parent + "/train.npy", np.eye(3, dtype=np.float16))
        ...     import_npy(parent + "/train.npy", parent + "/store").embeddings(1, 2).tolist()
        [[0.0, 1.0, 0.0]]
    """
    return importing.write_array(folder, open_npy(path), importing.ColumnFiles.read(options).beside(), options)
