"""The part of a model that comes from timm: an image model without its classifier, and how to build it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monoloss.data.encoders import PRESETS
from monoloss.data.encoders.encoders import data_config
from monoloss.data.encoders.outputs import ImageModel
from monoloss.errors import InputError, first_line, needs_extra
from monoloss.files.dataclasses import to_plain

_NOT_OF_A_RECIPE = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_ARGUMENTS = {"encoder": "model.backbone", "checkpoint": "model.checkpoint", "image_size": "model.image_size"}


class Backbone(NamedTuple):
    """An image model of timm whose head is gone, and what it was made of.

    Attributes:
        model: gives pooled activations `(n, width)`: what its head was given.
        width: of those.
        recipe: what timm builds the same model from: `architecture`, `pretrained_cfg`, `args`, in plain values.
        preprocessing: how an image becomes its input in evaluation, in timm's words: `input_size`, `interpolation`,
            `mean`, `std`, `crop_pct`, `crop_mode`.
    """

    model: ImageModel
    width: int
    recipe: Mapping[str, Any]
    preprocessing: Mapping[str, Any]


def load_backbone(
    backbone: str,
    *,
    pretrained: bool = True,
    checkpoint: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """Load an image model with its weights and take its classifier off.

    What "pooled" means is the model's own: the mean over positions for convolutional networks, the class token after
    the last norm for most ViTs (CLIP's before its projection), the mean over tokens or attention pooling for others;
    where a network has hidden layers between pooling and classifier, what comes out of them.

    Args:
        backbone: a preset, a name in timm, ``hf-hub:USER/NAME`` or a local folder.
        pretrained: start from the published weights; false for random ones.
        checkpoint: local file of weights, instead of the published ones.
        image_size: height and width of the model's input in evaluation; None: the backbone's own.
        seed: of random weights.

    Raises:
        InputError: an unknown name, weights that are missing or do not fit, an image size that the model does not take.
        MissingExtraError: timm is not installed.
    """
    with needs_extra("finetune"):
        from timm.models import filter_pretrained_cfg, get_model_args

        from monoloss.data.encoders import weights

    preset = PRESETS.get(backbone)
    name, size = backbone, image_size
    if preset is not None:
        name, size = preset.model, size or preset.image_size
    with _arguments_of_config():
        request = weights.request_model(
            name, checkpoint=checkpoint, pretrained=pretrained, image_size=size, seed=seed, presets=PRESETS
        )
        empty = weights.build_empty(request)
        preprocessing = data_config(empty, size, None)
        _reset(empty)
        with suppress(RuntimeError):  # not every model runs without memory
            pooled_width(empty, preprocessing["input_size"][1])
        model, _ = weights.build_model(request, empty, head_used=False)
    _reset(model)
    width = pooled_width(model, preprocessing["input_size"][1])
    recipe = {
        "architecture": model.pretrained_cfg["architecture"],
        "pretrained_cfg": filter_pretrained_cfg(  # type: ignore[no-untyped-call]
            model.pretrained_cfg, remove_source=True, remove_null=True
        ),
        "args": {key: value for key, value in get_model_args(model).items() if value is not None},
    }
    return Backbone(model, width, to_plain(recipe), to_plain(preprocessing))


def rebuild_backbone(recipe: Mapping[str, Any]) -> ImageModel:
    """Build the model of a recipe with arbitrary weights. It may lie on "meta", inside `torch.device("meta")`.

    Raises:
        InputError: a recipe that the installed timm cannot follow.
        MissingExtraError: timm is not installed.
    """
    with needs_extra("finetune"):
        import timm
    for key in _NOT_OF_A_RECIPE:  # they would make timm read other files
        if key in recipe["args"]:
            raise InputError(f"backbone.args.{key}", "a value", "no such key")
    try:
        return timm.create_model(
            recipe["architecture"], pretrained=False, pretrained_cfg=dict(recipe["pretrained_cfg"]), **recipe["args"]
        )
    except Exception as error:  # wrong values in a file can raise anything in timm
        got = f"{recipe['architecture']!r} ({first_line(error)})"
        raise InputError("backbone", got, "a model of this timm") from error


@torch.no_grad()
def pooled_width(model: ImageModel, image_size: int, argument: str = "model.image_size") -> int:
    """Find the width of a backbone's output with one square image.

    Raises:
        InputError: the model does not take images of that size; the error names ``argument``.
    """
    was_training, parameter = model.training, next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    try:
        pooled = model.eval()(image)
    except (AssertionError, ValueError) as error:
        raise _wrong_size(argument, image_size, error) from error
    except RuntimeError as error:
        if parameter.is_meta:
            raise
        raise _wrong_size(argument, image_size, error) from error
    finally:
        model.train(was_training)
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        got = f"shape {tuple(pooled.shape)}" if isinstance(pooled, Tensor) else f"a {type(pooled).__name__}"
        raise InputError("model.backbone", f"a model whose pooled output is {got}", "one vector an image")
    return int(pooled.shape[1])


def _reset(model: ImageModel) -> None:
    """Take the classifier off; what is in front of it stays as it is."""
    if not hasattr(model, "reset_classifier"):
        raise InputError("model.backbone", f"a {type(model).__name__}", "an image classifier of timm")
    model.reset_classifier(0)


@contextmanager
def _arguments_of_config() -> Iterator[None]:
    """Name the keys of the configuration in errors."""
    try:
        yield
    except InputError as error:
        raise InputError(_ARGUMENTS.get(error.argument, error.argument), error.got, error.expected) from error


def _wrong_size(argument: str, size: int, error: Exception) -> InputError:
    return InputError(argument, f"{size} ({first_line(error)})", "a size that the backbone takes")
