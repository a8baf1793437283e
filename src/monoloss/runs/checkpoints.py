"""Checkpoint files of a run, for resuming it: their names, and the newest one that can be read."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

_SUFFIX = ".ckpt"
IDENTITY, BATCHES, GENERATORS = "monoloss_run", "batches", "generators"


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        path: the file.
        n_steps: optimiser steps that were done.
        identity: what its run was made of.
    """

    path: Path
    n_steps: int
    identity: Mapping[str, Any]


def checkpoint_file(folder: Path, n_steps: int) -> Path:
    """Path of the checkpoint after ``n_steps`` optimiser steps."""
    return folder / f"step={n_steps:08d}{_SUFFIX}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = [
        path
        for path in folder.glob(f"step=*{_SUFFIX}")
        if re.fullmatch("[0-9]+", path.stem.removeprefix("step=")) and path.is_file()
    ]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The number of optimiser steps that were done."""
    return int(path.stem.removeprefix("step="))


def newest_readable(folder: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be read whole; ``note`` is told of newer ones that cannot."""
    for path in checkpoints_in(folder):
        content = _read(path)
        if content is not None:
            return Checkpoint(path, step_of(path), content[IDENTITY])
        note(f"{path} cannot be read and is left out")
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """The contents of a checkpoint, or None: torn, with bytes that changed, or of something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a damaged file leads to
        return None
    expected = {IDENTITY: dict, BATCHES: dict, GENERATORS: dict, "state_dict": dict, "optimizer_states": list}
    whole = isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in expected.items())
    return content if whole else None
