"""The folder of a resumable run: its files, a lock against other processes, and whether the run is finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monoloss.data.store.format import MANIFEST
from monoloss.errors import InputError
from monoloss.files.atomic import atomic_file, check_new_folder, remove_temporaries
from monoloss.files.lock import only_one
from monoloss.files.yaml import to_yaml
from monoloss.runs.checkpoints import Checkpoint, checkpoints_in, newest_readable
from monoloss.runs.config_files import first_difference
from monoloss.runs.layout import CHECKPOINTS, CONFIG_FILE


@dataclass(frozen=True)
class RunKind:
    """The differences between runs that train SAEs and runs that fine-tune."""

    result: str
    """Name of the folder with the trained models; it is written last and atomically, so it marks a finished run."""

    read: Callable[[Path], Mapping[str, Any]]
    """Reads a ``config.yaml`` as nested plain values; raises `InputError` for one of another kind of run."""

    fingerprint: str
    """Key of ``config.yaml`` that only a run fills in, never a user."""

    movable: tuple[str, ...]
    """Keys of ``config.yaml`` that may differ when a run is resumed: the paths of its data."""

    written: tuple[str, ...] = ()
    """Names of folders, beside the checkpoints, in which a killed process may leave temporary folders."""


class RunFolder:
    """The folder of a run: ``config.yaml``, ``logs/``, ``checkpoints/``, and at the end the folder of the results.

    Args:
        path: the folder; it need not exist.
        kind: the kind of the run.
    """

    def __init__(self, path: str | os.PathLike[str], kind: RunKind) -> None:
        if not os.fspath(path):
            raise InputError("run", "an empty text", "a folder")
        self.path, self.kind = Path(path), kind
        self.config_file = self.path / CONFIG_FILE
        self.checkpoints, self.result = self.path / CHECKPOINTS, self.path / kind.result

    @property
    def is_finished(self) -> bool:
        """Whether the folder of the results exists."""
        return self.result.is_dir()

    @property
    def holds_a_run(self) -> bool:
        """Whether the folder has results or a checkpoint."""
        return self.is_finished or bool(checkpoints_in(self.checkpoints))

    def check(self, resume: bool) -> None:
        """Refuse, before anything is written, a folder that a new run (or, with ``resume``, an old one) cannot use.

        A run without results and checkpoints does not count: its folder may be taken.

        Raises:
            InputError: the folder cannot be made; it holds another run, a feature store, or a ``config.yaml`` that no
                run has written; or a run that is to be resumed has no ``config.yaml``.
        """
        check_new_folder(self.path, allow_full=True)
        if resume:
            if self.holds_a_run and not self.config_file.is_file():
                raise InputError(str(self.config_file), "no such file", "the config.yaml of the run to resume")
        elif self.holds_a_run:
            expected = "a new folder, or --resume (resume=True) to resume it"
            raise InputError(str(self.path), "a folder that holds a run", expected)
        if (self.path / MANIFEST).exists():
            raise InputError(str(self.path), "the folder of a feature store", "a folder of its own for the run")
        if self.config_file.exists() and not self._wrote_config():
            raise InputError(str(self.config_file), "a file that no run has written", "a folder of its own for the run")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder and lock it for a block, so that no other process trains in it.

        The lock of a killed process is gone with it; temporary folders that it left are deleted.

        Raises:
            InputError: the folder cannot be written, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            got = f"a place that cannot be written ({error.strerror})"
            raise InputError(str(self.path), got, "another") from error
        with only_one(self.path, "training"):
            if self.config_file.exists():
                for folder in (self.path, self.checkpoints, *(self.path / name for name in self.kind.written)):
                    remove_temporaries(folder)
            yield

    def write_or_check_config(self, config: Mapping[str, Any], resume: bool) -> None:
        """Write ``config.yaml``; when resuming, check that the existing one is equal.

        Raises:
            InputError: the existing file differs; the error names the first key that does.
        """
        if resume and self.config_file.exists():
            self._check_same(self.config_file, self.kind.read(self.config_file), config)
        else:
            with atomic_file(self.config_file) as temporary:
                temporary.write_text(to_yaml(config), encoding="utf-8")

    def newest_checkpoint(self, identity: Mapping[str, Any], note: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, or None; ``note`` gets a sentence about each newer, damaged one.

        Raises:
            InputError: the checkpoint is of a run with another configuration or other data than ``identity`` says.
        """
        checkpoint = newest_readable(self.checkpoints, note)
        if checkpoint is not None:
            self._check_same(checkpoint.path, checkpoint.identity, identity)
        return checkpoint

    def _check_same(self, file: Path, written: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Refuse to resume if the configuration in ``file`` and the present one differ in a key that is not movable."""
        difference = first_difference(written, config, ignored=self.kind.movable)
        if difference is not None:
            key, before, now = difference
            raise InputError(key, f"{now!r}", f"{before!r} as in {file}, or another folder for a new run")

    def _wrote_config(self) -> bool:
        """Whether a run of this kind has written ``config.yaml``, which then has the data's fingerprint."""
        try:
            return self.kind.read(self.config_file).get(self.kind.fingerprint) is not None
        except InputError:
            return False
