"""Low-rank updates (LoRA) of the query and value projections of attention, through peft.

timm fuses query, key and value into one linear layer, of which peft cannot take a part: it is replaced by three layers
with its slices, which leaves the function as it is, and fused again when the updates are merged.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.data.encoders.outputs import ImageModel
from monoloss.errors import InputError, needs_extra

_ADAPTER = "default"
_SEPARATE = ("q_proj", "v_proj")  # where timm itself keeps them apart


class LoraOptions(TypedDict, total=False):
    """Options of :func:`add_lora`."""

    rank: int
    alpha: float
    dropout: float


class SplitQkv(nn.Module):
    """Query, key and value as three linear layers, which together give what one fused layer gave.

    Within rounding: smaller products may sum in another order.

    Args:
        fused: a linear layer whose outputs are all queries, then all keys, then all values.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.query, self.key, self.value = (_slice(fused, part) for part in range(3))

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows out"]:
        """Queries, keys and values side by side."""
        return torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)

    def fused(self) -> nn.Linear:
        """One linear layer again, with the low-rank updates in its weights."""
        return _stacked([_merged(self.query), _merged(self.key), _merged(self.value)])


def add_lora(backbone: ImageModel, *, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0, seed: int = 0) -> None:
    """Put low-rank updates on the query and value projections of every attention; all else of the model is frozen.

    The updates start at zero, so the function is unchanged. Changes the model in place.

    Args:
        backbone: a model of timm with attention of timm's plain kinds.
        rank: of each update.
        alpha: each update is times ``alpha / rank``.
        dropout: of the input of each update, in training.
        seed: of the updates' first factor.

    Raises:
        InputError: a model without attention, or with one that is written otherwise.
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
    wanted = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # any number: it is divided by the rank
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(wanted, backbone, _ADAPTER)


def merge_lora(backbone: ImageModel) -> None:
    """Add the updates to the weights and put timm's own layers back, in place; without LoRA nothing happens.

    Outputs stay the same within rounding, and the names of the weights are those of a model that never had LoRA.
    """
    found: list[str] = []
    for name, module in backbone.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if not inside and (isinstance(module, SplitQkv) or hasattr(module, "get_delta_weight")):
            found.append(name)
    for name in found:
        layer = backbone.get_submodule(name)
        parent, _, own = name.rpartition(".")
        plain = layer.fused() if isinstance(layer, SplitQkv) else _merged(layer)
        setattr(backbone.get_submodule(parent), own, plain)


def _attentions(backbone: ImageModel) -> list[tuple[str, ImageModel]]:
    """The attention modules by name, whose queries, keys and values lie in the order that is needed here."""
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.eva import EvaAttention
    from timm.models.swin_transformer import WindowAttention

    known = (Attention, AttentionRope, EvaAttention, WindowAttention)
    found: list[tuple[str, ImageModel]] = []
    for name, module in backbone.named_modules():
        adds_biases = getattr(module, "q_bias", None) is not None  # or multiplies with the weight of qkv by itself
        if type(module) in known and not adds_biases:
            found.append((name, module))
        elif hasattr(module, "qkv") or hasattr(module, "q_proj"):
            expected = "a backbone with timm's Attention (ViT, DeiT, CLIP, SigLIP, DINO, Swin), or lora: null"
            raise InputError("model.lora", f"attention of the kind {type(module).__name__} at {name}", expected)
    if not found:
        expected = "null, which trains all weights, or a backbone with attention"
        raise InputError("model.lora", f"low-rank updates for {type(backbone).__name__}, without attention", expected)
    return found


def _slice(fused: nn.Linear, part: int) -> nn.Linear:
    bias: Tensor | None = fused.bias  # which torch's annotation does not say
    return _linear(fused.weight.chunk(3)[part], None if bias is None else bias.chunk(3)[part])


def _stacked(parts: list[nn.Linear]) -> nn.Linear:
    weights: list[Tensor] = [part.weight for part in parts]
    biases: list[Tensor | None] = [part.bias for part in parts]
    there = [bias for bias in biases if bias is not None]
    return _linear(torch.cat(weights), torch.cat(there) if there else None)


def _merged(layer: nn.Module) -> nn.Linear:
    """A linear layer, with the low-rank update that peft has put around it in its weights."""
    if isinstance(layer, nn.Linear) and not hasattr(layer, "get_delta_weight"):
        return layer
    base: nn.Linear = layer.get_base_layer()  # type: ignore[operator]
    update: Tensor = layer.get_delta_weight(_ADAPTER)  # type: ignore[operator]
    return _linear(base.weight + update.to(base.weight), base.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer of these values, without drawing others first; trainable."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
