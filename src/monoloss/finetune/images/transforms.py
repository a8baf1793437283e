"""From a picture to what the model takes: random for training, fixed for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from monoloss.errors import InputError
from monoloss.finetune.images.seeds import seeded_from

Transform: TypeAlias = Callable[[Image.Image], Tensor]


class TrainingTransform:
    """Random crop, flip, TrivialAugmentWide, normalisation and erasing, by torchvision.

    Every random choice follows from what the call is given, so workers, processes and a resumed run change nothing.

    Args:
        preprocessing: of the backbone, as timm's `resolve_model_data_config` gives it: `input_size`, `interpolation`,
            `mean` and `std`.
        train_crop: side of the random crop; None: `input_size`.
        min_area: the crop shows at least this share of an image; 1 for the whole of it.
        flip: chance of a mirrored image.
        trivial_augment: one random operation of TrivialAugmentWide an image.
        random_erasing: chance that a random rectangle is blanked.
        interpolation: of resized images; None: the backbone's own.
    """

    def __init__(
        self,
        preprocessing: Mapping[str, Any],
        *,
        train_crop: int | None = None,
        min_area: float = 0.08,
        flip: float = 0.5,
        trivial_augment: bool = False,
        random_erasing: float = 0.0,
        interpolation: str | None = None,
    ) -> None:
        mode = InterpolationMode(interpolation or preprocessing["interpolation"])
        size = (train_crop,) * 2 if train_crop else tuple(preprocessing["input_size"][1:])
        steps: list[v2.Transform] = [
            v2.RandomResizedCrop(size, scale=(min_area, 1.0), interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(flip),
        ]
        if trivial_augment:
            steps.append(v2.TrivialAugmentWide(interpolation=mode))
        mean, std = list(preprocessing["mean"]), list(preprocessing["std"])
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        if random_erasing:
            steps.append(v2.RandomErasing(random_erasing))
        self._transform = v2.Compose([*steps, v2.ToPureTensor()])

    def __call__(self, picture: Image.Image, *drawn: int) -> Float[Tensor, "3 h w"]:
        """Transform a picture; the random choices follow from the numbers `drawn` alone."""
        with seeded_from("image", *drawn):
            pixels: Tensor = self._transform(picture)
        return pixels


def evaluation_transform(preprocessing: Mapping[str, Any], **options: Any) -> Transform:
    """Resize, crop in the middle and normalise, as timm does it for the backbone.

    Arguments and errors are those of `evaluation_preprocessing`.
    """
    chosen = evaluation_preprocessing(preprocessing, **options)
    transform: Transform = create_transform(**chosen, is_training=False)
    return transform


def evaluation_preprocessing(
    preprocessing: Mapping[str, Any], *, eval_resize: int | None = None, interpolation: str | None = None
) -> dict[str, Any]:
    """Choose the preprocessing in evaluation, in timm's words.

    Args:
        preprocessing: of the backbone, as timm's `resolve_model_data_config` gives it.
        eval_resize: shorter side of an image before the centre crop; None: the backbone's own.
        interpolation: of resized images; None: the backbone's own.

    Raises:
        InputError: `eval_resize` is less than the crop.
    """
    chosen = {key: preprocessing[key] for key in ("input_size", "interpolation", "mean", "std")}
    chosen |= {key: preprocessing[key] for key in ("crop_pct", "crop_mode") if key in preprocessing}
    if interpolation is not None:
        chosen["interpolation"] = interpolation
    if eval_resize is not None:
        crop = max(preprocessing["input_size"][1:])
        if eval_resize < crop:
            raise InputError("augmentation.eval_resize", eval_resize, f"at least the centre crop, {crop}")
        # timm rounds crop / crop_pct down
        chosen |= {"crop_pct": crop / (eval_resize + 0.5), "crop_mode": "center"}
    return chosen
