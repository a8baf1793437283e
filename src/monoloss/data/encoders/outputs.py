"""Outputs of image models: how a user names one, and how it becomes one row for each image or for each patch."""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.errors import InputError

Grid: TypeAlias = tuple[int, int]
Kind: TypeAlias = Literal["embedding", "pooled", "class_token", "layer", "patches"]
ImageModel: TypeAlias = Any  # a model of timm: its attributes depend on its family

_LAYER = "layer:"
_CLASS = ":class"
_KINDS: dict[str, Kind] = {"embedding": "embedding", "pooled": "pooled", "class_token": "class_token"}
_EXPECTED = "'embedding', 'pooled', 'class_token', 'layer:NAME' or 'layer:NAME:class'"


class EncoderOutput(NamedTuple):
    """The output of an image model that becomes its rows."""

    # `embedding`: the model's output; `pooled`: the input of its head; `class_token`; `layer`: a layer's output; or
    # `patches`: the patch tokens or positions of its last feature map
    kind: Kind
    layer: str | None = None  # the name of the layer, for `kind="layer"`
    class_token: bool = False  # take the class token of a layer's tokens, not the mean of its patch tokens
    patches: bool = False  # a row for each patch instead of one for each image

    @property
    def name(self) -> str:
        """The output as a user writes it, such as "pooled" or "layer:blocks.3:class"."""
        return self.kind if self.layer is None else f"{_LAYER}{self.layer}{_CLASS * self.class_token}"


class Extracted(NamedTuple):
    """The rows that a model gave for a batch of images."""

    rows: Float[Tensor, "n *patches d"]
    grid: Grid | None  # rows and columns of the patches; None for one row an image
    pooling: str | None  # "class token" or "mean of patches"; None for vectors and for `patches`


def parse_output(output: str | None, patches: bool) -> EncoderOutput | None:
    """Parse an output as a user writes it; None stays None, or with `patches` means the last feature map's patches."""
    if output is None:
        return EncoderOutput("patches", patches=True) if patches else None
    if output.startswith(_LAYER) and len(output) > len(_LAYER):
        layer = output.removeprefix(_LAYER)
        class_token = layer.endswith(_CLASS)
        if patches and class_token:
            raise InputError("output", f"{output!r} with patches", "'layer:NAME', for all of its patches")
        return EncoderOutput("layer", layer.removesuffix(_CLASS), class_token, patches)
    if patches:
        raise InputError("output", f"{output!r} with patches", "'layer:NAME', or None for the last feature map")
    if output not in _KINDS:
        raise InputError("output", repr(output), _EXPECTED)
    return EncoderOutput(_KINDS[output])


def check_layer(model: ImageModel, output: EncoderOutput) -> None:
    """Refuse a layer that the model does not have; the error lists similar names."""
    names = [name for name, _ in model.named_modules() if name]
    if output.layer is None or output.layer in names:
        return
    children = [name for name, _ in model.named_children()]
    near = difflib.get_close_matches(output.layer, names, n=6, cutoff=0.5) or children
    raise InputError("output", f"{output.name!r}, no layer of this model", "a layer such as " + ", ".join(near))


def extract_rows(model: ImageModel, images: Float[Tensor, "n 3 h w"], output: EncoderOutput) -> Extracted:
    """Run a model up to the layer of an output, and turn that output into rows.

    - Tokens `(n, tokens, d)`: the mean of the patch tokens, without the prefix tokens (class token, registers); or the
      class token.
    - Feature maps `(n, c, h, w)` or `(n, h, w, c)`: the mean over positions.
    - Vectors `(n, d)`: as they are.
    - With `output.patches`: every patch token or position, from left to right and top to bottom of the image.

    Raises:
        InputError: the model has no such output, or one of another shape.
    """
    if output.kind in {"embedding", "pooled"}:
        rows = model(images) if output.kind == "embedding" else _pooled(model, images)
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            raise _wrong_shape(output, rows, "one vector an image")
        return Extracted(rows, None, None)
    values = model.forward_features(images) if output.layer is None else _layer_values(model, images, output)
    if output.kind == "class_token" or output.class_token:
        return Extracted(_class_token(model, values, images, output), None, "class token")
    if isinstance(values, Tensor) and values.ndim == 2 and not output.patches:
        return Extracted(values, None, None)
    patches, grid = _patches(model, values, images, output)
    if output.patches:
        return Extracted(patches, grid, None)
    return Extracted(patches.float().mean(dim=1), None, "mean of patches")


