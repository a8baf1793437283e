"""Settings of a fine-tuning run, few of them defaults, and their files."""

from __future__ import annotations

from pathlib import Path

from monoloss.finetune.config import (
    AugmentationConfig,
    DataConfig,
    FineTuneConfig,
    LoraConfig,
    ModelConfig,
    OptimisationConfig,
)

MODEL = ModelConfig("resnet50", top_k=3, lora=LoraConfig(rank=2, dropout=0.5))
DATA = DataConfig("cifar10:data", "train", validation_split="test", embeddings="store", join_on="name", workers=3)
CONFIG = FineTuneConfig(
    MODEL,
    DATA,
    AugmentationConfig(train_crop=176, mixup=0.2, repeats=2, interpolation="bicubic"),
    OptimisationConfig(schedule="step", ema_decay=0.9, clip_norm=2.0),
    mono_weight=0.1,
    mono_center=True,
    loggers=["tensorboard"],
)


def written(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return folder / "run.yaml"
