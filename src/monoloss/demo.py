"""The demo: MonoLoss on scikit-learn's digits, from a feature store to a table, pictures and a report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from monoloss.checks import check_number
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.run import evaluate
from monoloss.files.atomic import atomic_folder
from monoloss.files.json import write_json
from monoloss.report.discovery import LocatedEvaluation, training_curves
from monoloss.report.page import PAGE, write_report
from monoloss.report.pictures.drawing import save_figure, variant_colors
from monoloss.report.pictures.examples_grid import spread_latents, top_examples_grid
from monoloss.report.pictures.trade_off import trade_off
from monoloss.report.table import chance_line, evaluation_table
from monoloss.sae.config import VARIANT_TITLES, AuxLoss, BatchTopKConfig, SaeConfig, TopKConfig
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.run import train_saes

N_LATENTS, K = 96, 8
BATCH_SIZE, EPOCHS, LR = 256, 60, 1e-3
DEAD_AFTER_SAMPLES = 20_000
TOPK_WEIGHT, BATCH_TOPK_WEIGHT = 0.1, 2e-3  # TopK's reconstruction error is a sum over dimensions, so it needs more
MEMORY = 0.9
VARIANTS = {name: VARIANT_TITLES[name] for name in ("topk", "batch_topk")}
LOSSES = {"baseline": "baseline", "paper": "paper's MonoLoss", "memory": "memory + centred"}
GRID_LATENTS = 6
MARK = "demo.json"  # file that marks the folder of a demo


class Digits(NamedTuple):
    """scikit-learn's digits as stores of rows to train on and of rows to evaluate on, with labels and thumbnails."""

    train: FeatureStore
    held_out: FeatureStore


class DemoResult(NamedTuple):
    """The results of a demo."""

    evaluations: dict[str, Evaluation]
    """Evaluations on the held-out digits by SAE: ``topk-baseline``, ..., ``batch_topk-memory``."""

    folder: Path
    """Folder of pictures, report, stores, logs and evaluation files."""


