"""The folder of a run: what lies where, who may write to it, and whether it is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monoloss.data.store import FeatureStore
from monoloss.data.store_format import MANIFEST
from monoloss.errors import InputError
from monoloss.files import atomic_folder, check_new_folder, remove_temporaries
from monoloss.folder_lock import only_one
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.checkpoint_files import Checkpoint, checkpoints_in, newest_readable
from monoloss.training.config import TrainingConfig
from monoloss.training.config_files import RunConfig, first_difference, read_config, run_to_dict, write_config

CONFIG_NAME = "config.yaml"


class RunFolder:
    """``config.yaml``, ``logs/``, ``checkpoints/`` for going on, and at the end ``evaluations/`` and ``saes/``.

    Args:
        path: the folder; it need not be there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise InputError("run", "an empty text", "a folder")
        self.path = Path(path)
        self.config_file = self.path / CONFIG_NAME
        self.checkpoints, self.saes = self.path / "checkpoints", self.path / "saes"
        self.evaluations = self.path / "evaluations"

    @property
    def is_finished(self) -> bool:
        """The trained SAEs are there; they appear last and all together."""
        return self.saes.is_dir()

    @property
    def holds_a_run(self) -> bool:
        """Something was saved here."""
        return self.is_finished or bool(checkpoints_in(self.checkpoints))

    def check(self, resume: bool) -> None:
        """Refuse a place where no folder can be, or another run where a new one is to be; before anything is made.

        A run of which nothing was saved holds nothing: its place may be taken.
        """
        check_place(self.path, resume, holds_a_run=self.holds_a_run, wrote_config=_is_of_a_run)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder; nobody else may train in it meanwhile. A killed process leaves no claim behind."""
        with claimed(self.path, (self.checkpoints, self.evaluations)):
            yield

    def settle_config(self, config: RunConfig, resume: bool) -> None:
        """Write ``config.yaml``; of a run that goes on it is there already and must say the same.

        Raises:
            InputError: it says something else; the error names the first key.
        """
        if resume and self.config_file.exists():
            check_same(str(self.config_file), run_to_dict(read_config(self.config_file)), run_to_dict(config))
        else:
            write_config(self.config_file, config)

    def newest_checkpoint(self, identity: Mapping[str, Any], note: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that can be read; ``note`` is told of those that cannot.

        Raises:
            InputError: it is of a run under another configuration, or on other data.
        """
        found = newest_readable(self.checkpoints, note)
        if found is not None:
            check_same(str(found.path), found.identity, identity)
        return found

    def save_saes(self, saes: Mapping[str, SparseAutoencoder], summaries: Mapping[str, Mapping[str, float]]) -> None:
        """Write the trained SAEs, each as a checkpoint folder; with this the run is finished."""
        with atomic_folder(self.saes) as temporary:
            for name, sae in saes.items():
                try:
                    sae.save_pretrained(temporary / name, evaluation=summaries.get(name))
                except InputError as error:  # weights that are no numbers: the training went astray
                    raise InputError(f"saes.{name}: {error.argument}", error.came, error.needed) from error

    def load_saes(self, names: Iterable[str]) -> dict[str, SparseAutoencoder]:
        """The trained SAEs of a finished run."""
        return {name: SparseAutoencoder.from_pretrained(self.saes / name) for name in names}


def check_place(path: Path, resume: bool, *, holds_a_run: bool, wrote_config: Callable[[Path], bool]) -> None:
    """Refuse a place where no run can be; ``wrote_config`` says whether a run has written a file.

    Raises:
        InputError: no folder can be there; there is another run, a feature store, or somebody's ``config.yaml``.
    """
    config_file = path / CONFIG_NAME
    check_new_folder(path, allow_full=True)
    if resume:
        if holds_a_run and not config_file.is_file():
            raise InputError(str(config_file), "no such file", "the config.yaml of the run that is to go on")
    elif holds_a_run:
        needed = "a new folder, or --resume (resume=True) to go on with it"
        raise InputError(str(path), "a folder that holds a run", needed)
    if (path / MANIFEST).exists():
        raise InputError(str(path), "the folder of a feature store", "a folder of its own for the run")
    if config_file.exists() and not wrote_config(config_file):
        raise InputError(str(config_file), "a file that no run has written", "a folder of its own for the run")


@contextmanager
def claimed(path: Path, folders: Iterable[Path]) -> Iterator[None]:
    """Make the folder of a run, and clean it and its ``folders`` of what killed writers left; nobody else may train."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        came = f"a place that cannot be written ({error.strerror})"
        raise InputError(str(path), came, "another") from error
    with only_one(path, "training"):
        if (path / CONFIG_NAME).exists():
            for folder in (path, *folders):
                remove_temporaries(folder)
        yield


def run_config(store: FeatureStore, config: TrainingConfig, validation: FeatureStore | None) -> RunConfig:
    """All that a run on these stores is made of."""
    places: dict[str, FeatureStore] = {"store": store} | ({} if validation is None else {"validation": validation})
    folders = {name: str(place.folder.resolve()) for name, place in places.items()}
    fingerprints = {f"{name}_fingerprint": place.fingerprint for name, place in places.items()}
    return RunConfig(config, **folders, **fingerprints)


def check_same(
    where: str, written: Mapping[str, Any], config: Mapping[str, Any], but: Sequence[str] = ("store", "validation")
) -> None:
    """Refuse to go on with a run under another configuration or on other data; folders (``but``) may have moved."""
    differs = first_difference(written, config, but=but)
    if differs is not None:
        key, before, now = differs
        raise InputError(key, f"{now!r}", f"{before!r} as in {where}, or another folder for a new run")


def _is_of_a_run(file: Path) -> bool:
    """Whether a run has written this configuration: it then names its data by fingerprint."""
    try:
        return read_config(file).store_fingerprint is not None
    except InputError:
        return False
