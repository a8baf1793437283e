"""Image encoders: models of timm with their preprocessing that give an embedding of each image or of each patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from monoloss.checks import check_choice, check_number, check_type
from monoloss.data.encoders.outputs import (
    EncoderOutput,
    Extracted,
    Grid,
    ImageModel,
    check_layer,
    extract_rows,
    parse_output,
)
from monoloss.errors import InputError, first_line, needs_extra

if TYPE_CHECKING:
    from PIL.Image import Image

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CROPS = ("center", "squash", "border")


class Preset(NamedTuple):
    """The encoder that a short name stands for."""

    model: str  # the name in timm, with the tag of the weights
    output: str  # the default output: see `load_encoder`
    width: int  # number of entries of an embedding from that output
    image_size: int | None = None  # height and width of the input in pixels; None for the model's own


PRESETS: Mapping[str, Preset] = {
    "clip-vit-l14": Preset("vit_large_patch14_clip_224.datacompxl", "embedding", 768),
    "siglip2-so400m": Preset("vit_so400m_patch14_siglip_378.v2_webli", "pooled", 1152),
    "vit-l16": Preset("vit_large_patch16_224.augreg_in21k_ft_in1k", "pooled", 1024),
    "dinov2-l": Preset("vit_large_patch14_dinov2.lvd142m", "pooled", 1024, image_size=224),
    "resnet-50": Preset("resnet50.tv2_in1k", "pooled", 2048),
    "clip-vit-b32": Preset("vit_base_patch32_clip_quickgelu_224.openai", "embedding", 512),
}


class ImageEncoder:
    """A frozen image model that gives one row for each image or for each patch; made by `load_encoder`.

    Attributes:
        name: the architecture, as timm calls it.
        width: number of entries of a row.
        patch_grid: rows and columns of the patches if each patch has a row; else None.
        input_size: `(3, h, w)` of an image after `transform`.
        metadata: `name`, `weights` and `preprocessing`, in plain values, as a feature store records them.
        transform: turns a PIL image in RGB into the model's input, float32 `(3, h, w)`. It can be pickled.
        model: the timm model, in eval mode, without gradients.
        device: the device of the model.
    """

    def __init__(
        self,
        model: ImageModel,
        output: EncoderOutput,
        transform: Callable[[Image], Tensor],
        metadata: dict[str, Any],
        *,
        width: int,
        patch_grid: Grid | None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.output = output
        self.transform = transform
        self.metadata = metadata
        self.name: str = metadata["name"]
        self.width = width
        self.patch_grid = patch_grid
        self.input_size: tuple[int, int, int] = tuple(metadata["preprocessing"]["input_size"])
        self.dtype = _DTYPES[metadata["preprocessing"]["dtype"]]
        self.device = next(iter(model.parameters())).device

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float32[Tensor, "n *patches d"]:
        """Return the rows of a batch of images, each prepared by `transform`.

        Args:
            images: `(n, 3, h, w)`, on any device.

        Returns:
            float32 `(n, width)`, or `(n, patches, width)` with the patches from left to right and top to bottom; on the
            model's device, without a gradient.

        Raises:
            InputError: the images have another shape or are integers.
        """
        expected = f"floating-point numbers, (n, {', '.join(map(str, self.input_size))}), as `transform` gives them"
        check_type("images", images, Tensor, expected)
        if images.ndim != 4 or images.shape[1:] != self.input_size or not images.is_floating_point():
            raise InputError("images", f"shape {tuple(images.shape)}, dtype {images.dtype}", expected)
        if not len(images):
            patches = () if self.patch_grid is None else (self.patch_grid[0] * self.patch_grid[1],)
            return torch.zeros(0, *patches, self.width, device=self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            rows = extract_rows(self.model, images.to(self.device, torch.float32, non_blocking=True), self.output).rows
        return rows.float()


def load_encoder(  # noqa: PLR0913 - each changes the embeddings, and a command has an option for each
    name: str,
    *,
    output: str | None = None,
    checkpoint: str | None = None,
    pretrained: bool = True,
    image_size: int | None = None,
    crop: Literal["center", "squash", "border"] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    patches: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> ImageEncoder:
    """Load an image model of timm with its own preprocessing.

    The name and the output are checked before weights are downloaded; for most models the image size is, too.

    Args:
        name: a preset (a key of `PRESETS`); a name in timm such as `resnet18.a1_in1k`; `hf-hub:USER/NAME`; or a local
            folder with `config.json` and `model.safetensors` (or `pytorch_model.bin`), as timm's `save_for_hf` and
            `push_to_hf_hub` write it.
        output: the output of the model that becomes the embedding.
            `embedding`: the output of the whole model; only for a model whose head is a projection (CLIP).
            `pooled`: the input of the head: after attention pooling for SigLIP, the class token for most ViTs, the
            spatial mean for ResNets.
            `class_token`: the first token after the last block and norm.
            `layer:NAME`: the output of a layer, by its name in the model, such as `layer:blocks.3`. Tokens are averaged
            over the patches (without class token and registers), feature maps over positions; vectors stay as they are.
            `layer:NAME:class`: the class token of that layer.
            None: the output of the preset; without a preset `embedding` if the head is a projection, else `pooled`.
        checkpoint: a local weights file, instead of the model's own weights: .safetensors, or a file of `torch.save`
            (.pt, .pth, .bin; read with `weights_only=True`; if it also holds an EMA of the weights, the EMA is taken).
            It must fit exactly; only a head that the output does not use may be of another size or missing.
        pretrained: False for random weights; the metadata says so.
        image_size: height and width of the input, in pixels; None for the size the model is tested at.
        crop: None for the model's own way. `center`: resize the shorter side, cut out the middle. `squash`: resize the
            whole image to the square. `border`: fit the whole image into the square, with borders beside it.
        dtype: type of products; half types run under autocast. Weights and rows are float32.
        patches: give a row for each patch, of the last feature map or of a `layer:NAME`.
        device: the device that the model runs on.
        seed: of random weights.

    Returns:
        The encoder, in eval mode, without gradients.

    Raises:
        InputError: an unknown name, layer or output, or an argument out of its range; weights that are missing or do
            not fit. For missing weights the error says where they were looked for and how to give a local path.
        MissingExtraError: timm is not installed.

    Example:
        >>> encoder = load_encoder("resnet10t", pretrained=False, image_size=64)
        >>> encoder(torch.zeros(2, 3, 64, 64)).shape, encoder.metadata["weights"]
        (torch.Size([2, 512]), {'random': 0})
    """
    check_choice("dtype", dtype, tuple(_DTYPES))
    check_choice("crop", crop, (None, *_CROPS))
    check_number("seed", seed, at_least=0, integer=True)
    if image_size is not None:
        check_number("image_size", image_size, at_least=1, integer=True)
    device, chosen = _device(device), parse_output(output, patches)
    preset = PRESETS.get(name)
    if preset is not None:
        name, image_size = preset.model, image_size or preset.image_size
        chosen = chosen or parse_output(preset.output, patches)
    with needs_extra("vision"):
        from monoloss.data.encoders import weights

    request = weights.request_model(
        name, checkpoint=checkpoint, pretrained=pretrained, image_size=image_size, seed=seed, presets=PRESETS
    )
    empty = weights.build_empty(request)
    has_projection = weights.has_projection(empty)
    chosen = chosen or EncoderOutput("embedding" if has_projection else "pooled")
    if chosen.kind == "embedding" and not has_projection:
        got = "'embedding' of a model whose head is no projection"
        raise InputError("output", got, "'pooled' (or 'layer:NAME' with the name of the head, for its output)")
    check_layer(empty, chosen)
    config = data_config(empty, image_size, crop)
    trial: Extracted | None = None
    with suppress(RuntimeError):  # not every model runs on the meta device
        trial = _try(empty, chosen, config["input_size"])
    model, record = weights.build_model(request, empty, head_used=_uses_head(chosen, empty))
    if trial is None:
        try:
            trial = _try(model, chosen, config["input_size"])
        except RuntimeError as error:
            raise _wrong_size(config["input_size"], error) from error
    options = {"output": chosen.name, "pooling": trial.pooling, "patches": patches, "dtype": dtype}
    preprocessing = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()} | options
    metadata = {"name": empty.pretrained_cfg["architecture"], "weights": record, "preprocessing": preprocessing}
    return ImageEncoder(
        model.to(device), chosen, _transform(config), metadata, width=int(trial.rows.shape[-1]), patch_grid=trial.grid
    )


def _device(device: str | torch.device) -> torch.device:
    """Return the device, after a check that tensors can be made on it."""
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        raise InputError("device", repr(str(device)), "a device of this machine, such as 'cpu' or 'cuda'") from error
    return torch_device


def data_config(model: ImageModel, image_size: int | None, crop: str | None) -> dict[str, Any]:
    """Return the model's preprocessing at test time with the user's changes: arguments of timm's `create_transform`."""
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(  # type: ignore[no-untyped-call]
        model, {"img_size": image_size}, use_test_size=True
    )
    if crop is not None:
        config["crop_mode"] = crop
        config["crop_pct"] = config["crop_pct"] if crop == "center" else 1.0  # the whole image
    if config["input_size"][0] != 3:
        raise InputError("encoder", f"a model for {config['input_size'][0]} channels", "one for RGB images")
    return config


