"""Images with one label each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from monoloss.data.images import open_images
from monoloss.errors import InputError
from monoloss.finetune.config import DataConfig
from monoloss.finetune.images.labelled import LabelledImages
from support.image_folders import labelled, picture_folder


def test_folder(tmp_path: Path) -> None:
    images = labelled(picture_folder(tmp_path))
    assert len(images) == 12
    assert images.ids[5] == "bee/bee1.png"
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    picture = images.read(5)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(tmp_path / "bee/bee1.png")))


def dataset(folder: Path, labels: list[int] | list[str], *, classes: list[str] | None = None) -> str:
    """A data set of grey pictures, the i-th of brightness 10 i."""
    kind = datasets.ClassLabel(names=classes) if classes else datasets.Value("string" if labels[0] == "b" else "int64")
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    pictures = [Image.new("RGB", (4, 4), (10 * i,) * 3) for i in range(len(labels))]
    datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features).save_to_disk(folder)
    return f"dataset:{folder}"


def test_dataset_is_read_in_any_order(tmp_path: Path) -> None:
    images = LabelledImages(open_images(dataset(tmp_path / "d", [1, 0, 1], classes=["no", "yes"])))
    assert list(images.ids) == ["0", "1", "2"]
    assert images.labels.tolist() == [1, 0, 1]
    assert [images.read(i).getpixel((0, 0)) for i in (2, 0)] == [(20, 20, 20), (0, 0, 0)]


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    images = LabelledImages(open_images(dataset(tmp_path / "d", [4, 0, 1])))
    assert images.class_names == ["0", "1", "2", "3", "4"]


def test_held_out_images_are_numbered_as_those_to_train_on(tmp_path: Path) -> None:
    train = labelled(picture_folder(tmp_path / "train"))
    held_out = labelled(picture_folder(tmp_path / "val", 2, ("cat", "bee")))
    held_out.use_classes_of(train)
    assert held_out.labels.tolist() == [1, 1, 2, 2]
    assert held_out.class_names == ["ant", "bee", "cat"]


def test_strings_are_joined_by_name(tmp_path: Path) -> None:
    train = LabelledImages(open_images(dataset(tmp_path / "d", ["b", "c", "a"])))
    held_out = LabelledImages(open_images(dataset(tmp_path / "e", ["b", "c"])))
    held_out.use_classes_of(train)
    assert held_out.labels.tolist() == [1, 2]


@pytest.mark.door
def test_a_wrong_class_count(tmp_path: Path) -> None:
    train = labelled(picture_folder(tmp_path / "train"))
    held_out = labelled(picture_folder(tmp_path / "val", 1, ("ant", "bee", "cat", "dog")))
    with pytest.raises(InputError) as error:
        held_out.use_classes_of(train)
    assert str(error.value) == (
        f"imagefolder:{tmp_path}/val: got 4 classes, 1 of them (dog) not of imagefolder:{tmp_path}/train; "
        "expected the 3 classes of the images to train on"
    )


@pytest.mark.door
def test_a_broken_image_is_named(tmp_path: Path) -> None:
    images = labelled(picture_folder(tmp_path))
    (tmp_path / "bee/bee1.png").write_bytes(b"no")
    with pytest.raises(
        InputError, match=r"an image that cannot be read: bee/bee1\.png \(not an image in a known format\)"
    ):
        images.read(5)


@pytest.mark.door
def test_images_without_one_label_each(tmp_path: Path) -> None:
    picture_folder(tmp_path / "a")
    with pytest.raises(InputError, match="got images without labels; expected images with one label each"):
        labelled(tmp_path / "a", label_column="")
    with pytest.raises(InputError, match="got images without labels"):
        labelled(tmp_path / "a/ant")
    place = dataset(tmp_path / "d", [1, 0], classes=["no", "yes"])
    with pytest.raises(InputError, match="got a stream; expected images that can be read in any order"):
        LabelledImages(dataclasses.replace(open_images(place), n_images=None))


@pytest.mark.door
def test_a_number_that_is_no_class(tmp_path: Path) -> None:
    """An identifier taken for a label would make as many classes."""
    place = dataset(tmp_path / "d", [0, 2**20])
    with pytest.raises(InputError, match="got the label 1048576; expected class numbers from 0, below 1048576"):
        LabelledImages(open_images(place))


def test_held_out_images_of_a_config(tmp_path: Path) -> None:
    picture_folder(tmp_path / "train")
    picture_folder(tmp_path / "val", 1)
    config = DataConfig(f"imagefolder:{tmp_path}", split="train", validation_split="val")
    assert len(LabelledImages(open_images(**config.source()))) == 12
    assert len(LabelledImages(open_images(**config.source(held_out=True)))) == 3
    place = dataset(tmp_path / "d", [2, 0, 1], classes=["ant", "bee", "cat"])
    config = DataConfig(place, label_column="label", validation=f"imagefolder:{tmp_path}/val")
    assert len(LabelledImages(open_images(**config.source()))) == 3
    assert len(LabelledImages(open_images(**config.source(held_out=True)))) == 3
