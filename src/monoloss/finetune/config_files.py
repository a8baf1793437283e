"""Fine-tuning runs as YAML files: read strictly, with options over them, and written out in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from monoloss.files.dataclasses import check_known, from_mapping, to_plain
from monoloss.files.yaml import to_yaml
from monoloss.finetune.config import FineTuneConfig
from monoloss.runs.config_files import read_settings
from monoloss.runs.settings import shared_last

SETTINGS = tuple(field.name for field in fields(FineTuneConfig))


@dataclass(frozen=True)
class FineTuneRecord:
    """A run, and the data that it was made with; the folders of ``config.data`` may move, the fingerprints stay.

    Attributes:
        config: the settings.
        train_fingerprint: of the images to train on, their labels and embeddings; None before there is a run.
        validation_fingerprint: of the held-out images, likewise.
    """

    config: FineTuneConfig
    train_fingerprint: str | None = None
    validation_fingerprint: str | None = None


_FINGERPRINTS = tuple(field.name for field in fields(FineTuneRecord) if field.name != "config")


def read_finetune(file: str | Path, options: Sequence[tuple[str, str]] = ()) -> FineTuneRecord:
    """Read a run's file, with options over it.

    Args:
        file: YAML: the fields of :class:`FineTuneConfig`, and the fingerprints where a run has written it.
        options: dotted keys and values as YAML texts, such as ``("optimisation.lr", "1e-3")``.

    Raises:
        InputError: no such file, or not YAML; an unknown key, a value of a wrong type or out of range. The error names
            the file or the key, from the top.
    """
    content = read_settings(file, options)
    check_known(content, (*SETTINGS, *_FINGERPRINTS))
    config = from_mapping(FineTuneConfig, {key: content[key] for key in content if key in SETTINGS}, "")
    return from_mapping(
        FineTuneRecord, {key: content[key] for key in content if key in _FINGERPRINTS}, "", config=config
    )


def record_to_dict(record: FineTuneRecord) -> dict[str, Any]:
    """A run as nested plain values: every key, defaults too."""
    content = shared_last(to_plain(record.config))
    return {**content, **{name: getattr(record, name) for name in _FINGERPRINTS}}


def finetune_text(record: FineTuneRecord) -> str:
    """A run as YAML, every key, defaults too; fingerprints where there are any."""
    content = record_to_dict(record)
    return to_yaml({key: value for key, value in content.items() if key not in _FINGERPRINTS or value is not None})
