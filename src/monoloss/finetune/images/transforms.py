"""Transforms from an image to the model's input: random for training, fixed for evaluation."""

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

    The random choices depend on the arguments of the call alone, so that workers, processes and resuming change none.

    Args:
        preprocessing: `input_size`, `interpolation`, `mean` and `std` of the backbone, as from timm's
            `resolve_model_data_config`.
        train_crop: side of the random crop in pixels; None for `input_size`.
        min_area: smallest share of an image's area that the crop shows, in (0, 1].
        flip: probability that an image is mirrored.
        trivial_augment: apply one random operation of TrivialAugmentWide to each image.
        random_erasing: probability that a random rectangle is blanked.
        interpolation: how images are resized; None for that of `preprocessing`.
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

    def __call__(self, picture: Image.Image, *seed_parts: int) -> Float[Tensor, "3 h w"]:
        """Transform an image; the random choices depend on `seed_parts` alone."""
        with seeded_from("image", *seed_parts):
            pixels: Tensor = self._transform(picture)
        return pixels


def evaluation_transform(preprocessing: Mapping[str, Any], **options: Any) -> Transform:
    """Build the transform of evaluation: resize, centre crop and normalisation, by timm.

    Arguments and errors are those of `evaluation_preprocessing`.
    """
    chosen = evaluation_preprocessing(preprocessing, **options)
    transform: Transform = create_transform(**chosen, is_training=False)
    return transform


def evaluation_preprocessing(
    preprocessing: Mapping[str, Any], *, eval_resize: int | None = None, interpolation: str | None = None
) -> dict[str, Any]:
    """Return the preprocessing of evaluation as arguments of timm's `create_transform`.

    Args:
        preprocessing: that of the backbone, as from timm's `resolve_model_data_config`.
        eval_resize: shorter side of an image before the centre crop, in pixels; None for that of the backbone.
        interpolation: how images are resized; None for that of the backbone.

    Raises:
        InputError: `eval_resize` is less than the side of the centre crop.
    """
    chosen = {key: preprocessing[key] for key in ("input_size", "interpolation", "mean", "std")}
    chosen |= {key: preprocessing[key] for key in ("crop_pct", "crop_mode") if key in preprocessing}
    if interpolation is not None:
        chosen["interpolation"] = interpolation
    if eval_resize is not None:
        crop = max(preprocessing["input_size"][1:])
        if eval_resize < crop:
            raise InputError("augmentation.eval_resize", eval_resize, f"at least the centre crop, {crop}")
        # timm resizes to crop / crop_pct rounded down: the half makes that eval_resize
        chosen |= {"crop_pct": crop / (eval_resize + 0.5), "crop_mode": "center"}
    return chosen
