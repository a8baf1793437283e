"""Tiny image models of the families that the presets come from, with random weights, and folders that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_for_hf

_SMALL_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# family -> (architecture in timm, what makes it small)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("vit_base_patch32_clip_quickgelu_224", {"img_size": 64, "num_classes": 512, **_SMALL_VIT}),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": 32, **_SMALL_VIT}),
    "vit": ("vit_base_patch16_224", {"img_size": 32, "num_classes": 7, **_SMALL_VIT}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 28, **_SMALL_VIT}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28, **_SMALL_VIT}),
    "resnet": ("resnet50", {"layers": [1, 1, 1, 1], "num_classes": 7}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]},
    ),
}


def tiny_model(family: str, seed: int = 0) -> Any:
    """A small model of the family, in eval mode; nothing in it is zero, so that every part shows in the output."""
    architecture, sizes = FAMILIES[family]
    torch.manual_seed(seed)
    model = timm.create_model(architecture, **sizes).eval()
    with torch.no_grad():
        for value in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            value.add_(torch.rand_like(value) * 0.02)
    return model


def save_folder(model: Any, folder: Path) -> Path:
    """The folder that timm itself writes for a model, and reads back."""
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def images_for(model: Any, n: int = 3, seed: int = 1) -> torch.Tensor:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (64, 64)
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))