def run_demo(
    seed: int = 0, out: str | Path = "demo-output", *, progress: bool = True, console: Console | None = None
) -> DemoResult:
    """Train six SAEs on the training digits, evaluate them on the held-out ones, and print and save the results.

    Args:
        seed: seed of the split, the initial weights and the order of the rows.
        out: folder of the results, written atomically; an earlier demo's is replaced.
        progress: show progress bars.
        console: the console to print on; by default the terminal.

    Raises:
        InputError: a negative seed, or a folder that holds something else.
    """
    check_number("seed", seed, at_least=0, below=2**32, integer=True)
    out, console = Path(out), console or Console()
    if out.exists() and not (out / MARK).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("out", f"{out}, which holds something else", "a new folder, or an earlier demo's")
    start = time.perf_counter()
    with _one_thread(), atomic_folder(out, replace=True) as folder:
        digits = digits_stores(folder / "stores", seed)
        saes = train_saes(digits.train, demo_config(seed), folder, progress=progress)
        evaluations = {
            name: _with_relative_store(evaluation)
            for name, evaluation in evaluate(digits.held_out, saes, progress=progress).items()
        }
        for name, evaluation in evaluations.items():
            evaluation.save(folder / "evaluations" / name)
        pictures = draw(evaluations, digits.held_out, folder / "pictures")
        located = [
            LocatedEvaluation(folder / "evaluations" / name, evaluation, folder, name)
            for name, evaluation in evaluations.items()
        ]
        write_report(
            list(evaluations.values()),
            folder / "report",
            stores=[digits.held_out],
            curves=[curve for evaluation in located for curve in training_curves(evaluation)],
            title="MonoLoss on scikit-learn's digits",
            progress=progress,
        )
        metadata = {"seed": seed, "n_train": digits.train.n_rows, "n_held_out": digits.held_out.n_rows}
        write_json(folder / MARK, metadata, format_version=1)
    title = f"{digits.held_out.n_rows} held-out digits, {N_LATENTS} latents, k = {K}"
    console.print(evaluation_table(grouped(evaluations), title))
    console.print(chance_line(evaluations), soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s. Pictures and files: {out.resolve()}", soft_wrap=True)
    for picture in pictures:
        console.print(f"  {picture}")
    console.print(f"Look at the latents: open {(out / 'report' / PAGE).resolve()}", soft_wrap=True, highlight=False)
    return DemoResult(evaluations, out)


def _with_relative_store(evaluation: Evaluation) -> Evaluation:
    """Name the store's folder relative to the evaluation's: the demo's folder is renamed at the end."""
    store = Path("..", "..", "stores", evaluation.metadata["store"])
    return replace(evaluation, metadata={**evaluation.metadata, "store_folder": str(store)})


def digits_stores(folder: Path, seed: int) -> Digits:
    """Make feature stores of the digits: 1198 rows to train on, 599 held out, the same share of each digit in both."""
    data = load_digits()
    pixels, labels = data.data.astype(np.float32), data.target.astype(np.int64)
    parts = train_test_split(np.arange(len(pixels)), test_size=1 / 3, stratify=labels, random_state=seed)

    def store(name: str, rows: np.ndarray) -> FeatureStore:
        return FeatureStore.create(
            folder / name,
            pixels[rows],
            labels[rows],
            [f"digit-{row:04d}" for row in rows],
            thumbnails=(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1),
            class_names=[str(name) for name in data.target_names],
        )

    return Digits(store("train", parts[0]), store("held-out", parts[1]))


def demo_config(seed: int) -> TrainingConfig:
    """Configure six SAEs: TopK and BatchTopK, each without MonoLoss, with the paper's, and with memory + centred."""
    aux = AuxLoss(k=16, dead_after_samples=DEAD_AFTER_SAMPLES)
    saes: dict[str, tuple[SaeConfig, float, float | None]] = {
        "topk": (TopKConfig("topk", N_LATENTS, K, aux=aux), TOPK_WEIGHT, None),
        "batch_topk": (BatchTopKConfig("batch_topk", N_LATENTS, K, aux=aux), BATCH_TOPK_WEIGHT, 1.0),
    }
    runs = {}
    for name, (sae, weight, clip_norm) in saes.items():
        for loss in LOSSES:
            runs[f"{name}-{loss}"] = SaeTraining(
                sae,
                mono_weight=0.0 if loss == "baseline" else weight,
                mono_memory=MEMORY if loss == "memory" else 0.0,
                mono_center=loss == "memory",
                lr=LR,
                clip_norm=clip_norm,
                seed=seed,
            )
    return TrainingConfig(runs, batch_size=BATCH_SIZE, epochs=EPOCHS, log_every_steps=20, seed=seed)


def grouped(evaluations: Mapping[str, Evaluation]) -> dict[str, list[Evaluation]]:
    """Group evaluations by SAE variant, renamed after their losses and in the order of ``LOSSES``."""
    return {
        title: [replace(evaluations[f"{variant}-{loss}"], name=label) for loss, label in LOSSES.items()]
        for variant, title in VARIANTS.items()
    }


def draw(evaluations: Mapping[str, Evaluation], held_out: FeatureStore, folder: Path) -> list[str]:
    """Draw the pictures of a demo as PNG files in ``folder``; return their paths relative to its parent."""
    folder.mkdir(parents=True)
    groups = grouped(evaluations)
    colors = variant_colors(groups)
    figures = {"score-against-explained-variance.png": trade_off(groups, colors=colors)}
    for (variant, title), group in zip(VARIANTS.items(), groups.values(), strict=True):
        left, right = (replace(side, name=f"{title}, {side.name}") for side in (group[0], group[-1]))
        figures[f"digits-{variant}.png"] = top_examples_grid(
            left,
            right,
            held_out.thumbnails,
            held_out.thumbnails,
            spread_latents(left, GRID_LATENTS),
            spread_latents(right, GRID_LATENTS),
            colors={f"{title}, {name}": color for name, color in colors.items()},
        )
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [f"{folder.name}/{name}" for name in figures]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread in a block: matrices this small are faster so, many times where other programs use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
