"""Low-rank updates (LoRA) of the query and value projections of attention, through peft.

timm fuses query, key and value into one linear layer, and peft cannot update a part of a layer: the layer is split into
three, which compute the same, and fused again when the updates are merged.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.data.encoders.outputs import ImageModel
from monoloss.errors import InputError, needs_extra

_ADAPTER = "default"
_SEPARATE = ("q_proj", "v_proj")  # in models whose projections timm does not fuse


class LoraOptions(TypedDict, total=False):
    """Options of :func:`add_lora`."""

    rank: int
    alpha: float
    dropout: float


class SplitQkv(nn.Module):
    """Query, key and value as three linear layers, with the same outputs as the fused layer up to rounding.

    (Smaller products may sum in another order.)

    Args:
        fused: linear layer with the outputs of query, key and value in this order, equally many.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.query, self.key, self.value = (_slice(fused, part) for part in range(3))

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows out"]:
        """Return queries, keys and values, concatenated along the last axis."""
        return torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)

    def fused(self) -> nn.Linear:
        """Return one linear layer, with the low-rank updates merged into its weights."""
        return _stacked([_merged(self.query), _merged(self.key), _merged(self.value)])


def add_lora(backbone: ImageModel, *, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0, seed: int = 0) -> None:
    """Add low-rank updates to the query and value projections of every attention, and freeze all other weights.

    Changes the model in place. The updates start at zero, so its outputs stay the same up to rounding.

    Args:
        backbone: a model of timm with attention of the kinds that ViT, DeiT, CLIP, SigLIP, DINO and Swin have.
        rank: rank of each update.
        alpha: each update is multiplied by ``alpha / rank``.
        dropout: share of the inputs of each update that is set to 0 in training.
        seed: seed of the updates' first factor; the second is zero.

    Raises:
        InputError: a model without attention, or with attention of another kind.
        MissingExtraError: peft is not installed.
    """
    with needs_extra("finetune"):
        from peft import LoraConfig, inject_adapter_in_model

    targets = []
    for name, module in _attentions(backbone):
        if isinstance(module.qkv, nn.Linear):
            module.qkv = SplitQkv(module.qkv)
            targets += [f"{name}.qkv.query", f"{name}.qkv.value"]
        else:
            targets += [f"{name}.{part}" for part in _SEPARATE]
    options = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # any number: it is divided by the rank
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(options, backbone, _ADAPTER)


def merge_lora(backbone: ImageModel) -> None:
    """Add the low-rank updates to the weights and restore timm's layers, in place; without LoRA nothing changes.

    Outputs stay the same up to rounding; the weights get the names that they have in a model without LoRA.
    """
    names: list[str] = []
    for name, module in backbone.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if not inside and (isinstance(module, SplitQkv) or hasattr(module, "get_delta_weight")):
            names.append(name)
    for name in names:
        layer = backbone.get_submodule(name)
        parent, _, attribute = name.rpartition(".")
        plain = layer.fused() if isinstance(layer, SplitQkv) else _merged(layer)
        setattr(backbone.get_submodule(parent), attribute, plain)


def _attentions(backbone: ImageModel) -> list[tuple[str, ImageModel]]:
    """Return name and module of every attention; refuse kinds that :class:`SplitQkv` would change."""
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.eva import EvaAttention
    from timm.models.swin_transformer import WindowAttention

    kinds = (Attention, AttentionRope, EvaAttention, WindowAttention)
    attentions: list[tuple[str, ImageModel]] = []
    for name, module in backbone.named_modules():
        adds_biases = getattr(module, "q_bias", None) is not None  # computes qkv without its layer
        if type(module) in kinds and not adds_biases:
            attentions.append((name, module))
        elif hasattr(module, "qkv") or hasattr(module, "q_proj"):
            expected = "a backbone with timm's Attention (ViT, DeiT, CLIP, SigLIP, DINO, Swin), or lora: null"
            raise InputError("model.lora", f"attention of the kind {type(module).__name__} at {name}", expected)
    if not attentions:
        expected = "null, which trains all weights, or a backbone with attention"
        raise InputError("model.lora", f"low-rank updates for {type(backbone).__name__}, without attention", expected)
    return attentions


def _slice(fused: nn.Linear, part: int) -> nn.Linear:
    """Return the part 0, 1 or 2 of a fused layer's outputs as a layer."""
    bias: Tensor | None = fused.bias  # torch's annotation forgets the None
    return _linear(fused.weight.chunk(3)[part], None if bias is None else bias.chunk(3)[part])


def _stacked(parts: list[nn.Linear]) -> nn.Linear:
    """Return one layer with the outputs of the layers, one after the other."""
    biases: list[Tensor | None] = [part.bias for part in parts]  # torch's annotation forgets the None
    given = [bias for bias in biases if bias is not None]
    return _linear(torch.cat([part.weight for part in parts]), torch.cat(given) if given else None)


def _merged(layer: nn.Module) -> nn.Linear:
    """Return a plain linear layer whose weights include the low-rank update that peft has added to `layer`, if any."""
    if isinstance(layer, nn.Linear) and not hasattr(layer, "get_delta_weight"):
        return layer
    base: nn.Linear = layer.get_base_layer()  # type: ignore[operator]
    update: Tensor = layer.get_delta_weight(_ADAPTER)  # type: ignore[operator]
    return _linear(base.weight + update.to(base.weight), base.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a trainable layer with these weights, without drawing random ones first."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
