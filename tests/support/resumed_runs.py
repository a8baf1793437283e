"""Runs of all four SAEs with memory on, killed at a step, and what must be equal afterwards."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.sae.config import InputScaling
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.module import SaeTrainingModule
from monoloss.training.run import train_saes
from support.saes import bits_of, some_config
from support.training_runs import AUX, a_run

MEMORY: dict[str, Any] = {"mono_weight": 1e-2, "mono_memory": 0.9, "lr": 2e-3}
ALL_FOUR = {
    "topk": SaeTraining(some_config("topk", 48, 3, aux=AUX), redraw_dead_every_steps=4, clip_norm=None, **MEMORY),
    "topk.tied": SaeTraining(
        some_config("topk_tied", 40, 3, aux=AUX), warmup_steps=3, lr_schedule="linear", mono_center=True, **MEMORY
    ),
    "batch_topk": SaeTraining(
        some_config("batch_topk", 48, 3, aux=AUX, inputs=InputScaling(center=True)),
        warmup_steps=4,
        lr_schedule="cosine",
        seed=2,
        **MEMORY,
    ),
    "jump_relu": SaeTraining(
        some_config("jump_relu", 40, dead_after_samples=150, target_l0=2.0, initial_threshold=1.9),
        mono_embeddings="scaled",
        redraw_dead_every_steps=5,
        **MEMORY,
    ),
    "vanilla": SaeTraining(
        some_config("vanilla", 40, l1_weight=0.1, dead_after_samples=150),
        lr_schedule="cosine",
        **(MEMORY | {"lr": 8e-3}),
    ),
}


class Killed(BaseException):
    """The process ends here; nothing that runs afterwards may count."""


def config_of(**options: Any) -> TrainingConfig:
    return a_run(ALL_FOUR, **options)


def kill_at_batch(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """End in the n-th batch from now on, when memory and counters have seen it and the weights have not."""
    calls, step = [], SaeTrainingModule.training_step

    def killed(self: SaeTrainingModule, batch: Tensor, batch_idx: int) -> Tensor:
        calls.append(batch_idx)
        loss = step(self, batch, batch_idx)
        if len(calls) == n:
            raise Killed
        return loss

    monkeypatch.setattr(SaeTrainingModule, "training_step", killed)


def train_until_killed(
    store: FeatureStore, config: TrainingConfig, run: Path, batch: int, *, resume: bool = False, **options: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at_batch(patch, batch)
        with pytest.raises(Killed):
            train_saes(store, config, run, resume=resume, progress=False, **options)


def all_bits(saes: Mapping[str, SparseAutoencoder]) -> dict[str, dict[str, bytes]]:
    return {name: bits_of(sae) for name, sae in saes.items()}


def last_state(run: Path) -> dict[str, Any]:
    """The content of the newest checkpoint of a run, without the run's identity."""
    (*_, newest) = sorted((run / "checkpoints").iterdir())
    content = torch.load(newest, weights_only=True)
    del content["monoloss_run"]  # how often it is saved may differ
    return content


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """Nested values by their path, tensors as bytes."""
    if isinstance(value, Tensor):
        return {where: (tuple(value.shape), value.dtype, value.numpy().tobytes())}
    if isinstance(value, Mapping):
        return {path: leaf for key, item in value.items() for path, leaf in flat(item, f"{where}/{key}").items()}
    if isinstance(value, list | tuple):
        return {path: leaf for i, item in enumerate(value) for path, leaf in flat(item, f"{where}/{i}").items()}
    return {where: value}


def check_same_state(got: Path, expected: Path) -> None:
    a, b = flat(last_state(got)), flat(last_state(expected))
    assert a.keys() == b.keys()
    assert not [key for key in a if a[key] != b[key]]


def logged_lines(run: Path) -> dict[int, dict[str, str]]:
    """The logged lines of all versions by step, later versions over earlier ones; empty cells left out."""
    lines: dict[int, dict[str, str]] = {}
    for version in sorted((run / "logs").iterdir(), key=lambda folder: int(folder.name.removeprefix("version_"))):
        if (version / "metrics.csv").is_file():
            with (version / "metrics.csv").open(encoding="utf-8", newline="") as file:
                for line in csv.DictReader(file):
                    cells = {key: value for key, value in line.items() if value}
                    lines[int(line["step"])] = lines.get(int(line["step"]), {}) | cells
    return lines
