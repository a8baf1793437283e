"""Fine-tune with and without MonoLoss on real images: score and purity of the new layer, and the cost in accuracy.

    python benchmarks/finetune.py DATA [--seeds 5] [--processes 1]

DATA holds `images.tar` (Tiny-ImageNet, an image folder `tiny_imagenet/{train,val}/<class>/`, 40 and 10 images a class)
and `mobilenetv2_train.npz`, `mobilenetv2_val.npz`, whose features of the same images are joined by file name. Half of
the classes are used. A small ResNet is trained from random weights at 32 x 32 pixels without MonoLoss. Then it is
fine-tuned twice for each seed, for the same number of epochs: with cross-entropy alone, and with MonoLoss on the new
layer. The seed decides new layer, classifier, order and augmentation, equally for both. About 6 minutes of one core.

Prints every run. Asserts that score and purity rise by more than two standard errors of the difference, and that the
mean accuracy falls by no more than one percentage point. With MonoLoss some latents have no active row: these count as
undefined, or as 0 in the column "undefined = 0", whose difference is printed and not asserted.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch
from machine import write_result
from safetensors.torch import save_file

from monoloss import import_npz
from monoloss.finetune.config import (
    AugmentationConfig,
    DataConfig,
    FineTuneConfig,
    ModelConfig,
    OptimisationConfig,
)
from monoloss.finetune.model.folder import load_finetuned
from monoloss.finetune.run import fine_tune
from monoloss.finetune.run_folder import validation_measures

N_CLASSES = 100
BACKBONE = "test_resnet"
FIRST_EPOCHS, EPOCHS = 15, 4
MONO_WEIGHT = 1.5
FIGURES = {
    "top1": "top-1, %",
    "top5": "top-5, %",
    "score": "MonoScore",
    "score_zero_filled": "undefined = 0",
    "purity_binary": "purity, binary",
    "purity_weighted": "purity, weighted",
    "alive": "active latents",
}
RISING = ("score", "purity_binary", "purity_weighted")


def main() -> None:
    """Train all runs, print them, assert the claims, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="runs that are trained side by side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first = first_training(prepare(options.data, folder), folder)
        minutes = (time.process_time() - started) / 60
        todo = [(first, folder, seed, weight) for seed in range(options.seeds) for weight in (0.0, MONO_WEIGHT)]
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            runs = list(pool.map(run, *zip(*todo, strict=True)))
    minutes += sum(one.pop("minutes") for one in runs)
    differences = compare(runs)
    print_runs(runs, differences)
    print(f"{minutes:.1f} minutes of processor time")
    for name in RISING:
        assert differences[name]["mean"] > 2 * differences[name]["standard_error"], name
    assert differences["top1"]["mean"] >= -0.01
    print("score and purity rise, and accuracy falls by no more than a point")
    write_result("finetune", {"runs": runs, "differences": differences, "minutes": minutes})


def prepare(data: Path, folder: Path) -> DataConfig:
    """Extract the images of some classes and import their features; return the data of the fine-tuning."""
    with tarfile.open(data / "images.tar") as archive:
        names = sorted({name.split("/")[2] for name in archive.getnames() if name.count("/") == 3})[:N_CLASSES]
        chosen = [member for member in archive.getmembers() if member.isfile() and member.name.split("/")[-2] in names]
        archive.extractall(folder, chosen, filter="data")
    for split in ("train", "val"):
        import_npz(data / f"mobilenetv2_{split}.npz", folder / split, dtype="uint8", scale=0.019077831879258156)
    return DataConfig(
        f"imagefolder:{folder}/tiny_imagenet",
        split="train",
        validation_split="val",
        embeddings=str(folder / "train"),
        validation_embeddings=str(folder / "val"),
        join_on="name",
    )


def first_training(data: DataConfig, folder: Path) -> FineTuneConfig:
    """Train the backbone from random weights; return the configuration that fine-tunes it from these weights."""
    config = FineTuneConfig(
        ModelConfig(BACKBONE, pretrained=False, image_size=32),
        data,
        AugmentationConfig(min_area=0.25),
        OptimisationConfig(lr=0.1, weight_decay=5e-4, warmup_epochs=1),
        epochs=FIRST_EPOCHS,
        validate_every_epochs=FIRST_EPOCHS,
        batch_size=64,
        checkpoint_every_minutes=None,
        seed=1000,
    )
    fine_tune(config, folder / "first", progress=False)
    print("first training:", validation_measures(folder / "first"))
    weights = folder / "backbone.safetensors"
    save_file(load_finetuned(folder / "first" / "model").backbone.state_dict(), weights)
    return replace(
        config,
        model=replace(config.model, pretrained=True, checkpoint=str(weights)),
        optimisation=replace(config.optimisation, lr=0.03),
        epochs=EPOCHS,
        validate_every_epochs=EPOCHS,
    )


def run(config: FineTuneConfig, folder: Path, seed: int, weight: float) -> dict[str, float]:
    """Fine-tune once; return the measures of its validation, with seed, weight and minutes."""
    torch.set_num_threads(1)
    started = time.process_time()
    place = folder / f"{seed}-{weight}"
    fine_tune(replace(config, seed=seed, mono_weight=weight), place, progress=False)
    figures = validation_measures(place)
    print(seed, weight, figures, flush=True)
    return {"seed": seed, "mono_weight": weight, "minutes": (time.process_time() - started) / 60, **figures}


def compare(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard error over the seeds of each measure with MonoLoss minus that without."""
    without, with_it = ([run for run in runs if (run["mono_weight"] > 0) == is_on] for is_on in (False, True))
    result = {}
    for name in FIGURES:
        each = [one[name] - other[name] for one, other in zip(with_it, without, strict=True)]
        error = stdev(each) / len(each) ** 0.5 if len(each) > 1 else 0.0
        result[name] = {"mean": mean(each), "standard_error": error}
    return result


def print_runs(runs: list[dict[str, float]], differences: dict[str, dict[str, float]]) -> None:
    """Print a line for each run, the means, and the differences with their standard errors."""
    print(f"{'seed':>5}{'weight':>8}" + "".join(f"{title:>19}" for title in FIGURES.values()))
    for one in runs:
        print(f"{one['seed']:5}{one['mono_weight']:8}" + "".join(_shown(name, one[name]) for name in FIGURES))
    for weight in (0.0, MONO_WEIGHT):
        chosen = [one for one in runs if one["mono_weight"] == weight]
        means = "".join(_shown(name, mean(one[name] for one in chosen)) for name in FIGURES)
        print(f"{'mean':>5}{weight:8}" + means)
    for key, title in (("mean", "difference"), ("standard_error", "its error")):
        print(f"{title:>13}" + "".join(_shown(name, differences[name][key]) for name in FIGURES))


def _shown(name: str, value: float) -> str:
    return f"{100 * value:19.2f}" if name.startswith("top") else f"{value:19.3f}"


if __name__ == "__main__":
    main()
