"""Small folders of pictures, each unlike the others, and stores of their embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from monoloss.data.images import open_images
from monoloss.data.store import FeatureStore
from monoloss.finetune.images.labelled import LabelledImages

PREPROCESSING: dict[str, Any] = {
    "input_size": (3, 12, 12),
    "interpolation": "bilinear",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
CLASSES = ("ant", "bee", "cat")


def picture_folder(folder: Path, n_each: int = 4, classes: tuple[str, ...] = CLASSES, size: int = 16) -> Path:
    """Class folders of `n_each` PNG files; the names are unique in the whole folder."""
    draw = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n_each):
            pixels = draw.integers(0, 256, (size, size + 2, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{i}.png")
    return folder


def labelled(folder: Path, **options: Any) -> LabelledImages:
    return LabelledImages(open_images(f"imagefolder:{folder}", **options))


def embeddings_of(images: LabelledImages, width: int = 5) -> torch.Tensor:
    """A row for each image, of some length."""
    return torch.randn(len(images), width, generator=torch.Generator().manual_seed(1)) * 3


def store_of(folder: Path, images: LabelledImages, **options: Any) -> FeatureStore:
    """A store of the images, in reverse order."""
    chosen = {"labels": images.labels.flip(0), "ids": list(images.ids)[::-1], "class_names": images.class_names}
    return FeatureStore.create(folder, embeddings_of(images).flip(0), **(chosen | options))
