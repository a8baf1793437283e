"""Import of Hugging Face datasets with a column of embeddings, a shard of rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple, Unpack

import pyarrow as pa

from monoloss.data.array_files import EMBEDDING_KEYS, ID_KEYS, LABEL_KEYS, PATH_KEYS
from monoloss.data.huggingface.columns import label_array, matrix, optional_strings, string_list, value_dtype
from monoloss.data.huggingface.open import arrow_tables, choose_split, class_names_of, features_of, open_dataset
from monoloss.data.importers import options as importing
from monoloss.data.store import FeatureStore
from monoloss.data.store.rows import check_same_rows
from monoloss.data.store.stream import ShardRows, usual_dtype, write_shards
from monoloss.errors import InputError
from monoloss.files.atomic import check_new_folder

_USUAL_NAMES = {  # columns of datasets are named in the singular or the plural
    "embeddings_key": (*EMBEDDING_KEYS, "embedding", "feature"),
    "labels_key": (*LABEL_KEYS, "label", "target"),
    "ids_key": (*ID_KEYS, "id"),
    "paths_key": (*PATH_KEYS, "path"),
}


def import_dataset(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    subset: str | None = None,
    embeddings_key: str | None = None,
    labels_key: str | None = None,
    ids_key: str | None = None,
    paths_key: str | None = None,
    **options: Unpack[importing.ImportOptions],
) -> FeatureStore:
    """Write columns of a Hugging Face dataset as a store, and open it; the other columns are not read.

    Columns that are not given are chosen by name: `embeddings`, `embedding`, `features` or `feature` (required);
    `labels`, `label`, `targets` or `target`; `ids` or `id`; `paths` or `path`. Give "" for no such column. Without ids,
    the paths become the ids; without both, the row numbers.

    Args:
        path: a folder of `save_to_disk`; a .parquet or .arrow file, or a folder of such files; or a name on the Hugging
            Face Hub written `hf-hub:USER/NAME`, which is read over the network during the import.
        folder: the store; it does not exist yet or is empty.
        split: name of the split; required if the dataset has several.
        subset: configuration of a dataset on the Hub; required if the dataset has several.
        embeddings_key: column of the rows: lists of numbers, all of one length.
        labels_key: column of the labels: a ClassLabel (its names become `class_names`) or integers; for several labels
            a row, lists of them (integers need `class_names`) or lists of bool, one for each class.
        ids_key: column of the ids: strings or integers.
        paths_key: column of the paths relative to the image root: strings, or null for an unknown path.
        **options: see `ImportOptions` and `StoreOptions`; rows of bytes need `scale`.

    Raises:
        InputError: the dataset, the split or a column cannot be read, or the rows cannot be stored; no folder is made.

    Example:
        >>> import tempfile, pyarrow, pyarrow.parquet
        >>> table = pyarrow.table({"embedding": [[0.0, 2.0], [1.0, 0.0]], "label": [1, 0]})
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     pyarrow.parquet.write_table(table, parent + "/rows.parquet")
        ...     import_dataset(parent + "/rows.parquet", parent + "/store").labels().tolist()
        [1, 0]
    """
    check_new_folder(folder)
    keys = {"embeddings_key": embeddings_key, "labels_key": labels_key, "ids_key": ids_key, "paths_key": paths_key}
    files = importing.ColumnFiles.read(options, keys)
    dataset = choose_split(open_dataset(path, subset), split, path)
    features = features_of(dataset, path)
    columns = _Columns(str(path), *files.choose_keys(keys, list(features), path, _USUAL_NAMES), files)
    dtype = value_dtype(features.arrow_schema.field(columns.embeddings).type, f"{path}, column {columns.embeddings}")
    if options.get("class_names") is None:
        options["class_names"] = class_names_of(features, columns.labels)

    def shards(rows_per_shard: int) -> Iterator[ShardRows]:
        n_rows = 0
        for table in arrow_tables(dataset.select_columns(columns.names), rows_per_shard, path):
            yield columns.read(table, options, n_rows)
            n_rows += table.num_rows
        if n_rows == 0:
            raise InputError(str(path), "a dataset without rows", "at least one row")
        check_same_rows(n_rows, **files._asdict())  # a labels, ids or paths file may have more rows

    with importing.import_progress(options, getattr(dataset, "num_rows", None)) as advance:
        write_shards(folder, shards, advance, **importing.store_options(options, usual_dtype(dtype)))
    return FeatureStore(folder)


class _Columns(NamedTuple):
    """The columns to read, by use, and the columns that are read from files instead."""

    path: str
    embeddings: str
    labels: str | None
    ids: str | None
    paths: str | None
    files: importing.ColumnFiles

    @property
    def names(self) -> list[str]:
        """The names of the columns to read, each once."""
        return list(dict.fromkeys(name for name in self[1:5] if name is not None))

    def read(self, table: pa.Table, options: importing.ImportOptions, first_row: int) -> ShardRows:
        """Read the rows of a table whose first row is row `first_row` of the dataset."""

        def name(column: str) -> str:
            return f"{self.path}, column {column}"

        rows = matrix(table.column(self.embeddings), name(self.embeddings), first_row)
        labels = ids = paths = None
        if self.labels is not None:
            column, names = table.column(self.labels), options.get("class_names")
            labels = label_array(column, name(self.labels), names, first_row)
        if self.ids is not None:
            ids = string_list(table.column(self.ids), name(self.ids), first_row)
        if self.paths is not None:
            paths = optional_strings(table.column(self.paths), name(self.paths))
        return ShardRows(rows, self.files.part(first_row, first_row + len(rows)).beside(labels, ids, paths))
