"""Which output of an image model is taken, and how it becomes one row an image or one row a patch."""

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
ImageModel: TypeAlias = Any  # a model of timm: which attributes it has depends on its family

_LAYER = "layer:"
_CLASS = ":class"
_KINDS: dict[str, Kind] = {"embedding": "embedding", "pooled": "pooled", "class_token": "class_token"}
_EXPECTED = "'embedding', 'pooled', 'class_token', 'layer:NAME' or 'layer:NAME:class'"


class EncoderOutput(NamedTuple):
    """What is taken from a model."""

    # `embedding`, the model's own output; `pooled`, what its head is given; `class_token`; `layer`; or `patches`, the
    # patch tokens or positions of its last feature map
    kind: Kind
    layer: str | None = None  # the name of the layer, for `kind="layer"`
    class_token: bool = False  # of a layer that gives tokens: the class token, not the mean of the patch tokens
    patches: bool = False  # a row for each patch instead of one for each image

    @property
    def name(self) -> str:
        """As a user writes it."""
        return self.kind if self.layer is None else f"{_LAYER}{self.layer}{_CLASS * self.class_token}"


class Extracted(NamedTuple):
    """The rows of a batch: `(n, d)` or `(n, patches, d)`; the grid of the patches; how positions were pooled."""

    rows: Float[Tensor, "n *patches d"]
    grid: Grid | None
    pooling: str | None


def parse_output(output: str | None, patches: bool) -> EncoderOutput | None:
    """What a user wrote; None where it is left to the model."""
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
    """Refuse a layer that the model does not have; the error lists names that are near."""
    names = [name for name, _ in model.named_modules() if name]
    if output.layer is None or output.layer in names:
        return
    near = difflib.get_close_matches(output.layer, names, n=6, cutoff=0.5) or [
        name for name, _ in model.named_children()
    ]
    raise InputError("output", f"{output.name!r}, no layer of this model", "a layer such as " + ", ".join(near))


def extract_rows(model: ImageModel, images: Float[Tensor, "n 3 h w"], output: EncoderOutput) -> Extracted:
    """Run a model as far as its output needs.

    - Tokens `(n, tokens, d)`: the mean of the patch tokens, without the prefix tokens (class token, registers); or the
      class token.
    - Feature maps `(n, c, h, w)` or `(n, h, w, c)`: the mean over positions.
    - Vectors `(n, d)`: as they are.
    - With `output.patches`: every patch token or position, row after row of the image.

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
    """Ends a forward pass at the layer that is wanted: what comes after it is not computed."""

    def __init__(self, values: object) -> None:
        self.values = values


def _layer_values(model: ImageModel, images: Tensor, output: EncoderOutput) -> object:
    """What a layer gives, the first time that it is called."""

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
    return model.forward_head(model.forward_features(images), pre_logits=True)


def _class_token(model: ImageModel, values: Any, images: Tensor, output: EncoderOutput) -> Tensor:
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
    """Tokens or positions without the prefix tokens, `(n, patches, d)`, and their grid."""
    n = images.shape[0]
    if isinstance(values, Tensor) and values.ndim == 3 and values.shape[0] == n:
        grid = _token_grid(model, values, images)
        if grid is not None:
            return values[:, values.shape[1] - math.prod(grid) :], grid
    if isinstance(values, Tensor) and values.ndim == 4 and values.shape[0] == n:
        last, first = _fits(values.shape[1:3], images), _fits(values.shape[2:4], images)
        if last and (not first or str(getattr(model, "output_fmt", "")).endswith("NHWC")):
            return values.flatten(1, 2), (values.shape[1], values.shape[2])
        if first:
            return values.flatten(2).transpose(1, 2), (values.shape[2], values.shape[3])
    raise _wrong_shape(output, values, "a vector, patch tokens or a feature map of each image")


def _token_grid(model: ImageModel, values: Tensor, images: Tensor) -> Grid | None:
    """Rows and columns of the patches in tokens; prefix tokens come before them, or are not there yet."""
    tokens, n_prefix = values.shape[1], getattr(model, "num_prefix_tokens", None)
    if n_prefix is None:
        n_prefix = int(getattr(model, "cls_token", None) is not None)
    own = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for n_patches in (tokens - n_prefix, tokens):
        if own is not None and n_patches == math.prod(own):
            return int(own[0]), int(own[1])
    for n_patches in (tokens - n_prefix, tokens):
        rows = max(round(math.sqrt(max(n_patches, 0) * images.shape[2] / images.shape[3])), 1)
        if n_patches > 0 and n_patches % rows == 0 and _fits((rows, n_patches // rows), images):
            return rows, n_patches // rows
    return None


def _fits(grid: tuple[int, ...] | torch.Size, images: Tensor) -> bool:
    """Whether positions have the aspect of the images, up to rounding."""
    rows, columns = grid
    height, width = images.shape[2:]
    step = max(height / rows, width / columns) if rows and columns else math.inf
    return abs(rows - height / step) < 1 and abs(columns - width / step) < 1


def _wrong_shape(output: EncoderOutput, values: object, expected: str) -> InputError:
    got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
    return InputError("output", f"{output.name!r}, which gives {got}", expected)
