"""Which axes of a layer's output a regularizer averages, for the layouts that vision models have; else it asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monoloss import ActivationRegularizer
from monoloss.errors import InputError

N = 5


class Reshaped(nn.Module):
    """Applies a function between layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def rows_of(model: nn.Module, layer: str, inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The rows that the regularizer makes, and the raw output of the layer."""
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _layer, _args, output: outputs.append(output))
    with ActivationRegularizer(model, layer, **options) as regularizer:
        model(inputs)
        rows = regularizer.activations()
    handle.remove()
    return rows, outputs[0]


def sequential(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def images(size: int = 32) -> Tensor:
    return torch.randn(N, 3, size, size, generator=torch.Generator().manual_seed(0))


def swin() -> nn.Module:
    timm = pytest.importorskip("timm")
    model: nn.Module = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=3
    )
    return model


def vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    model: nn.Module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )
    return model


def convnext() -> nn.Module:
    timm = pytest.importorskip("timm")
    model: nn.Module = timm.models.convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(12, 24, 24, 24), num_classes=3)
    return model


def torchvision_convnext() -> nn.Module:
    models = pytest.importorskip("torchvision.models.convnext")
    settings = [models.CNBlockConfig(12, 24, 1), models.CNBlockConfig(24, None, 1)]
    model: nn.Module = models.ConvNeXt(settings, num_classes=3)
    return model


MAPS_FIRST, MAPS_LAST = (2, 3), (1, 2)
# model, layer, its inputs, and the axes of the positions
LAYOUTS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[], Tensor], tuple[int, ...]]] = {
    "Linear on tokens": (lambda: sequential(nn.Linear(6, 7)), "0", lambda: torch.randn(N, 9, 6), (1,)),
    "Linear on as many tokens": (lambda: sequential(nn.Linear(6, 7)), "0", lambda: torch.randn(N, 7, 6), (1,)),
    "Linear on maps": (lambda: sequential(nn.Linear(6, 7)), "0", lambda: torch.randn(N, 4, 3, 6), MAPS_LAST),
    "Conv1d": (lambda: sequential(nn.Conv1d(6, 7, 1)), "0", lambda: torch.randn(N, 6, 9), (2,)),
    "ReLU behind Conv1d": (lambda: sequential(nn.Conv1d(6, 7, 1), nn.ReLU()), "1", lambda: torch.randn(N, 6, 9), (2,)),
    "Conv2d": (lambda: sequential(nn.Conv2d(3, 8, 1)), "0", images, MAPS_FIRST),
    "Conv2d as wide as high": (lambda: sequential(nn.Conv2d(3, 32, 1)), "0", images, MAPS_FIRST),
    "ReLU between Conv2d, as wide as the next has channels": (
        lambda: sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1)),
        "1",
        images,
        MAPS_FIRST,
    ),
    "a stage": (
        lambda: sequential(sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())),
        "0",
        images,
        MAPS_FIRST,
    ),
    "Swin's stage": (swin, "layers.1", images, MAPS_LAST),
    "Swin's GELU": (swin, "layers.0.blocks.0.mlp.act", images, (1,)),
    "ViT's block": (vit, "blocks.1", images, (1,)),
    "ViT's GELU": (vit, "blocks.0.mlp.act", images, (1,)),
    "ConvNeXt's stage": (convnext, "stages.1", lambda: images(64), MAPS_FIRST),
    "ConvNeXt's norm": (convnext, "stem.1", lambda: images(64), MAPS_FIRST),
    "ConvNeXt's GELU": (convnext, "stages.0.blocks.0.mlp.act", lambda: images(64), MAPS_LAST),
    "torchvision's ConvNeXt": (torchvision_convnext, "features.1", lambda: images(64), MAPS_FIRST),
    "its GELU": (torchvision_convnext, "features.1.0.block.4", lambda: images(64), MAPS_LAST),
    "tokens first": (
        lambda: nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0),
        "linear1",
        lambda: torch.randn(9, N, 12),
        (0,),
    ),
    "an encoder of tokens first": (
        lambda: sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16), 1, enable_nested_tensor=False)),
        "0",
        lambda: torch.randn(N, N, 12),
        (0,),
    ),
    "images first": (
        lambda: sequential(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)),
        "0",
        lambda: torch.randn(N, 9, 12),
        (1,),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_are_averaged(layout: str) -> None:
    model, layer, inputs, positions = LAYOUTS[layout]
    rows, output = rows_of(model(), layer, inputs())
    assert rows.shape[0] == N
    torch.testing.assert_close(rows, output.mean(positions))


def both_fit() -> nn.Module:
    return sequential(nn.Conv2d(3, 8, 1), Reshaped(lambda x: x[..., :8]))


def none_fits() -> nn.Module:
    return sequential(nn.Sequential(nn.Conv2d(3, 3, 1), Reshaped(lambda x: x.flatten(2).repeat(1, 3, 1))))


@pytest.mark.door
@pytest.mark.parametrize(
    ("model", "layer", "shape", "counts"),
    [(both_fit, "1", (N, 8, 32, 8), (8, 8)), (none_fits, "0", (N, 9, 1024), (9, 1024))],
)
def test_where_nothing_tells_it_asks(model, layer, shape, counts):
    expected = (
        f"the output of {layer!r}: got shape {shape}, of which nothing says where the channels are; expected "
        f"channels='first' ({counts[0]} channels) or channels='last' ({counts[1]}), or a function as pool"
    )
    with pytest.raises(InputError) as refused:
        rows_of(model(), layer, images())
    assert str(refused.value) == expected
    for channels, positions in (("first", (2, 3)), ("last", (1, 2))):
        rows, output = rows_of(model(), layer, images(), channels=channels)
        torch.testing.assert_close(rows, output.mean(positions[: output.ndim - 2]))


@pytest.mark.door
def test_attention_of_unknown_order_asks():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 2)
            self.out = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.attention(x, x, x)[0])

    model = sequential(Block())
    with pytest.raises(
        InputError, match=r"the output of '0.out': got shape .* of a transformer with batch_first=False"
    ):
        rows_of(model, "0.out", torch.randn(9, N, 12))
    rows, output = rows_of(model, "0.out", torch.randn(9, N, 12), pool=lambda tokens: tokens.mean(0))
    torch.testing.assert_close(rows, output.mean(0))


@pytest.mark.door
def test_channels_is_checked():
    with pytest.raises(InputError, match="channels: got 'middle'; expected one of 'first', 'last'"):
        ActivationRegularizer(both_fit(), "0", channels="middle")


def test_the_guess_from_the_number_of_axes_is_seen():
    """The wrong variant: (n, t, c) and (n, c, h, w) always."""
    rows, output = rows_of(swin(), "layers.1", images())
    assert rows.shape != output.mean((2, 3)).shape
