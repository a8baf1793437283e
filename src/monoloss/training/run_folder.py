"""The folder of a run that trains SAEs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.files.atomic import atomic_folder
from monoloss.runs.folder import RunFolder, RunKind
from monoloss.runs.layout import EVALUATIONS, SAES
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.config import TrainingConfig
from monoloss.training.config_files import TrainingRecord, read_config, run_to_dict


def _read(file: Path) -> dict[str, Any]:
    return run_to_dict(read_config(file))


SAE_RUN = RunKind(SAES, _read, "store_fingerprint", movable=("store", "validation"), written=(EVALUATIONS,))


def run_config(store: FeatureStore, config: TrainingConfig, validation: FeatureStore | None) -> TrainingRecord:
    """Return the record of a run on these stores, with their folders and fingerprints."""
    stores: dict[str, FeatureStore] = {"store": store} | ({} if validation is None else {"validation": validation})
    folders = {name: str(opened.folder.resolve()) for name, opened in stores.items()}
    fingerprints = {f"{name}_fingerprint": opened.fingerprint for name, opened in stores.items()}
    return TrainingRecord(config, **folders, **fingerprints)


def save_saes(
    folder: RunFolder, saes: Mapping[str, SparseAutoencoder], summaries: Mapping[str, Mapping[str, float]]
) -> None:
    """Write each trained SAE as a model folder, with the summary of its evaluation if given; this finishes the run."""
    with atomic_folder(folder.result) as temporary:
        for name, sae in saes.items():
            try:
                sae.save_pretrained(temporary / name, evaluation=summaries.get(name))
            except InputError as error:  # NaN weights: the training has diverged
                raise InputError(f"saes.{name}: {error.argument}", error.got, error.expected) from error


def load_saes(folder: RunFolder, names: Iterable[str]) -> dict[str, SparseAutoencoder]:
    """Load the trained SAEs of a finished run."""
    return {name: SparseAutoencoder.from_pretrained(folder.result / name) for name in names}