class _ReachedError(Exception):
    """Ends a forward pass at a layer, with the layer's output as `values`; later layers are not computed."""

    def __init__(self, values: object) -> None:
        self.values = values


def _layer_values(model: ImageModel, images: Tensor, output: EncoderOutput) -> object:
    """Run the model and return, unchecked, what the first call of the layer `output.layer` returned."""

    def stop(_layer: nn.Module, _arguments: object, values: object) -> None:
        raise _ReachedError(values)

    handle = model.get_submodule(output.layer or "").register_forward_hook(stop)
    try:
        model(images)
    except _ReachedError as reached:
        return reached.values
    finally:
        handle.remove()
    raise InputError("output", f"{output.name!r}, a layer that is never called", "a layer of the forward pass")


def _pooled(model: ImageModel, images: Tensor) -> object:
    """Return the input of the model's head."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def _class_token(model: ImageModel, values: Any, images: Tensor, output: EncoderOutput) -> Tensor:
    """Return the class token `(n, d)` of tokens `(n, tokens, d)`; `InputError` if `values` has none before patches."""
    if getattr(model, "cls_token", None) is None:
        raise InputError("output", f"{output.name!r} of a model without a class token", "'pooled', or another model")
    is_tokens = isinstance(values, Tensor) and values.ndim == 3 and values.shape[0] == images.shape[0]
    grid = _token_grid(model, values, images) if is_tokens else None
    if grid is None or values.shape[1] == math.prod(grid):
        raise _wrong_shape(output, values, "a class token before patch tokens")
    token: Tensor = values[:, 0]
    return token


def _patches(
    model: ImageModel, values: object, images: Tensor, output: EncoderOutput
) -> tuple[Float[Tensor, "n patches d"], Grid]:
    """Return patch tokens or positions, `(n, patches, d)` without prefix tokens, and their grid."""
    n = images.shape[0]
    if isinstance(values, Tensor) and values.ndim == 3 and values.shape[0] == n:
        grid = _token_grid(model, values, images)
        if grid is not None:
            return values[:, values.shape[1] - math.prod(grid) :], grid
    if isinstance(values, Tensor) and values.ndim == 4 and values.shape[0] == n:
        nhwc, nchw = _fits(values.shape[1:3], images), _fits(values.shape[2:4], images)
        if nhwc and (not nchw or str(getattr(model, "output_fmt", "")).endswith("NHWC")):
            return values.flatten(1, 2), (values.shape[1], values.shape[2])
        if nchw:
            return values.flatten(2).transpose(1, 2), (values.shape[2], values.shape[3])
    raise _wrong_shape(output, values, "a vector, patch tokens or a feature map of each image")


def _token_grid(model: ImageModel, values: Tensor, images: Tensor) -> Grid | None:
    """Return rows and columns of the patches in `(n, tokens, d)`, with or without prefix tokens; None if none fit."""
    tokens, n_prefix = values.shape[1], getattr(model, "num_prefix_tokens", None)
    if n_prefix is None:
        n_prefix = int(getattr(model, "cls_token", None) is not None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for n_patches in (tokens - n_prefix, tokens):
        if grid is not None and n_patches == math.prod(grid):
            return int(grid[0]), int(grid[1])
    for n_patches in (tokens - n_prefix, tokens):
        rows = max(round(math.sqrt(max(n_patches, 0) * images.shape[2] / images.shape[3])), 1)
        if n_patches > 0 and n_patches % rows == 0 and _fits((rows, n_patches // rows), images):
            return rows, n_patches // rows
    return None


def _fits(grid: tuple[int, ...] | torch.Size, images: Tensor) -> bool:
    """Return whether a grid of positions has the aspect ratio of the images, up to rounding."""
    rows, columns = grid
    height, width = images.shape[2:]
    step = max(height / rows, width / columns) if rows and columns else math.inf
    return abs(rows - height / step) < 1 and abs(columns - width / step) < 1


def _wrong_shape(output: EncoderOutput, values: object, expected: str) -> InputError:
    got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
    return InputError("output", f"{output.name!r}, which gives {got}", expected)
