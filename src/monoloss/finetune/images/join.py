"""Matching of images with the rows of a feature store, by sample id, never by order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from monoloss.checks import check_choice
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError, some_names
from monoloss.finetune.images.labelled import LabelledImages, class_numbers

JoinOn = Literal["id", "name"]


class JoinedRows(NamedTuple):
    """Pairs of an image and the row of its embedding."""

    positions: Int64[Tensor, " n"]
    """Positions of the images, ascending; those that the store has skipped are absent."""
    rows: Int64[Tensor, " n"]
    """Row of the store for each of these positions."""


def join_rows(
    images: LabelledImages, store: FeatureStore, join_on: JoinOn = "id", argument: str = "embeddings"
) -> JoinedRows:
    """Find the row of each image.

    Images that the store lists as skipped (they could not be decoded when it was made) are left out; rows of other
    images are ignored. Where the store has labels and the same class names as the images, the labels must agree: ids
    alone cannot tell the splits of a data set apart, whose ids are row numbers in every split.

    Args:
        images: images, each with a row in the store.
        store: the embeddings.
        join_on: "id" compares whole ids; "name" compares their parts after the last "/".
        argument: name of the store in errors.

    Raises:
        InputError: the rows are patches; a name is not unique; an image has no row, or one with another label.
    """
    check_choice("join_on", join_on, ("id", "name"))
    if store.patch_grid is not None:
        raise InputError(argument, f"{store.folder}, whose rows are patches", "a store with a row for each image")
    row_of_key = _index_of_key(store.ids, join_on, f"the rows of {store.folder}")
    image_keys = [_key(name, join_on) for name in images.ids]
    if join_on == "name":
        _index_of_key(images.ids, join_on, images.description)  # two images would get one row
    rows = torch.tensor([row_of_key.get(key, -1) for key in image_keys], dtype=torch.int64)
    if (rows < 0).any():
        accounted_keys = row_of_key.keys() | {_key(skipped.path, join_on) for skipped in store.skipped}
        missing = [name for name, key in zip(images.ids, image_keys, strict=True) if key not in accounted_keys]
        if missing:
            raise _missing_rows(images, store, missing, join_on, argument)
    positions = (rows >= 0).nonzero().flatten()
    if not len(positions):
        raise InputError(argument, f"{store.folder}, a store that skipped every image", "a row for every image")
    joined = JoinedRows(positions, rows[positions])
    _check_labels(images, store, joined, argument)
    return joined


def images_of_rows(
    images: LabelledImages, store: FeatureStore, join_on: JoinOn = "id", argument: str = "images"
) -> Int64[Tensor, " n"]:
    """Find the position of each row's image, in the order of the rows; images without a row are ignored.

    Args:
        images: images, among them one for each row.
        store: the rows.
        join_on: as for `join_rows`.
        argument: name of the images in errors.

    Raises:
        InputError: the rows are patches; a name is not unique; a row has no image, or one with another label.
    """
    check_choice("join_on", join_on, ("id", "name"))
    if store.patch_grid is not None:
        raise InputError("store", f"{store.folder}, whose rows are patches", "a store with a row for each image")
    position_of_key = _index_of_key(images.ids, join_on, images.description)
    if join_on == "name":
        _index_of_key(store.ids, join_on, f"the rows of {store.folder}")  # two rows would get one image
    row_keys = [_key(name, join_on) for name in store.ids]
    missing = [name for name, key in zip(store.ids, row_keys, strict=True) if key not in position_of_key]
    if missing:
        names = some_names(missing, 3)
        got = f"{images.description}, without an image for {len(missing)} of {len(row_keys)} rows ({names})"
        expected = f"the images of {store.folder}, of the same split"
        if join_on == "id" and _all_names_in(store.ids, images.ids):
            expected = "join_on 'name': the file names are the same"
        raise InputError(argument, got, expected)
    positions = torch.tensor([position_of_key[key] for key in row_keys], dtype=torch.int64)
    _check_labels(images, store, JoinedRows(positions, torch.arange(len(row_keys))), "store")
    return positions


def _key(sample_id: str, join_on: JoinOn) -> str:
    """Return the part of an id that is compared: all of it, or the file name."""
    return sample_id if join_on == "id" else sample_id.rpartition("/")[2]


def _index_of_key(ids: Sequence[str], join_on: JoinOn, what: str) -> Mapping[str, int]:
    """Map the key of each id to its index; raise `InputError`, which calls the ids `what`, if two have one key."""
    index_of_key: dict[str, int] = {}
    for i, sample_id in enumerate(ids):
        key = _key(sample_id, join_on)
        if index_of_key.setdefault(key, i) != i:
            got = f"'name', but {what} hold {key} twice ({ids[index_of_key[key]]}, {sample_id})"
            raise InputError("join_on", got, "'id', or file names that are unique")
    return index_of_key


def _missing_rows(
    images: LabelledImages, store: FeatureStore, missing: Sequence[str], join_on: JoinOn, argument: str
) -> InputError:
    """Build the error about images without a row; `missing` are their ids."""
    names = some_names(missing, 3)
    if len(missing) < len(images):
        got = f"{store.folder}, a store without {len(missing)} of the {len(images)} images ({names})"
        return InputError(argument, got, f"a row for every image of {images.description}")
    got = f"{store.folder}, a store of other images (ids such as {store.ids[0]}, the images are {names})"
    if join_on == "id" and _all_names_in(images.ids, store.ids):
        return InputError(argument, got, "join_on 'name': the file names are the same")
    return InputError(argument, got, f"the store of {images.description}, of the same split")


def _all_names_in(ids: Iterable[str], others: Iterable[str]) -> bool:
    """Whether each of the ids has the file name of one of the other ids."""
    names = {_key(sample_id, "name") for sample_id in others}
    return all(_key(sample_id, "name") in names for sample_id in ids)


def _check_labels(images: LabelledImages, store: FeatureStore, joined: JoinedRows, argument: str) -> None:
    """Refuse rows with another label than their image, if both number classes of the same names (or without names)."""
    if not store.has_labels or store.multi_label:
        return
    labels = images.labels[joined.positions]
    stored = store.labels().cpu()[joined.rows]
    if store.class_names is not None:
        numbers = class_numbers(store.class_names, images.class_names)
        if numbers is None or set(store.class_names) != set(images.class_names):
            return
        stored = numbers[stored]
    elif images.source.class_names is not None:
        return
    wrong = (labels != stored).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        got = f"{store.folder}, where {len(wrong)} of {len(labels)} images have another label"
        example = f" ({images.ids[int(joined.positions[first])]}: {int(stored[first])}, not {int(labels[first])})"
        raise InputError(argument, got + example, f"the store of {images.description}, of the same split")
