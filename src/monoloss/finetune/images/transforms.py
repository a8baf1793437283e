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
from monoloss.finetune.config import AugmentationConfig
from monoloss.finetune.images.seeds import drawn_from

Transform: TypeAlias = Callable[[Image.Image], Tensor]


class TrainingTransform:
    """Random crop, flip, TrivialAugmentWide, normalisation and erasing, by torchvision.

    Every random choice follows from what the call is given, so workers, processes and a resumed run change nothing.

    Args:
        config: what is done.
        preprocessing: of the backbone, as timm's `resolve_model_data_config` gives it: `input_size`, `interpolation`,
            `mean` and `std`.

    Example:
        >>> from monoloss.finetune.config import AugmentationConfig
        >>> facts = {"input_size": (3, 8, 8), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
        >>> transform = TrainingTransform(AugmentationConfig(), facts)
        >>> picture = Image.radial_gradient("L").convert("RGB")
        >>> torch.equal(transform(picture, 0, 1, 2), transform(picture, 0, 1, 2)), transform(picture, 0, 1, 3).shape
        (True, torch.Size([3, 8, 8]))
    """

    def __init__(self, config: AugmentationConfig, preprocessing: Mapping[str, Any]) -> None:
        interpolation = InterpolationMode(config.interpolation or preprocessing["interpolation"])
        size = (config.train_crop,) * 2 if config.train_crop else tuple(preprocessing["input_size"][1:])
        steps: list[v2.Transform] = [
            v2.RandomResizedCrop(size, scale=(config.min_area, 1.0), interpolation=interpolation, antialias=True),
            v2.RandomHorizontalFlip(config.flip),
        ]
        if config.trivial_augment:
            steps.append(v2.TrivialAugmentWide(interpolation=interpolation))
        mean, std = list(preprocessing["mean"]), list(preprocessing["std"])
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        if config.random_erasing:
            steps.append(v2.RandomErasing(config.random_erasing))
        self._transform = v2.Compose([*steps, v2.ToPureTensor()])

    def __call__(self, picture: Image.Image, *drawn: int) -> Float[Tensor, "3 h w"]:
        """The picture as the model takes it; `drawn` is what the random choices follow from."""
        with drawn_from("image", *drawn):
            pixels: Tensor = self._transform(picture)
        return pixels


def evaluation_transform(config: AugmentationConfig, preprocessing: Mapping[str, Any]) -> Transform:
    """Resize, crop in the middle and normalise, as timm does it for the backbone.

    Args:
        config: `eval_resize` and `interpolation` stand in for the backbone's own, where they are given.
        preprocessing: of the backbone, as timm's `resolve_model_data_config` gives it.

    Raises:
        InputError: `eval_resize` is less than the crop.

    Example:
        >>> from monoloss.finetune.config import AugmentationConfig
        >>> facts = {"input_size": (3, 8, 8), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
        >>> transform = evaluation_transform(AugmentationConfig(eval_resize=10), facts | {"crop_pct": 0.9})
        >>> transform(Image.new("RGB", (30, 20), "white"))[:, 0, 0].tolist()
        [1.0, 1.0, 1.0]
    """
    chosen = evaluation_preprocessing(config, preprocessing)
    transform: Transform = create_transform(**chosen, is_training=False)
    return transform


def evaluation_preprocessing(config: AugmentationConfig, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing in evaluation in timm's words: the backbone's own, but for what the configuration says.

    Raises:
        InputError: `eval_resize` is less than the crop.

    Example:
        >>> from monoloss.finetune.config import AugmentationConfig
        >>> facts = {"input_size": (3, 8, 8), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
        >>> evaluation_preprocessing(AugmentationConfig(interpolation="bicubic"), facts)["interpolation"]
        'bicubic'
    """
    chosen = {key: preprocessing[key] for key in ("input_size", "interpolation", "mean", "std")}
    chosen |= {key: preprocessing[key] for key in ("crop_pct", "crop_mode") if key in preprocessing}
    if config.interpolation is not None:
        chosen["interpolation"] = config.interpolation
    if config.eval_resize is not None:
        crop = max(preprocessing["input_size"][1:])
        if config.eval_resize < crop:
            raise InputError("augmentation.eval_resize", config.eval_resize, f"at least the centre crop, {crop}")
        # timm rounds crop / crop_pct down
        chosen |= {"crop_pct": crop / (config.eval_resize + 0.5), "crop_mode": "center"}
    return chosen
