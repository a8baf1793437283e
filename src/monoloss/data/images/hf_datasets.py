"""Images in Hugging Face datasets: the choice of columns, and the rows with their encoded images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.utils.file_utils import xopen

from monoloss.checks import check_number
from monoloss.data.array_files import LABEL_KEYS, choose_key
from monoloss.data.huggingface.columns import label_array, optional_strings, string_list
from monoloss.data.huggingface.open import (
    AnyDataset,
    arrow_tables,
    choose_split,
    class_names_of,
    features_of,
    open_dataset,
    reading_dataset,
)
from monoloss.data.images.source import Label, LabelKind, SourceImage
from monoloss.errors import InputError

_USUAL_LABELS = (*LABEL_KEYS, "label", "target")
_IMAGES_AT_A_TIME = 32  # encoded images in memory
_ROWS_AT_A_TIME = 1024  # rows of labels and ids in memory
_NO_LABELS = 'label_column="" leaves labels out'


class LabelColumn(NamedTuple):
    """A column of labels."""

    name: str  # of the column
    kind: LabelKind  # "single" (one label in a row) or "multi" (any number)
    class_names: list[str] | None  # of the classes 0, 1, ...; None if unknown
    numbers: dict[str, int] | None  # the class number of each label that is a string; None for other labels

    def read(self, table: pa.Table, where: str, first_row: int) -> list[Label]:
        """Return the labels of a table; `first_row` is its first row's number, for `InputError` about a bad label."""
        name = f"{where}, column {self.name}"
        column = table.column(self.name)
        if self.numbers is not None:
            return [self.numbers[text] for text in string_list(column, name, first_row)]
        labels = label_array(column, name, self.class_names, first_row)
        if labels.ndim == 2:
            return [tuple(row.nonzero()[0].tolist()) for row in labels]
        wrong = labels < 0
        if self.class_names is not None:
            wrong |= labels >= len(self.class_names)
        if wrong.any():
            row = int(wrong.argmax())
            last = "" if self.class_names is None else f" to {len(self.class_names) - 1}"
            raise InputError(name, f"{labels[row]} (row {first_row + row})", f"labels from 0{last}; {_NO_LABELS}")
        numbers: list[Label] = labels.tolist()
        return numbers


