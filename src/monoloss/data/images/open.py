"""Open images by a short description of their source: a folder, a Hugging Face dataset, CIFAR or OpenImages."""

from __future__ import annotations

import os

from monoloss.data.images.decode import UnreadableImage, decode_image
from monoloss.data.images.folder import open_image_folder
from monoloss.data.images.openimages import open_openimages
from monoloss.data.images.source import ImageSource, SourceImage
from monoloss.errors import InputError, needs_extra

__all__ = ["ImageSource", "SourceImage", "UnreadableImage", "decode_image", "open_images"]

_KINDS = ("imagefolder", "dataset", "hf-hub", "openimages", "cifar10", "cifar100")
_KINDS_WITH_COLUMNS = ("dataset", "hf-hub")
_KINDS_WITH_OPTION = {
    "image_column": ("dataset", "hf-hub"),
    "id_column": ("dataset", "hf-hub"),
    "streaming": ("dataset", "hf-hub"),
    "subset": ("hf-hub",),
    "labels_path": ("openimages",),
    "classes_path": ("openimages",),
}


def open_images(  # noqa: PLR0913 - each is an option
    spec: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    streaming: bool = False,
    subset: str | None = None,
    labels_path: str | None = None,
    classes_path: str | None = None,
) -> ImageSource:
    """Open a source of images. Labels and ids are read and checked now; images are read when they are iterated over.

    - ``imagefolder:PATH``: image files in class folders, in any depth, in the order of their sorted paths. The id of
      an image is its path relative to the parent of the class folders. Images without class folders have no labels.
    - ``dataset:PATH``: a Hugging Face dataset on this machine: a folder of `save_to_disk`, a .parquet or .arrow file,
      or a folder of such files. The row numbers are the ids.
    - ``hf-hub:USER/NAME``: a dataset on the Hugging Face Hub; it is downloaded whole, unless `streaming` is on.
    - ``openimages:PATH``: image files in any depth and the official CSV files; an image has any number of labels.
    - ``cifar10:PATH``, ``cifar100:PATH``: the official files for Python, unpacked in PATH.

    Args:
        spec: the source, in one of the forms above.
        split: the split to open: of a folder PATH/split/class, of a dataset with several splits, of OpenImages, or of
            CIFAR ("train" or "test").
        image_column: a dataset's column of images; by default the only one.
        label_column: a dataset's column of labels; by default the only ClassLabel, else `labels`, `label`, `targets` or
            `target`. It holds a ClassLabel, lists of ClassLabel, integers, or strings (whose sorted values are the
            classes). An empty name leaves labels out, also those of a folder.
        id_column: a dataset's column of ids: strings or integers, different in every row. By default the row number.
        streaming: read a dataset from front to back without a copy on the disk (one of `save_to_disk` is read as is).
        subset: the configuration of a dataset on the Hub that has several.
        labels_path: CSV of OpenImages' labels: image-level labels or boxes; by default the official one in PATH.
        classes_path: CSV of OpenImages' class names; by default the official one in PATH.

    Raises:
        InputError: the source, the split, a column or a file does not exist, cannot be read or holds no image; a label
            is missing; or an option belongs to another kind of source.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "cat").mkdir()
        ...     Image.new("L", (2, 2)).save(Path(folder) / "cat" / "tom.png")
        ...     source = open_images(f"imagefolder:{folder}")
        ...     [(image.id, image.label) for image in source.images()], source.class_names
        ([('cat/tom.png', 0)], ['cat'])
    """
    kind, colon, place = spec.partition(":")
    if kind not in _KINDS or not colon or not place:
        expected = "imagefolder:PATH, dataset:PATH, hf-hub:USER/NAME, openimages:PATH, cifar10:PATH or cifar100:PATH"
        raise InputError("images", repr(spec), expected)
    options = {"image_column": image_column, "id_column": id_column, "streaming": streaming or None, "subset": subset}
    options |= {"labels_path": labels_path, "classes_path": classes_path}
    for name, value in options.items():
        if value is not None and kind not in _KINDS_WITH_OPTION[name]:
            raise InputError(name, repr(value), f"none: it is an option of {' and '.join(_KINDS_WITH_OPTION[name])}")
    if label_column is not None and (kind not in _KINDS_WITH_COLUMNS and (label_column or kind != "imagefolder")):
        raise InputError("label_column", repr(label_column), f"none, or a dataset: {kind} has no columns")
    path = os.path.expanduser(place)  # noqa: PTH111 - a shell does not expand ~ behind a colon
    if kind == "imagefolder":
        return open_image_folder(spec, path, split, labelled=label_column is None)
    if kind == "openimages":
        return open_openimages(spec, path, split=split, labels_path=labels_path, classes_path=classes_path)
    with needs_extra("vision"):
        if kind not in _KINDS_WITH_COLUMNS:
            from monoloss.data.images.cifar import open_cifar

            return open_cifar(spec, kind, path, split)
        from monoloss.data.images.hf_datasets import open_image_dataset
    return open_image_dataset(
        spec,
        spec if kind == "hf-hub" else path,
        split=split,
        subset=subset,
        image_column=image_column,
        label_column=label_column,
        id_column=id_column,
        streaming=streaming,
    )
