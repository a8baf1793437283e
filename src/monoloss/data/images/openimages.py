"""OpenImages V7: a folder of images and the official CSV files of labels and classes."""

from __future__ import annotations

import csv
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from monoloss.data.images.folder import FileImages, open_image_folder, split_folder
from monoloss.errors import InputError, some_names

# Official file names, with or without "oidv6-" or "oidv7-" before them; the first pattern that matches is taken.
_LABEL_FILES = (
    "*{split}-annotations-human-imagelabels.csv",
    "*{split}-annotations-human-imagelabels-boxable.csv",
    "*{split}-annotations-bbox.csv",
)
_CLASS_FILES = ("*class-descriptions.csv", "*class-descriptions-boxable.csv")
_SPLIT_NAMES = {"val": ("val", "validation"), "validation": ("validation", "val")}
_LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
_CLASS_HEADERS = {"LabelName", "MID"}


def open_openimages(
    description: str,
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    labels_path: str | None = None,
    classes_path: str | None = None,
) -> FileImages:
    """Open the images below PATH, or PATH/split, each labelled with all classes that the CSV of labels confirms.

    The file name of an image, without its suffix, is its ImageID. An image without a row, or whose rows only deny
    classes, has the empty label ``()``. Classes are numbered in the order of the CSV of classes, so that all splits
    agree; the MID is appended to a display name that two classes share.

    Args:
        description: the source as the user wrote it.
        path: the folder with the images, or with a folder for each split.
        split: "train", "validation" or "test".
        labels_path: CSV with the columns ImageID, LabelName and Confidence: image-level labels, or boxes. Rows whose
            Confidence is 1 count. By default the file in PATH with an official name.
        classes_path: CSV of MID and display name; by default the file in PATH with an official name.

    Raises:
        InputError: the folder, the split or a file does not exist; a file has other columns or an incomplete row, or
            names an unknown class; no image has a row; or two images have the same ImageID.
    """
    split_folder(path, None)
    classes = Path(classes_path) if classes_path else _find(path, "classes_path", _CLASS_FILES, split)
    labels = Path(labels_path) if labels_path else _find(path, "labels_path", _LABEL_FILES, split)
    numbers, class_names = _read_classes(classes)
    with _csv_rows(labels) as rows:  # refuse wrong columns before a large folder is listed
        _label_columns(next(rows, (1, [])), labels)
    images = open_image_folder(description, path, split, labelled=False)
    position_of = _positions(images.files, images.image_root)
    label_of = _Labels(*_read_labels(labels, position_of, numbers, classes))
    return replace(images, labels="multi", class_names=class_names, label_of=label_of)


class _Labels:
    """Class numbers of the image at a position: ``values[offsets[position] : offsets[position + 1]]``."""

    def __init__(self, offsets: Int64[ndarray, " n_plus_1"], values: Int64[ndarray, " labels"]) -> None:
        self.offsets, self.values = offsets, values

    def __call__(self, position: int) -> tuple[int, ...]:
        return tuple(self.values[self.offsets[position] : self.offsets[position + 1]].tolist())


def _find(path: str | os.PathLike[str], argument: str, patterns: Sequence[str], split: str | None) -> Path:
    """Return the one file in `path` that the first matching pattern finds, with `split` put into the patterns.

    Raises:
        InputError: none or several files; the error names `argument`.
    """
    splits = _SPLIT_NAMES.get(split or "", (split or "",))
    names = [pattern.format(split=name) for pattern in patterns for name in splits]
    for name in names:
        files = sorted(Path(path).glob(name))
        if len(files) > 1:
            got = f"no choice between {some_names([file.name for file in files])} in {path}"
            raise InputError(argument, got, "one of them")
        if files:
            return files[0]
    raise InputError(argument, f"no such file in {path}", f"a file named {' or '.join(dict.fromkeys(names))}")


