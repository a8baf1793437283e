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

from monoloss.data.images.folder import FileImages, open_image_folder, some_names, split_folder
from monoloss.errors import InputError

# Names of the official files, with and without "oidv6-" or "oidv7-" before them; the first kind that is there is taken.
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
    """The images below PATH, or PATH/split, each once, with all classes that a file of labels says are in it.

    An image whose file name is the ImageID of no row, or of rows of absent classes only, has no label. The classes are
    numbered as in the file of classes, so that all splits agree; a name that stands there twice gets its MID.

    Args:
        description: the source as the user wrote it.
        path: the folder with the images, or with a folder for each split.
        split: "train", "validation" or "test".
        labels_path: CSV with the columns ImageID, LabelName and Confidence: image-level labels, or boxes. Rows whose
            Confidence is 1 count. By default looked for in PATH under its official name.
        classes_path: CSV of MID and display name; by default looked for likewise.

    Raises:
        InputError: the folder, the split or a file is not there; a file has other columns or a torn row, or names an
            unknown class; no image has a row; or two files have one ImageID.
    """
    split_folder(path, None)
    classes = Path(classes_path) if classes_path else _find(path, "classes_path", _CLASS_FILES, split)
    labels = Path(labels_path) if labels_path else _find(path, "labels_path", _LABEL_FILES, split)
    numbers, class_names = _read_classes(classes)
    with _csv_rows(labels) as rows:  # its columns are looked at before a large folder is listed
        _label_columns(next(rows, (1, [])), labels)
    images = open_image_folder(description, path, split, labelled=False)
    position = _positions(images.files, images.image_root)
    offsets, values = _read_labels(labels, position, numbers, classes)
    label_of = _Labels(offsets, values)
    return replace(images, labels="multi", class_names=class_names, label_of=label_of)


class _Labels:
    """The classes of an image by its position; a few bytes an image."""

    def __init__(self, offsets: Int64[ndarray, " n_plus_1"], values: Int64[ndarray, " labels"]) -> None:
        self.offsets, self.values = offsets, values

    def __call__(self, position: int) -> tuple[int, ...]:
        return tuple(self.values[self.offsets[position] : self.offsets[position + 1]].tolist())


def _find(path: str | os.PathLike[str], argument: str, patterns: Sequence[str], split: str | None) -> Path:
    """The only official file of the first kind that is there."""
    names = [
        pattern.format(split=name) for pattern in patterns for name in _SPLIT_NAMES.get(split or "", (split or "",))
    ]
    for name in names:
        found = sorted(Path(path).glob(name))
        if len(found) > 1:
            got = f"no choice between {some_names([file.name for file in found])} in {path}"
            raise InputError(argument, got, "one of them")
        if found:
            return found[0]
    raise InputError(argument, f"no such file in {path}", f"a file named {' or '.join(dict.fromkeys(names))}")


def _positions(files: Sequence[str], root: str) -> dict[str, int]:
    """Where each ImageID stands in the folder."""
    ids = [name.rpartition("/")[2].partition(".")[0] for name in files]
    position = {image: i for i, image in enumerate(ids)}
    if len(position) < len(ids):
        image = Counter(ids).most_common(1)[0][0]
        twice = [name for name, other in zip(files, ids, strict=True) if other == image]
        raise InputError(root, f"the image {image} twice ({some_names(twice)})", "each image once")
    return position


def _read_classes(path: Path) -> tuple[dict[str, int], list[str]]:
    """The number of each MID, and the names by number."""
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
    if not set(_LABEL_COLUMNS) <= set(header[1]):
        raise InputError(str(path), f"the columns {some_names(header[1]) or '(none)'}", ", ".join(_LABEL_COLUMNS))
    image, name, confidence = (header[1].index(column) for column in _LABEL_COLUMNS)
    return image, name, confidence


def _read_labels(
    path: Path, position: dict[str, int], numbers: dict[str, int], classes: Path
) -> tuple[Int64[ndarray, " n_plus_1"], Int64[ndarray, " labels"]]:
    """The classes of each image, `offsets (n + 1,)` and `values`; of the images in `position` only."""
    pairs = array("q")  # image and class in one number, so that they sort together
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
            if (place := position.get(image)) is None:
                continue
            any_row = True
            if positive:
                if (number := numbers.get(mid)) is None:
                    raise InputError(str(path), f"the class {mid!r} (line {line})", f"classes that {classes} names")
                pairs.append(place * n_classes + number)
    if not any_row:
        raise InputError(str(path), "rows of no image in the folder", "the labels of these images, by file name")
    unique = np.unique(np.frombuffer(pairs, dtype=np.int64))
    offsets = np.searchsorted(unique, np.arange(len(position) + 1) * n_classes)
    return offsets, unique % n_classes


@contextmanager
def _csv_rows(path: Path) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """The rows of a CSV file with their line numbers, from 1."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield enumerate(csv.reader(file), 1)
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", "a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), f"what is no CSV file ({error})", "a CSV file in UTF-8") from error
