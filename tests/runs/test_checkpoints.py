"""Names of checkpoints, and the newest one that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monoloss.runs.checkpoints import (
    BATCHES,
    GENERATORS,
    IDENTITY,
    checkpoint_file,
    checkpoints_in,
    newest_readable,
    step_of,
)


def save(folder: Path, n_steps: int, **changes: Any) -> Path:
    content = {IDENTITY: {"epochs": 3}, BATCHES: {}, GENERATORS: {}, "state_dict": {}, "optimizer_states": []}
    torch.save({**content, **changes}, checkpoint_file(folder, n_steps))
    return checkpoint_file(folder, n_steps)


def test_checkpoints_are_listed_by_step_and_other_files_are_not(tmp_path):
    paths = [save(tmp_path, n_steps) for n_steps in (9, 123456789, 10)]
    for name in ("step=.ckpt", "step=x1.ckpt", "step=00000011.ckpt.tmp", "last.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "step=00000012.ckpt").mkdir()
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [123456789, 10, 9]
    assert set(checkpoints_in(tmp_path)) == set(paths)
    assert checkpoints_in(tmp_path / "none") == []


def test_the_newest_readable_checkpoint(tmp_path):
    assert newest_readable(tmp_path, pytest.fail) is None
    save(tmp_path, 3)
    path = save(tmp_path, 7)
    assert newest_readable(tmp_path, pytest.fail) == (path, 7, {"epochs": 3})


@pytest.mark.parametrize("damage", ["cut", "a byte", "empty", "no identity", "an object", "a list"])
def test_damaged_checkpoints_are_passed_over_with_a_note(tmp_path, damage):
    older, notes = save(tmp_path, 3), []
    newer = save(tmp_path, 7, **({IDENTITY: None} if damage == "no identity" else {}))
    content = bytearray(newer.read_bytes())
    content[content.index(b"optimizer_states")] ^= 1
    if damage in ("an object", "a list"):
        torch.save(Path("x") if damage == "an object" else [], newer)
    elif damage != "no identity":
        newer.write_bytes({"cut": content[:-20], "a byte": content, "empty": b""}[damage])
    checkpoint = newest_readable(tmp_path, notes.append)
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.n_steps) == (older, 3)
    assert notes == [f"{newer} cannot be read and is left out"]
