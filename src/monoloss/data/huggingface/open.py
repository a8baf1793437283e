"""Hugging Face datasets: opened, a split chosen, read as Arrow tables; what cannot be read is named."""

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

AnyDataset: TypeAlias = Any  # the package carries no types: a Dataset or an IterableDataset, of one split

_FILES = {".parquet": "parquet", ".arrow": "arrow"}


def open_dataset(
    path: str | os.PathLike[str], subset: str | None, *, streaming: bool = True
) -> AnyDataset | Mapping[str, AnyDataset]:
    """The dataset, or its splits by name. Of a stream no row is read yet; else the package keeps a copy on the disk."""
    place, name = Path(path), os.fspath(path)
    with reading_dataset(path):
        if name.startswith(HUB):
            return datasets.load_dataset(name.removeprefix(HUB), subset, streaming=streaming)
        if subset is not None:
            raise InputError("subset", repr(subset), f"none: {path} is not on the Hub")
        if place.is_file() and place.suffix in _FILES:
            # its name is a pattern to the package
            return datasets.load_dataset(_FILES[place.suffix], data_files=glob.escape(name), streaming=streaming)
        if place.is_dir():
            saved = any((place / file).is_file() for file in ("state.json", "dataset_dict.json"))
            return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, streaming=streaming)
    got = "a file of another kind" if place.exists() else "no such file or folder"
    expected = f"a folder of save_to_disk, .parquet or .arrow files, or a Hub name written {HUB}USER/NAME"
    raise InputError(str(path), got, expected)


def choose_split(
    opened: AnyDataset | Mapping[str, AnyDataset], split: str | None, path: str | os.PathLike[str]
) -> AnyDataset:
    """The split that is asked for, or the only one."""
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
    """The columns and their types; of the first row, where the dataset does not say."""
    if dataset.features is not None:
        return dataset.features
    first = next(arrow_tables(dataset, 1, path), None)
    if first is None:
        raise InputError(str(path), "a dataset without rows", "at least one row")
    return datasets.Features.from_arrow_schema(first.schema)


def class_names_of(features: Any, column: str | None) -> list[str] | None:
    """The names of a ClassLabel, or of lists of them."""
    if column is None:
        return None
    kind = getattr(features[column], "feature", features[column])
    return list(kind.names) if getattr(kind, "names", None) else None


def arrow_tables(dataset: AnyDataset, batch_size: int, path: str | os.PathLike[str]) -> Iterator[pa.Table]:
    """Arrow tables of `batch_size` rows, the last one of those that are left."""
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
    """Turn what the package raises for unreadable data into an `InputError` that names the dataset."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would log what it raises
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, DatasetsError) as error:
        got = f"a dataset that cannot be read ({first_line(error)[:300]})"
        raise InputError(str(path), got, "a readable dataset") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
