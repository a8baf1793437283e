"""Small fine-tuning runs: pictures of three classes, their embeddings, a tiny network."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from monoloss.finetune.config import AugmentationConfig, DataConfig, FineTuneConfig, OptimisationConfig
from monoloss.finetune.run import fine_tune
from support.finetune_models import small_config
from support.image_folders import labelled, picture_folder, store_of

N_STEPS = 6  # three batches of four pictures an epoch, two epochs


def data_in(folder: Path) -> DataConfig:
    """Pictures and a store in a folder, all of them held out as well."""
    images = labelled(picture_folder(folder / "images"))
    store = str(store_of(folder / "store", images).folder)
    spec = f"imagefolder:{folder / 'images'}"
    return DataConfig(spec, validation=spec, embeddings=store, validation_embeddings=store)


def a_run(data: DataConfig, backbone: str = "test_resnet", **options: Any) -> FineTuneConfig:
    """With everything on that is random."""
    model = small_config(backbone, **options.pop("model", {}))
    augmentation = AugmentationConfig(trivial_augment=True, random_erasing=0.5, mixup=0.2, cutmix=1.0)
    optimisation = OptimisationConfig(lr=0.05, ema_decay=0.5, ema_every_steps=2, ema_adjusted=False)
    shared = {"mono_weight": 0.1, "epochs": 2, "batch_size": 4, "augmentation": augmentation}
    return FineTuneConfig(model, data, **{**shared, "optimisation": optimisation, **options})


def trained(config: FineTuneConfig, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The weights after a run."""
    model = fine_tune(config, folder, progress=False, **options)
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_weights(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def logged_by(folder: Path, version: int = 0) -> list[dict[str, str]]:
    with (folder / "logs" / f"version_{version}" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without_average(config: FineTuneConfig) -> FineTuneConfig:
    unset = {name: getattr(OptimisationConfig(), name) for name in ("ema_decay", "ema_every_steps", "ema_adjusted")}
    return replace(config, optimisation=replace(config.optimisation, **unset))
