"""Small fine-tuned models with random weights, of a convolutional network and of a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from monoloss.finetune.config import LoraConfig, ModelConfig
from monoloss.finetune.model.model import FineTuneModel, build_model

CLASSES = ("cat", "dog", "eel")
SIZE = 32
LORA = LoraConfig(rank=2, alpha=3.0)


def small_config(backbone: str = "test_resnet", **options: object) -> ModelConfig:
    return ModelConfig(backbone, pretrained=False, image_size=SIZE, **options)


def model_of(config: ModelConfig, class_names: Sequence[str] = CLASSES, seed: int = 0) -> FineTuneModel:
    return build_model(class_names=class_names, seed=seed, **asdict(config))


def small_model(backbone: str = "test_resnet", seed: int = 0, **options: object) -> FineTuneModel:
    return model_of(small_config(backbone, **options), seed=seed)


def stirred(model: FineTuneModel, seed: int = 3) -> FineTuneModel:
    """As after training: nothing is where it starts, the second factors of LoRA included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            value.add_(torch.rand(value.shape, generator=generator) * 0.05)
    return model


def pictures(n: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