def _positions(files: Sequence[str], root: str) -> dict[str, int]:
    """Return the position of each ImageID in `files`; `InputError` if two files share an ImageID."""
    ids = [name.rpartition("/")[2].partition(".")[0] for name in files]
    position_of = {image: i for i, image in enumerate(ids)}
    if len(position_of) < len(ids):
        image = Counter(ids).most_common(1)[0][0]
        duplicates = [name for name, other in zip(files, ids, strict=True) if other == image]
        raise InputError(root, f"the image {image} twice ({some_names(duplicates)})", "each image once")
    return position_of


def _read_classes(path: Path) -> tuple[dict[str, int], list[str]]:
    """Read the CSV of classes: the class number of each MID, and the class names in the order of their numbers."""
    numbers: dict[str, int] = {}
    names: list[str] = []
    expected = "MID and display name in each row"
    with _csv_rows(path) as rows:
        for line, row in rows:
            if len(row) != 2:
                raise InputError(str(path), f"{len(row)} columns on line {line}", expected)
            if line == 1 and row[0] in _CLASS_HEADERS:
                continue
            if not row[0].startswith("/"):
                raise InputError(str(path), f"{row[0]!r} on line {line}", f"{expected}, such as /m/01g317,Person")
            if row[0] in numbers:
                raise InputError(str(path), f"the class {row[0]} twice (line {line})", "each class once")
            numbers[row[0]] = len(names)
            names.append(row[1])
    if not names:
        raise InputError(str(path), "a file without classes", expected)
    times = Counter(names)
    return numbers, [f"{name} ({mid})" if times[name] > 1 else name for mid, name in zip(numbers, names, strict=True)]


def _label_columns(header: tuple[int, list[str]], path: Path) -> tuple[int, int, int]:
    """Return the indices of the columns ImageID, LabelName and Confidence in the first row of a CSV of labels."""
    if not set(_LABEL_COLUMNS) <= set(header[1]):
        raise InputError(str(path), f"the columns {some_names(header[1]) or '(none)'}", ", ".join(_LABEL_COLUMNS))
    image, name, confidence = (header[1].index(column) for column in _LABEL_COLUMNS)
    return image, name, confidence


def _read_labels(
    path: Path, position_of: dict[str, int], numbers: dict[str, int], classes: Path
) -> tuple[Int64[ndarray, " n_plus_1"], Int64[ndarray, " labels"]]:
    """Read the `offsets (n + 1,)` and `values` of `_Labels` for the ImageIDs in `position_of`; skip other images."""
    pairs = array("q")  # position * n_classes + class number, so that one sort orders both
    n_classes, any_row = len(numbers), False
    with _csv_rows(path) as rows:
        image_column, class_column, confidence_column = _label_columns(next(rows, (1, [])), path)
        for line, row in rows:
            try:
                image, mid, confidence = row[image_column], row[class_column], row[confidence_column]
                positive = confidence == "1" or float(confidence) == 1
            except (IndexError, ValueError) as error:
                got = f"line {line}: {some_names(row)}" if row else f"an empty line {line}"
                raise InputError(str(path), got, f"{', '.join(_LABEL_COLUMNS)} in each row") from error
            if (position := position_of.get(image)) is None:
                continue
            any_row = True
            if positive:
                if (number := numbers.get(mid)) is None:
                    raise InputError(str(path), f"the class {mid!r} (line {line})", f"classes that {classes} names")
                pairs.append(position * n_classes + number)
    if not any_row:
        raise InputError(str(path), "rows of no image in the folder", "the labels of these images, by file name")
    unique = np.unique(np.frombuffer(pairs, dtype=np.int64))
    offsets = np.searchsorted(unique, np.arange(len(position_of) + 1) * n_classes)
    return offsets, unique % n_classes


@contextmanager
def _csv_rows(path: Path) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Open a UTF-8 CSV file as pairs of row number (from 1) and row, header included; `InputError` if unreadable."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield enumerate(csv.reader(file), 1)
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", "a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), f"an unreadable CSV file ({error})", "a CSV file in UTF-8") from error