@dataclass(frozen=True)
class DatasetImages:
    """Images of one split of a dataset."""

    description: str  # the source as the user wrote it
    dataset: AnyDataset  # the columns below, of a Dataset or (for a stream) an IterableDataset
    n_images: int | None  # number of rows; None for a stream
    image_column: str  # name of the column of encoded images
    label_column: LabelColumn | None  # None if rows have no labels
    id_column: str | None  # name of the column of ids; None where the row numbers are the ids

    @property
    def image_root(self) -> str | None:
        """None: images of a dataset are not files of a folder."""
        return None

    @property
    def labels(self) -> LabelKind:
        """The labels of a row: "single" (one), "multi" (any number), or None (unknown)."""
        return None if self.label_column is None else self.label_column.kind

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes 0, 1, ...; None if the dataset has no names."""
        return None if self.label_column is None else self.label_column.class_names

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SourceImage]:
        """Yield the images at positions `start` to `stop` (exclusive; by default to the end), in order.

        A stream is read from its beginning; rows before `start` are dropped.

        Raises:
            InputError: a row cannot be read, or its label or id is missing or impossible.
        """
        check_number("start", start, at_least=0, integer=True)
        if self.n_images is None:
            n_rows = None if stop is None else max(stop - start, 0)
            yield from islice(self._rows(self.dataset.skip(start), start), n_rows)
            return
        end = self.n_images if stop is None else min(stop, self.n_images)
        if start < end:
            yield from self._rows(self.dataset.select(range(start, end)), start)

    def ids_and_labels(self) -> Iterator[tuple[str, Label]]:
        """Yield the id and the label of each row, without images; the label is None in a dataset without labels."""
        names = self._label_and_id_columns() or [self.image_column]
        row = 0
        for table in arrow_tables(self.dataset.select_columns(names), _ROWS_AT_A_TIME, self.description):
            column = self.label_column
            labels = [None] * table.num_rows if column is None else column.read(table, self.description, row)
            yield from zip(self._ids(table, row), labels, strict=True)
            row += table.num_rows

    def check_columns(self) -> None:
        """Check all labels and ids (of a stream: its first row); `InputError` for a bad label or a repeated id."""
        if self.n_images is None:
            if next(self.images(0, 1), None) is None:
                raise InputError(self.description, "a dataset without rows", "at least one row")
            return
        names = self._label_and_id_columns()
        if not names:
            return
        row_of_id: dict[str, int] = {}
        row = 0
        for table in arrow_tables(self.dataset.select_columns(names), _ROWS_AT_A_TIME, self.description):
            if self.label_column is not None:
                self.label_column.read(table, self.description, row)
            for i, name in enumerate(self._ids(table, row) if self.id_column else ()):
                if row_of_id.setdefault(name, row + i) != row + i:
                    got = f"{name!r} twice (rows {row_of_id[name]} and {row + i})"
                    raise InputError("id_column", got, "an id of its own for every row")
            row += table.num_rows

    def _label_and_id_columns(self) -> list[str]:
        """Return the names of the columns of labels and ids, as far as there are any, each once."""
        names = (self.label_column.name if self.label_column else None, self.id_column)
        return list(dict.fromkeys(name for name in names if name is not None))

    def _rows(self, dataset: AnyDataset, first_row: int) -> Iterator[SourceImage]:
        """Yield all rows of a dataset (perhaps a part of `self.dataset`) whose first row has the number `first_row`."""
        row = first_row
        for table in arrow_tables(dataset, _IMAGES_AT_A_TIME, self.description):
            column = self.label_column
            labels = [None] * table.num_rows if column is None else column.read(table, self.description, row)
            ids = self._ids(table, row)
            cells = table.column(self.image_column).to_pylist()
            for name, label, cell in zip(ids, labels, cells, strict=True):
                path, content = self._content(cell)
                yield SourceImage(row, name, path, label, content)
                row += 1

    def _ids(self, table: pa.Table, first_row: int) -> list[str]:
        """Return the ids of a table whose first row has the number `first_row`."""
        if self.id_column is None:
            return [str(first_row + i) for i in range(table.num_rows)]
        return string_list(table.column(self.id_column), f"{self.description}, column {self.id_column}", first_row)

    def _content(self, cell: bytes | dict[str, Any] | None) -> tuple[str | None, str | bytes]:
        """Return the path that a cell records, and the image: an absolute path or bytes; `b""` if the cell has none."""
        if cell is None or isinstance(cell, bytes):
            return None, cell or b""
        path, content = cell.get("path"), cell.get("bytes")
        if content is not None or path is None:
            return path, content or b""
        if "://" not in path:
            return path, os.path.abspath(path)  # noqa: PTH100 - a str is returned
        with reading_dataset(self.description), xopen(path, "rb") as file:
            return path, bytes(file.read())


def open_image_dataset(
    description: str,
    path: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    streaming: bool = False,
) -> DatasetImages:
    """Open the images of a dataset; see `open_images`.

    Raises:
        InputError: the dataset, the split or a column does not exist or is of another kind; a label is missing or
            impossible, or an id is repeated (in a stream, labels after the first row are checked while it is read).
    """
    dataset = choose_split(open_dataset(path, subset, streaming=streaming), split, path)
    features = features_of(dataset, path)
    image = _choose_images(features, image_column, path)
    n_images = getattr(dataset, "num_rows", None)
    if n_images == 0:
        raise InputError(path, "a dataset without rows", "at least one row")
    if id_column is not None and id_column not in features:
        raise InputError("id_column", repr(id_column), f"one of the columns of {path}: {', '.join(features)}")
    labels = _choose_labels(dataset, features, label_column, path)
    names = [image, *([labels.name] if labels else []), *([id_column] if id_column else [])]
    dataset = dataset.select_columns(list(dict.fromkeys(names)))
    if isinstance(features[image], datasets.Image):
        with reading_dataset(path):
            dataset = dataset.cast_column(image, datasets.Image(decode=False))
    source = DatasetImages(description, dataset, n_images, image, labels, id_column)
    source.check_columns()
    return source


def _choose_images(features: Any, image_column: str | None, path: str) -> str:
    """Return `image_column` if it holds images; for None the only column of images. `InputError` otherwise."""
    if image_column is not None:
        if image_column not in features or not _holds_images(features[image_column]):
            got = repr(image_column) if image_column not in features else f"{image_column!r}, {features[image_column]}"
            columns = ", ".join(name for name in features if _holds_images(features[name])) or "(none)"
            raise InputError("image_column", got, f"a column of images of {path}: {columns}")
        return image_column
    names: list[str] = [name for name in features if isinstance(features[name], datasets.Image)]
    names = names or [name for name in features if _holds_images(features[name])]
    if not names:
        expected = "a column of images: of the type Image, or of encoded bytes"
        raise InputError(path, f"no images in the columns {', '.join(features) or '(none)'}", expected)
    if len(names) > 1:
        raise InputError("image_column", f"no choice between {' and '.join(names)} in {path}", "one of them")
    return names[0]


def _holds_images(feature: Any) -> bool:
    """Return whether a column of this type can hold encoded images."""
    if isinstance(feature, dict):  # an Image as it is stored in a file without the type of its columns
        return feature.keys() == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in {"binary", "large_binary"}


def _choose_labels(dataset: AnyDataset, features: Any, label_column: str | None, path: str) -> LabelColumn | None:
    """Return the column of labels, chosen as `open_images` says; None if there is none or `label_column` is empty."""
    if label_column == "":
        return None
    class_label_columns = [name for name in features if class_names_of(features, name) is not None]
    usual: Sequence[str] = class_label_columns if len(class_label_columns) == 1 else _USUAL_LABELS
    name = choose_key("label_column", label_column, usual, list(features), path)
    if name is None and class_label_columns:
        got = f"no choice between {' and '.join(class_label_columns)} in {path}"
        raise InputError("label_column", got, f"one of them; {_NO_LABELS}")
    if name is None:
        return None
    feature, names = features[name], class_names_of(features, name)
    where, kind = f"{path}, column {name}", getattr(feature, "dtype", None)
    if getattr(feature, "feature", None) is not None:
        if names is None:
            raise InputError(where, "lists without class names", f"lists of ClassLabel, with names; {_NO_LABELS}")
        return LabelColumn(name, "multi", names, None)
    if kind in {"string", "large_string"}:
        if not hasattr(dataset, "num_rows"):
            got = "labels that are strings, in a stream"
            raise InputError(where, got, f"a ClassLabel or integers, or streaming=False; {_NO_LABELS}")
        names = _strings(dataset, name, where)
        return LabelColumn(name, "single", names, {text: i for i, text in enumerate(names)})
    if names is None and not str(kind).startswith(("int", "uint")):
        raise InputError(where, f"a column of {kind or feature}", f"a ClassLabel, integers or strings; {_NO_LABELS}")
    return LabelColumn(name, "single", names, None)


def _strings(dataset: AnyDataset, name: str, where: str) -> list[str]:
    """Return the different strings of a column, sorted; `InputError` for a row without one."""
    distinct: set[str] = set()
    row = 0
    for table in arrow_tables(dataset.select_columns([name]), _ROWS_AT_A_TIME, where):
        texts = optional_strings(table.column(name), where)
        if None in texts:
            raise InputError(where, f"nothing in row {row + texts.index(None)}", f"a label in every row; {_NO_LABELS}")
        distinct |= {text for text in texts if text is not None}
        row += len(texts)
    return sorted(distinct)
