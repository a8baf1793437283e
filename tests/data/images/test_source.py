"""The interface that all sources of images share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image

from monoloss.data.images import ImageSource, open_images
from monoloss.data.images.cifar import CifarImages
from monoloss.data.images.decode import decode_image
from support.extraction import ListSource
from support.image_sources import PIXEL, folder


def of_a_folder(tmp_path: Path) -> ImageSource:
    return open_images(f"imagefolder:{folder(tmp_path, *(f'a/{i}.png' for i in range(5)))}")


def of_a_dataset(tmp_path: Path) -> ImageSource:
    cells = [{"bytes": PIXEL, "path": f"{i}.png"} for i in range(5)]
    Dataset.from_dict({"image": cells}, features=Features({"image": Image()})).save_to_disk(tmp_path / "saved")
    return open_images(f"dataset:{tmp_path / 'saved'}")


def of_cifar(_: Path) -> ImageSource:
    return CifarImages("cifar10:x", "test", np.zeros((5, 32, 32, 3), np.uint8), [0, 1, 0, 1, 0], ["plane", "car"])


def of_a_stream(_: Path) -> ImageSource:
    return ListSource(5, stream=True)


@pytest.mark.parametrize("make", [of_a_folder, of_a_dataset, of_cifar, of_a_stream])
def test_every_source_gives_its_images_in_one_order(tmp_path: Path, make: Callable[[Path], ImageSource]) -> None:
    source = make(tmp_path)
    assert isinstance(source, ImageSource)
    assert source.n_images in {5, None}
    images = list(source.images())
    assert [image.position for image in images] == list(range(5))
    assert len({image.id for image in images}) == 5
    assert all(decode_image(image.content).mode == "RGB" for image in images)
    for start, stop in ((0, 2), (2, None), (3, 3), (4, 9), (5, None)):
        assert list(source.images(start, stop)) == images[start:stop]


def test_what_has_no_images_is_no_source() -> None:
    class Described:
        description, image_root, labels, class_names, n_images = "x", None, None, None, 0

    assert not isinstance(Described(), ImageSource)
    assert not isinstance([], ImageSource)
