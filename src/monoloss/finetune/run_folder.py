"""The folder of a fine-tuning run: what lies where, who may write to it, and whether it is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monoloss.errors import InputError
from monoloss.files import atomic_file, read_json, write_json
from monoloss.finetune.checkpoint import load_finetuned, save_finetuned
from monoloss.finetune.config_files import (
    FineTuneRecord,
    finetune_text,
    is_of_a_finetuning,
    read_finetune,
    record_to_dict,
)
from monoloss.finetune.model import FineTuneModel
from monoloss.training.checkpoint_files import Checkpoint, checkpoints_in, newest_readable
from monoloss.training.run_folder import CONFIG_NAME, check_place, check_same, claimed

_MOVABLE = ("data",)  # where the data lie; what they are is in the fingerprints
_FORMAT_VERSION = 1


class FineTuneFolder:
    """``config.yaml``, ``logs/``, ``checkpoints/`` for going on, and at the end ``validation.json`` and ``model/``.

    Args:
        path: the folder; it need not be there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise InputError("run", "an empty text", "a folder")
        self.path = Path(path)
        self.config_file, self.validation = self.path / CONFIG_NAME, self.path / "validation.json"
        self.checkpoints, self.model = self.path / "checkpoints", self.path / "model"

    @property
    def is_finished(self) -> bool:
        """The trained model is there; it appears last."""
        return self.model.is_dir()

    def check(self, resume: bool) -> None:
        """Refuse a place where no folder can be, or another run where a new one is to be; before anything is made."""
        holds_a_run = self.is_finished or bool(checkpoints_in(self.checkpoints))
        check_place(self.path, resume, holds_a_run=holds_a_run, wrote_config=is_of_a_finetuning)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder; nobody else may train in it meanwhile. A killed process leaves no claim behind."""
        with claimed(self.path, [self.checkpoints]):
            yield

    def settle_config(self, record: FineTuneRecord, resume: bool) -> None:
        """Write ``config.yaml``; of a run that goes on it is there already and must say the same.

        Raises:
            InputError: it says something else; the error names the first key.
        """
        if resume and self.config_file.exists():
            written = record_to_dict(read_finetune(self.config_file))
            check_same(str(self.config_file), written, record_to_dict(record), but=_MOVABLE)
        else:
            with atomic_file(self.config_file) as temporary:
                temporary.write_text(finetune_text(record), encoding="utf-8")

    def newest_checkpoint(self, identity: Mapping[str, Any], note: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that can be read; ``note`` is told of those that cannot.

        Raises:
            InputError: it is of a run under another configuration, or on other data.
        """
        found = newest_readable(self.checkpoints, note)
        if found is not None:
            check_same(str(found.path), found.identity, identity, but=_MOVABLE)
        return found

    def finish(self, model: FineTuneModel, figures: Mapping[str, float]) -> None:
        """Write the figures of the validation and the trained model; with this the run is finished."""
        if figures:
            write_json(self.validation, dict(figures), format_version=_FORMAT_VERSION)
        save_finetuned(model, self.model)

    def load_model(self) -> FineTuneModel:
        """The trained model of a finished run."""
        return load_finetuned(self.model)

    def figures(self) -> dict[str, float]:
        """What the validation of a finished run has found; nothing where it had no held-out images."""
        if not self.validation.is_file():
            return {}
        content = read_json(self.validation, format_version=_FORMAT_VERSION, null=float("nan"))
        return {key: float(value) for key, value in content.items()}
