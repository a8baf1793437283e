"""The settings of fine-tuning runs as YAML: read strictly, overridden by options, written with every key."""

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
    """The settings of a run and fingerprints of its data, which recognise the data after their folders have moved.

    Attributes:
        config: the settings.
        train_fingerprint: hash of the training images' ids, labels and embeddings; None before the run has started.
        validation_fingerprint: the same hash of the held-out images; None where there are none, too.
    """

    config: FineTuneConfig
    train_fingerprint: str | None = None
    validation_fingerprint: str | None = None


_FINGERPRINTS = tuple(field.name for field in fields(FineTuneRecord) if field.name != "config")


def read_finetune(file: str | Path, options: Sequence[tuple[str, str]] = ()) -> FineTuneRecord:
    """Read the YAML file of a run; options replace its values.

    Args:
        file: YAML file with fields of :class:`FineTuneConfig`; one that a run has written has fingerprints too.
        options: dotted keys and values as YAML texts, such as ``("optimisation.lr", "1e-3")``.

    Raises:
        InputError: no such file, or not YAML; an unknown key, a value of a wrong type or out of range. The error names
            the file or the dotted key.
    """
    content = read_settings(file, options)
    check_known(content, (*SETTINGS, *_FINGERPRINTS))
    config = from_mapping(FineTuneConfig, {key: content[key] for key in content if key in SETTINGS}, "")
    return from_mapping(
        FineTuneRecord, {key: content[key] for key in content if key in _FINGERPRINTS}, "", config=config
    )


def record_to_dict(record: FineTuneRecord) -> dict[str, Any]:
    """Return a record as nested plain values, with every key, defaults and unset fingerprints too."""
    content = shared_last(to_plain(record.config))
    return {**content, **{name: getattr(record, name) for name in _FINGERPRINTS}}


def finetune_text(record: FineTuneRecord) -> str:
    """Return a record as YAML text, with every key, defaults too; fingerprints that are None are left out."""
    content = record_to_dict(record)
    return to_yaml({key: value for key, value in content.items() if key not in _FINGERPRINTS or value is not None})
