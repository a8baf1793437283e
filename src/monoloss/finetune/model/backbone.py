"""The backbone of a fine-tuned model: a timm model without classifier, and the recipe to build it again."""

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

_NOT_IN_A_RECIPE = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_SETTING_OF_ARGUMENT = {"encoder": "model.backbone", "checkpoint": "model.checkpoint", "image_size": "model.image_size"}


class Backbone(NamedTuple):
    """An image model of timm without its classifier, and the recipe to build it again."""

    model: ImageModel
    """Maps images to pooled activations `(n, width)`, the inputs of the former classifier."""
    width: int
    recipe: Mapping[str, Any]
    """Plain values for `rebuild_backbone`: `architecture`, `pretrained_cfg` and `args` of timm's `create_model`."""
    preprocessing: Mapping[str, Any]
    """Preprocessing of evaluation: timm's `input_size`, `interpolation`, `mean`, `std`, `crop_pct`, `crop_mode`."""


def load_backbone(
    backbone: str,
    *,
    pretrained: bool = True,
    checkpoint: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """Load an image model with its weights and remove its classifier.

    The pooled activations are the classifier's inputs: the mean over positions for convolutional networks, the class
    token after the last norm for most ViTs (CLIP's before its projection), the mean over tokens or attention pooling
    for others; with hidden layers between pooling and classifier, the outputs of the last one.

    Args:
        backbone: a preset, a name in timm, ``hf-hub:USER/NAME`` or a local folder.
        pretrained: start from the published weights; false for random ones.
        checkpoint: local weights file, instead of the published weights.
        image_size: height and width of the model's input in evaluation, in pixels; None for the backbone's default.
        seed: seed of random weights.

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
    with _errors_name_settings():
        request = weights.request_model(
            name, checkpoint=checkpoint, pretrained=pretrained, image_size=size, seed=seed, presets=PRESETS
        )
        empty = weights.build_empty(request)
        preprocessing = data_config(empty, size, None)
        _reset(empty)
        with suppress(RuntimeError):  # refuses a wrong image size early; not every model runs on "meta"
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
    """Build the model of a recipe with arbitrary weights, on the current default device, which may be "meta".

    Raises:
        InputError: a recipe from which the installed timm cannot build a model.
        MissingExtraError: timm is not installed.
    """
    with needs_extra("finetune"):
        import timm
    for key in _NOT_IN_A_RECIPE:  # with these timm would read other files
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
    """Return the width of a backbone's pooled output, from a pass over one square image of zeros.

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
    """Remove the classifier; the layers before it stay."""
    if not hasattr(model, "reset_classifier"):
        raise InputError("model.backbone", f"a {type(model).__name__}", "an image classifier of timm")
    model.reset_classifier(0)


@contextmanager
def _errors_name_settings() -> Iterator[None]:
    """Make errors name the settings in place of the arguments of the functions that raised them."""
    try:
        yield
    except InputError as error:
        raise InputError(_SETTING_OF_ARGUMENT.get(error.argument, error.argument), error.got, error.expected) from error


def _wrong_size(argument: str, size: int, error: Exception) -> InputError:
    """Build the error of an image size on which the backbone failed with `error`."""
    return InputError(argument, f"{size} ({first_line(error)})", "a size that the backbone takes")
