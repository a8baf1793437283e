"""Train four SAEs x {no MonoLoss, the paper's, memory + centred} on real features, all twelve on one pass.

    python benchmarks/four_saes.py DATA

DATA holds `mobilenetv2_train.npz` and `mobilenetv2_val.npz` (uint8 `features`, `labels`, `paths`). Trains what
`four_saes.yaml` says, judges it on the validation rows, and asserts for every SAE that MonoLoss raises the score over
all latents and the weighted purity at an R2 within 0.03, and for JumpReLU that its thresholds have moved and L0 is
within 10 % of its target.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import write_result
from rich.console import Console
from rich.table import Table
from tiny_imagenet import tiny_imagenet_store

from monoloss import Evaluation, JumpReluConfig, SparseAutoencoder, evaluate, train_saes
from monoloss.sae.activations import JumpRelu
from monoloss.training.config_files import read_config

VARIANTS = ("topk", "batch_topk", "jump_relu", "vanilla")
LOSSES = ("none", "paper", "memory")
SCORE, PURITY = "score_mean_zero_filled", "purity_weighted"
COLUMNS = {  # measure of the summary: heading
    "score_mean": "score",
    SCORE: "all",
    "score_median": "median",
    "score_p90": "p90",
    "lift_mean": "lift",
    "n_eff_median": "n_eff",
    "purity_binary": "purity",
    PURITY: "weighted",
    "purity_weighted_by_mass": "by mass",
    "r2": "R2",
    "explained_variance": "expl.var",
    "nmse": "NMSE",
    "l0": "L0",
    "n_alive": "alive",
}


def main() -> None:
    """Train and evaluate, print the measures, assert the claims, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    config = read_config(Path(__file__).with_suffix(".yaml")).training
    with tempfile.TemporaryDirectory() as folder:
        train, val = (tiny_imagenet_store(data, split, Path(folder)) for split in ("train", "val"))
        saes = train_saes(train, config, Path(folder) / "run")
        evaluations = evaluate(val, saes, progress=True)
    Console(width=140).print(_table(evaluations))
    thresholds = {name: _thresholds(sae) for name, sae in saes.items() if isinstance(sae.activation, JumpRelu)}
    for name, moved in thresholds.items():
        print(
            f"{name}: theta from {moved['start']:.3f} to {moved['mean']:.3f} ({moved['min']:.3f} to {moved['max']:.3f})"
        )
    for variant in VARIANTS:
        _check(variant, evaluations)
    for name, moved in thresholds.items():
        target, l0 = moved["target_l0"], evaluations[name].summary["l0"]
        assert abs(moved["mean"] - moved["start"]) > 0.1, f"{name}: theta has not moved"
        assert abs(l0 / target - 1) <= 0.1, f"{name}: L0 {l0:.2f}, target {target}"
    print("MonoLoss raises score over all and weighted purity of every SAE, R2 within 0.03; JumpReLU's L0 within 10 %")
    figures = {name: dict(evaluation.summary) for name, evaluation in evaluations.items()}
    write_result("four_saes", {"evaluations": figures, "thresholds": thresholds})


def _check(variant: str, evaluations: Mapping[str, Evaluation]) -> None:
    none = evaluations[f"{variant}-none"].summary
    for loss in LOSSES[1:]:
        summary = evaluations[f"{variant}-{loss}"].summary
        for figure in (SCORE, PURITY):
            assert summary[figure] > none[figure], f"{variant}-{loss}: {figure} {summary[figure]} from {none[figure]}"
        assert abs(summary["r2"] - none["r2"]) <= 0.03, f"{variant}-{loss}: R2 {summary['r2']} from {none['r2']}"


def _thresholds(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return the initial threshold of a JumpReLU SAE, and mean, minimum and maximum of its thresholds."""
    config, threshold = sae.config, sae.activation.threshold.detach()
    assert isinstance(config, JumpReluConfig)
    return {
        "target_l0": config.target_l0,
        "start": config.initial_threshold,
        "mean": float(threshold.mean()),
        "min": float(threshold.min()),
        "max": float(threshold.max()),
    }


def _table(evaluations: Mapping[str, Evaluation]) -> Table:
    chance = next(iter(evaluations.values())).summary["chance"]
    table = Table(title=f"Tiny-ImageNet, validation rows; chance {chance:.3f}", title_justify="left", pad_edge=False)
    table.add_column("SAE, loss", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for variant in VARIANTS:
        for loss in LOSSES:
            summary = evaluations[f"{variant}-{loss}"].summary
            table.add_row(f"{variant}, {loss}", *(f"{summary[key]:.4g}" for key in COLUMNS))
        table.add_section()
    return table


if __name__ == "__main__":
    main()
