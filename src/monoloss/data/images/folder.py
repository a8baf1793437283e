"""Folders of image files as a source: the files that are images, their order and their labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from monoloss.checks import check_number
from monoloss.data.images.source import Label, LabelKind, SourceImage
from monoloss.errors import InputError, some_names

# A fixed list, so that a folder gives the same rows with every version of Pillow. A file of a format that this machine
# cannot decode counts as an image; extraction skips it and lists it.
EXTENSIONS = frozenset({
    ".apng", ".avif", ".bmp", ".dds", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2c", ".j2k", ".jfif",
    ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pcx", ".pgm",
    ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
_USUAL_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_ARCHIVE_LEFTOVER = "__MACOSX"


@dataclass(frozen=True)
class FileImages:
    """Image files of a folder, in the order of their sorted paths."""

    description: str  # the source as the user wrote it
    image_root: str  # the absolute path of the folder
    files: Sequence[str]  # paths relative to `image_root`, "/" between their parts, sorted
    labels: LabelKind  # kind of the labels
    class_names: list[str] | None  # of the classes 0, 1, ...
    label_of: Callable[[int], Label]  # the label of the file at a position
    n_other_files: int  # files in the folder that are not images; hidden ones are not counted

    @property
    def n_images(self) -> int:
        """The number of images."""
        return len(self.files)

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SourceImage]:
        """Yield the images at positions `start` to `stop` (exclusive; by default to the end), in order."""
        check_number("start", start, at_least=0, integer=True)
        end = self.n_images if stop is None else min(stop, self.n_images)
        for position in range(start, end):
            name = self.files[position]
            path = os.path.join(self.image_root, name)  # noqa: PTH118 - fast for a million files
            yield SourceImage(position, name, name, self.label_of(position), path)

    def ids_and_labels(self) -> Iterator[tuple[str, Label]]:
        """Yield the id and the label of each image."""
        return ((name, self.label_of(position)) for position, name in enumerate(self.files))


class Listing(NamedTuple):
    """The contents of a folder: image files at any depth, folders directly in it, the number of other files."""

    files: list[str]
    folders: list[str]
    n_other_files: int


def open_image_folder(
    description: str, path: str | os.PathLike[str], split: str | None = None, *, labelled: bool = True
) -> FileImages:
    """Open the images of PATH/class/... or PATH/split/class/...; without class folders they have no labels.

    The classes are the folders directly in PATH (or PATH/split), numbered in the order of their names, also those
    without images. Several folders with usual names of splits, or one as the only folder, are taken for splits, not
    classes: `split` has to choose one.

    Args:
        description: the source as the user wrote it.
        path: the folder.
        split: the name of a folder in `path`.
        labelled: False leaves labels out, and accepts images beside class folders.

    Raises:
        InputError: the folder or the split does not exist, cannot be read, holds no image or holds splits; or images
            lie beside class folders.
    """
    folder = split_folder(path, split)
    listing = list_images(folder)
    splits = [name for name in listing.folders if name.lower() in _USUAL_SPLITS]
    if labelled and split is None and splits and (len(splits) > 1 or splits == listing.folders):
        raise InputError("split", "None", f"one of the splits of {path}: {some_names(splits)}")
    top_level = [name for name in listing.files if "/" not in name]
    if not labelled or len(top_level) == len(listing.files):
        return FileImages(description, str(folder), listing.files, None, None, lambda _: None, listing.n_other_files)
    if top_level:
        expected = 'images in class folders only, or label_column="", which leaves labels out'
        raise InputError(str(folder), f"images beside class folders ({some_names(top_level)})", expected)
    class_number = {name: i for i, name in enumerate(listing.folders)}
    labels = [class_number[name.partition("/")[0]] for name in listing.files]
    return FileImages(
        description, str(folder), listing.files, "single", listing.folders, labels.__getitem__, listing.n_other_files
    )


def split_folder(path: str | os.PathLike[str], split: str | None) -> Path:
    """Return the absolute path of `path`, or of the folder `split` in it; `InputError` unless that is a folder."""
    root = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as the user wrote them
    if not root.is_dir():
        raise InputError(str(path), "a file" if root.exists() else "no such folder", "a folder of images")
    if split is None:
        return root
    folders = sorted(entry.name for entry in _read(root)[1] if not _hidden(entry.name) and _is_folder(entry))
    if split not in folders:
        raise InputError("split", repr(split), f"one of the folders in {path}: {some_names(folders) or '(none)'}")
    return root / split


def list_images(folder: Path) -> Listing:
    """List a folder at any depth, sorted by relative path, in the same order on every machine.

    Links are followed, but never into a folder that contains them. Hidden files and folders are left out. A path with
    an image's extension that cannot be opened (a broken link, a pipe) is listed as an image; decoding says why.

    Raises:
        InputError: a folder cannot be read, or no file is an image.
    """
    files: list[str] = []
    folders: list[str] = []
    n_other_files = 0
    unread: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(folder, "", frozenset())]
    while unread:
        directory, prefix, parents = unread.pop()
        key, entries = _read(directory)
        if key in parents:
            continue
        for entry in entries:
            if _hidden(entry.name):
                continue
            if _is_folder(entry):
                unread.append((directory / entry.name, f"{prefix}{entry.name}/", parents | {key}))
                folders += [] if prefix else [entry.name]
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122 - fast for a million files
                files.append(prefix + entry.name)
            else:
                n_other_files += 1
    if not files:
        got = f"no image ({n_other_files} other files)" if n_other_files else "no image"
        raise InputError(str(folder), got, f"image files ({', '.join(sorted(EXTENSIONS))})")
    return Listing(sorted(files), sorted(folders), n_other_files)


def _read(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Return the device and inode number of a folder, which identify it, and its entries."""
    try:
        state = folder.stat()
        with os.scandir(folder) as entries:
            return (state.st_dev, state.st_ino), list(entries)
    except OSError as error:
        raise InputError(str(folder), f"a folder that cannot be read ({error.strerror})", "a readable one") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == _ARCHIVE_LEFTOVER
