"""What training and evaluation make of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from monoloss.errors import InputError
from monoloss.finetune.images.transforms import TrainingTransform, evaluation_transform
from support.image_folders import PREPROCESSING

EVERYTHING = {"trivial_augment": True, "random_erasing": 0.5}
MEAN, STD = (torch.tensor(PREPROCESSING[name])[:, None, None] for name in ("mean", "std"))


def picture(height: int = 20, width: int = 30) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shown(transformed: Tensor) -> Tensor:
    """Back to 0 to 1."""
    return transformed * STD + MEAN


def test_choices_follow_from_what_is_given_alone() -> None:
    transform, again = (TrainingTransform(PREPROCESSING, **EVERYTHING) for _ in range(2))
    first = [transform(picture(), 0, 1, i) for i in range(5)]
    torch.rand(17)
    for i in (3, 0, 4):
        assert torch.equal(again(picture(), 0, 1, i), first[i])
    others = [transform(picture(), 1, 1, 3), transform(picture(), 0, 2, 3), transform(picture(), 0, 1, 3, 1)]
    for other in (*others, first[2]):
        assert not torch.equal(other, first[3])


def test_the_generator_of_torch_is_left_as_it_was() -> None:
    transform = TrainingTransform(PREPROCESSING, **EVERYTHING)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    transform(picture(), 0)
    assert torch.equal(torch.rand(3), expected)


def test_what_comes_out_without_chance() -> None:
    flat = Image.new("RGB", (12, 12), (51, 102, 153))
    made = TrainingTransform(PREPROCESSING, min_area=1.0, flip=0.0)(flat, 0)
    assert type(made) is Tensor
    assert made.shape == (3, 12, 12)
    assert made.dtype == torch.float32
    torch.testing.assert_close(shown(made), torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(3, 12, 12))


def test_size_of_the_crop() -> None:
    assert TrainingTransform(PREPROCESSING, train_crop=9)(picture(), 0).shape == (3, 9, 9)


def share(is_it: Any, n: int = 200, **options: Any) -> float:
    transform = TrainingTransform(PREPROCESSING, **options)
    square = Image.new("RGB", (12, 12), (20, 20, 20))
    square.paste((255, 255, 255), (0, 0, 6, 12))  # the left half is white
    return sum(bool(is_it(shown(transform(square, i)))) for i in range(n)) / n


def test_each_option_does_what_it_says() -> None:
    still = {"min_area": 1.0, "flip": 0.0}  # the crop may still be a little stretched: a square shows all of it
    assert share(lambda seen: seen[0, 6, 0] < 0.5, **still) == 0.0
    assert 0.35 < share(lambda seen: seen[0, 6, 0] < 0.5, min_area=1.0, flip=0.5) < 0.65

    def is_erased(seen: Tensor) -> bool:  # erased is the mean of the data, which no part of the picture is
        return torch.isclose(seen[0], torch.tensor(PREPROCESSING["mean"][0]), atol=1e-6).sum() > 3

    assert share(is_erased, **still) == 0.0
    assert 0.3 < share(is_erased, **still, random_erasing=0.4) < 0.5

    def is_changed(seen: Tensor) -> bool:
        return not torch.isclose(seen[0, 6, 11], torch.tensor(20 / 255), atol=1e-4)

    assert share(is_changed, **still) == 0.0
    assert share(is_changed, **still, trivial_augment=True) > 0.3
    smallest = share(lambda seen: seen[0].std() < 0.01, min_area=0.08, flip=0.0)
    assert smallest > 0.05  # crops that lie in one half


def test_evaluation_is_what_timm_does() -> None:
    made = evaluation_transform(PREPROCESSING)(picture())
    expected = create_transform(**PREPROCESSING, is_training=False)(picture())
    assert torch.equal(made, expected)


@pytest.mark.parametrize(("resize", "crop"), [(232, 224), (256, 224), (14, 12), (12, 12), (235, 224), (320, 299)])
def test_evaluation_with_a_size_of_its_own(resize: int, crop: int) -> None:
    metadata = PREPROCESSING | {"input_size": (3, crop, crop), "crop_pct": 0.5}
    seen = picture(resize, resize)  # resized, it stays as it is
    made = evaluation_transform(metadata, eval_resize=resize)(seen)
    left = round((resize - crop) / 2.0)
    expected = torch.from_numpy(np.asarray(seen)[left : left + crop, left : left + crop].copy()).permute(2, 0, 1)
    torch.testing.assert_close(shown(made), expected / 255, atol=1e-5, rtol=0)


def test_interpolation() -> None:
    plain, bicubic = (evaluation_transform(PREPROCESSING, interpolation=name)(picture()) for name in (None, "bicubic"))
    expected = create_transform(**(PREPROCESSING | {"interpolation": "bicubic"}), is_training=False)(picture())
    assert torch.equal(bicubic, expected)
    assert not torch.equal(plain, bicubic)
    crops = [TrainingTransform(PREPROCESSING, interpolation=name)(picture(), 0) for name in (None, "bicubic")]
    assert not torch.equal(*crops)


@pytest.mark.door
def test_resizing_to_less_than_the_crop() -> None:
    with pytest.raises(InputError, match=r"augmentation\.eval_resize: got 11; expected at least the centre crop, 12"):
        evaluation_transform(PREPROCESSING, eval_resize=11)
