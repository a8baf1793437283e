"""Which row of a feature store belongs to which image: joined by sample id, never by order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from monoloss.checks import check_choice
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.finetune.images.labelled import LabelledImages, class_numbers

JoinOn = Literal["id", "name"]


class JoinedRows(NamedTuple):
    """Images and the rows of a store that belong to them.

    Args:
        positions: of the images, ascending; without those that the store has skipped.
        rows: of the store, one an image.
    """

    positions: Int64[Tensor, " n"]
    rows: Int64[Tensor, " n"]


def join_rows(
    images: LabelledImages, store: FeatureStore, join_on: JoinOn = "id", argument: str = "embeddings"
) -> JoinedRows:
    """Find the row of each image.

    Images that the store lists as skipped, because they could not be decoded when it was made, are left out. Rows of
    other images are no fault. Where the store has labels for classes of the same names, they must be those of the
    images: row numbers of a data set are ids of every split of it.

    Args:
        images: each needs a row.
        store: the embeddings.
        join_on: "id" takes the ids of both, "name" what stands behind the last "/" of them.
        argument: what an error calls the store.

    Raises:
        InputError: the rows are patches; a name is not unique; an image has no row, or one with another label.
    """
    check_choice("join_on", join_on, ("id", "name"))
    if store.patch_grid is not None:
        raise InputError(argument, f"{store.folder}, whose rows are patches", "a store with a row for each image")
    there = _numbered(store.ids, join_on, f"the rows of {store.folder}")
    wanted = [_key(name, join_on) for name in images.ids]
    if join_on == "name":
        _numbered(images.ids, join_on, images.description)  # two images would get one row
    found = [there.get(key, -1) for key in wanted]
    if -1 in found:
        left_out = {_key(skipped.path, join_on) for skipped in store.skipped}
        missing = [i for i, row in enumerate(found) if row < 0 and wanted[i] not in left_out]
        if missing:
            raise _missing(images, store, [images.ids[i] for i in missing], join_on, argument)
    rows = torch.tensor(found, dtype=torch.int64)
    positions = (rows >= 0).nonzero().flatten()
    if not len(positions):
        raise InputError(argument, f"{store.folder}, a store that skipped every image", "a row for every image")
    joined = JoinedRows(positions, rows[positions])
    _check_labels(images, store, joined, argument)
    return joined


def images_of_rows(
    images: LabelledImages, store: FeatureStore, join_on: JoinOn = "id", argument: str = "images"
) -> Int64[Tensor, " n"]:
    """The position of the image of each row, in the order of the store; other images are no fault.

    Args:
        images: every row needs one of them.
        store: the rows.
        join_on: as for `join_rows`.
        argument: what an error calls the images.

    Raises:
        InputError: the rows are patches; a name is not unique; a row has no image, or one with another label.
    """
    check_choice("join_on", join_on, ("id", "name"))
    if store.patch_grid is not None:
        raise InputError("store", f"{store.folder}, whose rows are patches", "a store with a row for each image")
    there = _numbered(images.ids, join_on, images.description)
    if join_on == "name":
        _numbered(store.ids, join_on, f"the rows of {store.folder}")  # two rows would get one image
    found = [there.get(_key(name, join_on), -1) for name in store.ids]
    missing = [store.ids[row] for row, position in enumerate(found) if position < 0]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        got = f"{images.description}, without an image for {len(missing)} of {len(found)} rows ({some})"
        expected = f"the images of {store.folder}, of the same split"
        if join_on == "id" and _have_one_name(store.ids, images.ids):
            expected = "join_on 'name': the file names are the same"
        raise InputError(argument, got, expected)
    positions = torch.tensor(found, dtype=torch.int64)
    _check_labels(images, store, JoinedRows(positions, torch.arange(len(found))), "store")
    return positions


def _key(name: str, join_on: JoinOn) -> str:
    return name if join_on == "id" else name.rpartition("/")[2]


def _numbered(names: Sequence[str], join_on: JoinOn, what: str) -> Mapping[str, int]:
    """The number of each name; `InputError` where one stands twice."""
    number: dict[str, int] = {}
    for i, name in enumerate(names):
        if number.setdefault(_key(name, join_on), i) != i:
            first = names[number[_key(name, join_on)]]
            got = f"'name', but {what} hold {_key(name, join_on)} twice ({first}, {name})"
            raise InputError("join_on", got, "'id', or file names that are unique")
    return number


def _missing(
    images: LabelledImages, store: FeatureStore, missing: Sequence[str], join_on: JoinOn, argument: str
) -> InputError:
    """What to say about images without a row."""
    some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    if len(missing) < len(images):
        got = f"{store.folder}, a store without {len(missing)} of the {len(images)} images ({some})"
        return InputError(argument, got, f"a row for every image of {images.description}")
    got = f"{store.folder}, a store of other images (ids such as {store.ids[0]}, the images are {some})"
    if join_on == "id" and _have_one_name(images.ids, store.ids):
        return InputError(argument, got, "join_on 'name': the file names are the same")
    return InputError(argument, got, f"the store of {images.description}, of the same split")


def _have_one_name(images: Iterable[str], rows: Iterable[str]) -> bool:
    names = {_key(name, "name") for name in rows}
    return all(_key(name, "name") in names for name in images)


def _check_labels(images: LabelledImages, store: FeatureStore, joined: JoinedRows, argument: str) -> None:
    """Refuse rows whose label is not that of their image, where classes of the same names tell."""
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
