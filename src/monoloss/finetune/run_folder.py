"""The files of a fine-tuning run: its kind of `RunFolder`, the measures of its validation, and its model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monoloss.files.json import read_json, write_json
from monoloss.finetune.config_files import read_finetune, record_to_dict
from monoloss.finetune.model.folder import save_finetuned
from monoloss.finetune.model.model import FineTuneModel
from monoloss.runs.folder import RunFolder, RunKind
from monoloss.runs.layout import MODEL

_VALIDATION = "validation.json"
_FORMAT_VERSION = 1


def _read(file: Path) -> dict[str, Any]:
    """Read a run's ``config.yaml`` as nested plain values."""
    return record_to_dict(read_finetune(file))


FINETUNE_RUN = RunKind(MODEL, _read, "train_fingerprint", movable=("data",))  # fingerprints identify the data


def finish(folder: RunFolder, model: FineTuneModel, measures: Mapping[str, float]) -> None:
    """Write ``validation.json``, if there are measures, and the model folder, which marks the run as finished."""
    if measures:
        write_json(folder.path / _VALIDATION, dict(measures), format_version=_FORMAT_VERSION)
    save_finetuned(model, folder.result)


def validation_measures(run: str | Path) -> dict[str, float]:
    """Read the measures of a run's last validation; empty where it had no held-out images, or is not finished."""
    file = Path(run) / _VALIDATION
    if not file.is_file():
        return {}
    content = read_json(file, format_version=_FORMAT_VERSION, null=float("nan"))
    return {key: float(value) for key, value in content.items()}
