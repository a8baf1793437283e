"""The files in configs/finetune/: each parses, holds the published settings, and trains two steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from monoloss.finetune.config import LoraConfig
from monoloss.finetune.config_files import read_finetune
from monoloss.finetune.run import fine_tune
from monoloss.finetune.run_folder import validation_measures
from support.image_folders import labelled, picture_folder, store_of

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "finetune"
WEIGHTS = (0.0, 0.03, 0.05, 0.07, 0.1)

# Published top-1 at these weights.
PUBLISHED = {
    "resnet50-imagenet": (80.34, 80.29, 80.25, 80.31, 80.93),
    "resnet50-cifar10": (98.26, 98.37, 98.40, 98.38, 98.43),
    "resnet50-cifar100": (88.05, 88.18, 88.20, 88.29, 88.12),
    "clip-imagenet": (78.45, 78.50, 78.34, 78.50, 78.52),
    "clip-cifar10": (98.09, 98.08, 98.07, 98.00, 98.20),
    "clip-cifar100": (88.04, 88.32, 88.47, 88.32, 88.37),
}


def header(name: str) -> list[str]:
    """The first comment block of a file, without its signs."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    return [line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines()]


def test_every_file_is_known():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(PUBLISHED)
    table = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(finetune/([\w-]+)\.yaml\)", table)) == set(PUBLISHED)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_paper_s_settings(name, weight):
    config = read_finetune(CONFIGS / f"{name}.yaml", [("mono_weight", str(weight))]).config
    assert config.mono_weight == weight
    assert (config.epochs, config.batch_size, config.mono_memory, config.mono_center) == (90, 1024, 0.0, False)
    backbone, data = name.split("-")
    optimisation, augmentation = config.optimisation, config.augmentation
    assert (optimisation.momentum, optimisation.ema_decay, optimisation.ema_every_steps) == (0.9, 0.99998, 32)
    assert optimisation.ema_adjusted
    assert config.model.pretrained
    assert config.data.images.startswith({"imagenet": "imagefolder:"}.get(data, f"{data}:"))
    if backbone == "clip":
        assert config.model.lora == LoraConfig(rank=16, alpha=32.0)
        assert (optimisation.lr, optimisation.weight_decay, optimisation.label_smoothing) == (0.01, 1e-4, 0.0)
        assert (optimisation.schedule, optimisation.step_epochs, optimisation.step_factor) == ("step", 30, 0.1)
        assert not augmentation.mixes
        assert (augmentation.interpolation, config.precision) == ("bicubic", "bf16-mixed")
    else:
        assert config.model.lora is None
        assert (optimisation.weight_decay, optimisation.label_smoothing, optimisation.schedule) == (2e-5, 0.1, "cosine")
        assert (augmentation.trivial_augment, augmentation.random_erasing) == (True, 0.1)
        assert (augmentation.mixup, augmentation.cutmix, augmentation.mix_embeddings) == (0.2, 1.0, True)
        assert (augmentation.train_crop, augmentation.eval_resize, config.model.image_size) == (176, 232, 224)
        assert config.precision == "32-true"
        on_imagenet = data == "imagenet"
        assert (optimisation.lr, optimisation.warmup_epochs) == ((1e-3, 5) if on_imagenet else (0.1, 0))
        assert augmentation.repeats == (1 if on_imagenet else 4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weight_of_the_file_is_the_best_published_one(name):
    figures = PUBLISHED[name]
    best = max(range(1, len(WEIGHTS)), key=lambda i: figures[i])
    assert read_finetune(CONFIGS / f"{name}.yaml").config.mono_weight == WEIGHTS[best]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_lines_say_what_is_published(name):
    lines = header(name)
    weights = next(line for line in lines if line.startswith("mono_weight "))
    top1 = next(line for line in lines if line.startswith("top-1 "))
    assert tuple(map(float, weights.split()[1:])) == WEIGHTS
    assert tuple(map(float, top1.split()[1:])) == PUBLISHED[name]
    lower = [weight for weight, figure in zip(WEIGHTS, PUBLISHED[name], strict=True) if figure < PUBLISHED[name][0]]
    said = next((line for line in lines if "lower" in line.lower() and "accuracy here" in line), "")
    assert all(f"{weight:g}".lstrip("0") in said for weight in lower)
    assert bool(lower) == bool(said)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_lines_hold_the_commands(name):
    extract, finetune = (shlex.split(line) for line in header(name) if line.startswith("monoloss "))
    assert extract[:2] == ["monoloss", "extract"]
    assert finetune[:2] == ["monoloss", "finetune"]
    options = dict(zip(finetune[2::2], finetune[3::2], strict=True))
    assert options.pop("--config") == f"configs/finetune/{name}.yaml"
    assert set(options) == {"--data.images", "--data.embeddings", "--out"}
    made = dict(zip(extract[2::2], extract[3::2], strict=True))
    assert made["--images"] == options["--data.images"]
    assert made["--out"] == options["--data.embeddings"]
    config = read_finetune(CONFIGS / f"{name}.yaml").config
    assert made["--images"].partition(":")[0] == config.data.images.partition(":")[0]
    assert made["--split"] == config.data.split


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_file_trains_two_steps(name, tmp_path):
    """At its own size of images and model, from random weights, on a few random pictures."""
    folder = picture_folder(tmp_path / "images", size=40, classes=("ant", "bee"))
    store = store_of(tmp_path / "store", labelled(folder))
    options = {
        "model.pretrained": "false",
        "data.images": f"imagefolder:{folder}",
        "data.split": "null",
        "data.validation": f"imagefolder:{folder}",
        "data.validation_split": "null",
        "data.embeddings": str(store.folder),
        "data.validation_embeddings": str(store.folder),
        "data.workers": "0",
        "optimisation.warmup_epochs": "0",
        "epochs": "1",
        "batch_size": "4",
    }
    written = read_finetune(CONFIGS / f"{name}.yaml").config
    config = read_finetune(CONFIGS / f"{name}.yaml", list(options.items())).config
    assert config.mono_weight == written.mono_weight > 0
    model = fine_tune(config, tmp_path / "run", progress=False)
    assert model.width == {"resnet50": 2048, "clip": 768}[name.split("-")[0]]
    assert (tmp_path / "run" / "checkpoints" / "step=00000002.ckpt").is_file()
    assert set(validation_measures(tmp_path / "run")) >= {"top1", "top5", "score", "purity_weighted"}
