"""Opening of Hugging Face datasets, choice of a split, reading as Arrow tables; errors name the dataset."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from monoloss.errors import InputError, first_line
from monoloss.files.hub import HUB

AnyDataset: TypeAlias = Any  # one split, a Dataset or an IterableDataset; the package `datasets` has no types

_FILES = {".parquet": "parquet", ".arrow": "arrow"}


def open_dataset(
    path: str | os.PathLike[str], subset: str | None, *, streaming: bool = True
) -> AnyDataset | Mapping[str, AnyDataset]:
    """Open a dataset or its splits by name; with `streaming` rows are read later, else a copy is made in the cache."""
    file, name = Path(path), os.fspath(path)
    with reading_dataset(path):
        if name.startswith(HUB):
            return datasets.load_dataset(name.removeprefix(HUB), subset, streaming=streaming)
        if subset is not None:
            raise InputError("subset", repr(subset), f"none: {path} is not on the Hub")
        if file.is_file() and file.suffix in _FILES:
            # escaped, as the package takes the name for a pattern
            return datasets.load_dataset(_FILES[file.suffix], data_files=glob.escape(name), streaming=streaming)
        if file.is_dir():
            saved = any((file / saved_file).is_file() for saved_file in ("state.json", "dataset_dict.json"))
            return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, streaming=streaming)
    got = "a file of another kind" if file.exists() else "no such file or folder"
    expected = f"a folder of save_to_disk, .parquet or .arrow files, or a Hub name written {HUB}USER/NAME"
    raise InputError(str(path), got, expected)


def choose_split(
    opened: AnyDataset | Mapping[str, AnyDataset], split: str | None, path: str | os.PathLike[str]
) -> AnyDataset:
    """Return the split of that name, or the only split; `InputError` if it is absent, or None of several."""
    if not isinstance(opened, Mapping):
        if split is not None and split != str(opened.split):
            raise InputError("split", repr(split), f"none: {path} holds a single split")
        return opened
    if split is None and len(opened) == 1:
        return next(iter(opened.values()))
    if split is None or split not in opened:
        raise InputError("split", repr(split), f"one of the splits of {path}: {', '.join(opened)}")
    return opened[split]


def features_of(dataset: AnyDataset, path: str | os.PathLike[str]) -> Any:
    """Return the columns and their types, read off the first row if the dataset does not declare them."""
    if dataset.features is not None:
        return dataset.features
    first = next(arrow_tables(dataset, 1, path), None)
    if first is None:
        raise InputError(str(path), "a dataset without rows", "at least one row")
    return datasets.Features.from_arrow_schema(first.schema)


def class_names_of(features: Any, column: str | None) -> list[str] | None:
    """Return the class names of a column of ClassLabel or of lists of them; None for any other column."""
    if column is None:
        return None
    kind = getattr(features[column], "feature", features[column])
    return list(kind.names) if getattr(kind, "names", None) else None


def arrow_tables(dataset: AnyDataset, batch_size: int, path: str | os.PathLike[str]) -> Iterator[pa.Table]:
    """Yield the rows as Arrow tables of `batch_size` rows; the last may have fewer."""
    with reading_dataset(path):
        tables = iter(dataset.with_format("arrow").iter(batch_size=batch_size))
    while True:
        with reading_dataset(path):
            table = next(tables, None)
        if table is None:
            return
        yield table


@contextmanager
def reading_dataset(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every error of the package for unreadable data into an `InputError` that names the dataset `path`."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # else it logs the errors that it raises
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, DatasetsError) as error:
        got = f"a dataset that cannot be read ({first_line(error)[:300]})"
        raise InputError(str(path), got, "a readable dataset") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