def _transform(config: Mapping[str, Any]) -> Callable[[Image], Tensor]:
    """Build the transform from a PIL image to the model's input from the preprocessing of `data_config`."""
    from timm.data.transforms_factory import create_transform

    transform: Callable[[Image], Tensor] = create_transform(**config, is_training=False)
    return transform


def _uses_head(output: EncoderOutput, model: ImageModel) -> bool:
    """Return whether the output depends on the model's head, a classifier or projection."""
    heads = model.pretrained_cfg.get("classifier") or ()
    names = (heads,) if isinstance(heads, str) else heads
    layer = None if output.layer is None else output.layer + "."
    return output.kind == "embedding" or any(layer is not None and (head + ".").startswith(layer) for head in names)


@torch.no_grad()
def _try(model: ImageModel, output: EncoderOutput, input_size: tuple[int, int, int]) -> Extracted:
    """Run the model on one black image, for the shape and grid of its rows; `InputError` for a size that it refuses."""
    device = next(iter(model.parameters())).device
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and min(input_size[1:]) < max(patch):  # torch 2.6 would give no patch, without an error
        raise _wrong_size(input_size, ValueError(f"smaller than a patch of {max(patch)}"))
    try:
        return extract_rows(model, torch.zeros(1, *input_size, device=device), output)
    except AssertionError as error:
        raise _wrong_size(input_size, error) from error


def _wrong_size(input_size: tuple[int, int, int], error: Exception) -> InputError:
    return InputError("image_size", f"{input_size[1]} ({first_line(error)})", "a size that the model takes")
