"""The checkpoints from which a run is resumed: their file names, and a search for the newest readable one."""

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
    """A checkpoint that can be read."""

    path: Path
    n_steps: int
    """Optimiser steps done when it was saved."""

    identity: Mapping[str, Any]
    """The configuration of its run, with the fingerprints of the data."""


def checkpoint_file(folder: Path, n_steps: int) -> Path:
    """Return the path of the checkpoint after ``n_steps`` optimiser steps."""
    return folder / f"step={n_steps:08d}{_SUFFIX}"


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the newest first."""
    paths = [
        path
        for path in folder.glob(f"step=*{_SUFFIX}")
        if re.fullmatch("[0-9]+", path.stem.removeprefix("step=")) and path.is_file()
    ]
    return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the number of optimiser steps in a checkpoint's file name."""
    return int(path.stem.removeprefix("step="))


def newest_readable(folder: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest undamaged checkpoint, or None; call ``note`` with a sentence about each newer, damaged one."""
    for path in checkpoints_in(folder):
        content = _read(path)
        if content is not None:
            return Checkpoint(path, step_of(path), content[IDENTITY])
        note(f"{path} cannot be read and is left out")
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None for a file that is torn, changed, or no checkpoint of a run."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can raise anything
        return None
    kinds = {IDENTITY: dict, BATCHES: dict, GENERATORS: dict, "state_dict": dict, "optimizer_states": list}
    is_whole = isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in kinds.items())
    return content if is_whole else None
