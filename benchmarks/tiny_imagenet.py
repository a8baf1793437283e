"""Train BatchTopK on real features (MobileNetV2 on Tiny-ImageNet), with three losses on one pass.

    python benchmarks/tiny_imagenet.py DATA

DATA holds `mobilenetv2_train.npz` and `mobilenetv2_val.npz` (uint8 `features`, `labels`, `paths`). Prints our measures
beside those of an independent prototype with the same settings, and asserts that they agree.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from machine import write_result
from rich.console import Console

from monoloss import BatchTopKConfig, FeatureStore, SaeTraining, TrainingConfig, evaluate, import_npz, train_saes
from monoloss.report.table import evaluation_table

SCALE = 0.019077831879258156
K = 16
# Of the prototype: R2, score over all latents (undefined = 0), score over alive ones, alive latents, binary purity
EXPECTED = {
    "none": (0.369, 0.450, 0.453, 1018, 0.162),
    "paper-3e-4": (0.371, 0.524, 0.540, 994, 0.225),
    "memory+centred-1e-4": (0.376, 0.545, 0.545, 1024, 0.273),
}
FIGURES = ("r2", "score_mean_zero_filled", "score_mean", "n_alive", "purity_binary")


def main() -> None:
    """Train and evaluate, print and assert the measures, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as folder:
        train, val = (tiny_imagenet_store(data, split, Path(folder)) for split in ("train", "val"))
        saes = train_saes(train, _config(), Path(folder) / "run")
        evaluations = evaluate(val, saes, progress=True)
    Console().print(evaluation_table({"BatchTopK": list(evaluations.values())}, "Tiny-ImageNet, validation"))
    for name, expected in EXPECTED.items():
        summary = evaluations[name].summary
        for key, value in zip(FIGURES, expected, strict=True):
            print(f"{name:22}{key:26}{summary[key]:9.3f}   expected {value}")
            tolerance = 0.02 * value if key == "n_alive" else 0.02
            assert abs(summary[key] - value) <= tolerance, (name, key)
        print(f"{name:22}{'l0':26}{summary['l0']:9.3f}   expected {K}")
        assert abs(summary["l0"] / K - 1) <= 0.05, (name, "l0")
    print("every figure within 0.02 (alive: 2 %, L0: 5 %)")
    write_result("tiny_imagenet", {name: dict(evaluation.summary) for name, evaluation in evaluations.items()})


def _config() -> TrainingConfig:
    sae = BatchTopKConfig("batch_topk", n_latents=1024, k=K)
    saes = {
        "none": SaeTraining(sae, lr=5e-4),
        "paper-3e-4": SaeTraining(sae, lr=5e-4, mono_weight=3e-4),
        "memory+centred-1e-4": SaeTraining(sae, lr=5e-4, mono_weight=1e-4, mono_memory=0.9, mono_center=True),
    }
    return TrainingConfig(saes, batch_size=1024, epochs=6, log_every_steps=39)


def tiny_imagenet_store(data: Path, split: str, folder: Path) -> FeatureStore:
    """Import the features of a split, "train" or "val", as a store."""
    return import_npz(data / f"mobilenetv2_{split}.npz", folder / split, dtype="uint8", scale=SCALE)


if __name__ == "__main__":
    main()
