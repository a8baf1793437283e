"""Embeddings joined by sample id."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monoloss.data.encoders import load_encoder
from monoloss.data.extraction.run import Extraction
from monoloss.data.images import open_images
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.finetune.images.join import join_rows
from support.image_folders import embeddings_of, labelled, picture_folder, store_of


def test_rows_follow_ids_and_not_order(tmp_path: Path) -> None:
    images = labelled(picture_folder(tmp_path / "images"))
    store = store_of(tmp_path / "store", images)
    joined = join_rows(images, store)
    assert joined.rows.tolist() == list(range(12))[::-1]
    assert joined.positions.tolist() == list(range(12))
    torch.testing.assert_close(store.rows(joined.rows), embeddings_of(images), atol=0, rtol=0)


def test_rows_of_other_images_are_no_fault(tmp_path: Path) -> None:
    images = labelled(picture_folder(tmp_path / "images"))
    ids = ["other/x.png", *images.ids]
    store = FeatureStore.create(tmp_path / "store", torch.randn(13, 4), ids=ids)
    assert join_rows(images, store).rows.tolist() == list(range(1, 13))


def test_join_on_name(tmp_path: Path) -> None:
    images = labelled(picture_folder(tmp_path / "images"))
    ids = ["somewhere/else/" + name.rpartition("/")[2] for name in images.ids]
    store = store_of(tmp_path / "store", images, ids=ids[::-1])
    assert join_rows(images, store, "name").rows.tolist() == list(range(12))[::-1]


def test_skipped_images_are_left_out(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images")
    (folder / "bee/bee1.png").write_bytes(b"no picture")
    source = open_images(f"imagefolder:{folder}")
    encoder = load_encoder("resnet10t", pretrained=False, image_size=32)
    store = Extraction(source, encoder, str(tmp_path / "store"), workers=0, progress=False).run()
    images = labelled(folder)
    for join_on in ("id", "name"):
        joined = join_rows(images, store, join_on)
        assert joined.positions.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert joined.rows.tolist() == list(range(11))


def refused(images: Path, store: FeatureStore, join_on: str = "id") -> str:
    with pytest.raises(InputError) as error:
        join_rows(labelled(images), store, join_on)
    return str(error.value)


@pytest.mark.door
def test_images_without_an_embedding(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images")
    images = labelled(folder)
    store = FeatureStore.create(tmp_path / "store", torch.randn(8, 4), ids=images.ids[:8])
    assert refused(folder, store) == (
        f"embeddings: got {tmp_path}/store, a store without 4 of the 12 images "
        f"(cat/cat0.png, cat/cat1.png, cat/cat2.png and 1 more); expected a row for every image of imagefolder:{folder}"
    )


@pytest.mark.door
def test_a_store_of_another_split(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", 1)
    other = FeatureStore.create(tmp_path / "other", torch.randn(2, 4), ids=["ant/x.png", "ant/y.png"])
    assert refused(folder, other) == (
        f"embeddings: got {tmp_path}/other, a store of other images (ids such as ant/x.png, the images are "
        f"ant/ant0.png, bee/bee0.png, cat/cat0.png); expected the store of imagefolder:{folder}, of the same split"
    )
    names = FeatureStore.create(tmp_path / "names", torch.randn(3, 4), ids=["ant0.png", "bee0.png", "cat0.png"])
    assert refused(folder, names).endswith("; expected join_on 'name': the file names are the same")


@pytest.mark.door
def test_another_split_with_the_same_ids(tmp_path: Path) -> None:
    """As rows of a data set: each split begins with row 0."""
    folder = picture_folder(tmp_path / "images")
    images = labelled(folder)
    shifted = images.labels.flip(0).roll(1)
    store = store_of(tmp_path / "store", images, labels=shifted)
    assert refused(folder, store) == (
        f"embeddings: got {tmp_path}/store, where 3 of 12 images have another label (ant/ant3.png: 1, not 0); "
        f"expected the store of imagefolder:{folder}, of the same split"
    )


def test_labels_of_other_names_tell_nothing(tmp_path: Path) -> None:
    images = labelled(picture_folder(tmp_path / "images"))
    wrong = images.labels.flip(0).roll(1)
    renamed = store_of(tmp_path / "renamed", images, labels=wrong, class_names=["x", "y", "z"])
    numbers = store_of(tmp_path / "numbers", images, labels=wrong, class_names=None)
    for store in (renamed, numbers):
        assert len(join_rows(images, store).rows) == 12
    order = torch.tensor([2, 0, 1])  # the same classes, numbered in another way
    numbered = order[images.labels.flip(0)]
    store = store_of(tmp_path / "reordered", images, labels=numbered, class_names=["bee", "cat", "ant"])
    assert len(join_rows(images, store).rows) == 12


@pytest.mark.door
def test_names_that_are_not_unique(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", 1)
    images = labelled(folder)
    store = FeatureStore.create(tmp_path / "store", torch.randn(3, 4), ids=["a/x.png", "b/x.png", "c/y.png"])
    assert refused(folder, store, "name") == (
        f"join_on: got 'name', but the rows of {tmp_path}/store hold x.png twice (a/x.png, b/x.png); "
        "expected 'id', or file names that are unique"
    )
    (folder / "bee/bee0.png").rename(folder / "bee/ant0.png")
    store = FeatureStore.create(tmp_path / "names", torch.randn(3, 4), ids=images.ids)
    assert refused(folder, store, "name").startswith(f"join_on: got 'name', but imagefolder:{folder} hold ant0.png")


@pytest.mark.door
def test_patches_are_refused(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", 1)
    encoder = load_encoder("resnet10t", pretrained=False, image_size=64, patches=True)
    source = open_images(f"imagefolder:{folder}")
    store = Extraction(source, encoder, str(tmp_path / "store"), workers=0, progress=False).run()
    assert refused(folder, store).endswith("whose rows are patches; expected a store with a row for each image")
