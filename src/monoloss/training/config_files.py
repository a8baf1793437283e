"""Configuration files of training runs: reading YAML strictly, with options that replace values, and writing it.

The keys are the fields of ``TrainingConfig``, with the SAEs as a mapping by name; beside them ``store`` and
``validation`` (folders), their fingerprints, and ``sweep`` (several ``mono_weight`` for one SAE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from monoloss.checks import check_number, check_type
from monoloss.errors import InputError
from monoloss.files.dataclasses import check_known, from_mapping, to_plain, unknown_key
from monoloss.files.yaml import to_yaml
from monoloss.runs.config_files import read_settings
from monoloss.runs.settings import shared_last
from monoloss.training.config import MONO_OPTIONS, TrainingConfig


@dataclass(frozen=True)
class TrainingRecord:
    """The configuration of a run together with its data.

    Attributes:
        training: the SAEs and how they are trained.
        store: folder of the feature store to train on; None if not named yet.
        store_fingerprint: the ``fingerprint`` that this store must have; None for any.
        validation: folder of the feature store with held-out rows; None for no validation.
        validation_fingerprint: the ``fingerprint`` that this store must have; None for any.
    """

    training: TrainingConfig
    store: str | None = None
    store_fingerprint: str | None = None
    validation: str | None = None
    validation_fingerprint: str | None = None


_STORES = tuple(field.name for field in fields(TrainingRecord) if field.name != "training")
_FIELDS = tuple(field.name for field in fields(TrainingConfig))
_SWEEP = "sweep"
SETTINGS = (*_FIELDS, _SWEEP)
KEYS = (*_STORES, *SETTINGS)


def read_config(file: str | Path, options: Sequence[tuple[str, str]] = ()) -> TrainingRecord:
    """Read a run's file, in which options replace values.

    Args:
        file: YAML; anchors and ``<<`` work.
        options: dotted keys and values as YAML texts, such as ``("saes.base.mono_weight", "3e-4")``.

    Raises:
        InputError: no such file, or not YAML; an unknown key, an option of another SAE variant, a value of a wrong type
            or out of range. The error names the file or the dotted key.
    """
    return run_from_dict(read_settings(file, options, _split))


def run_from_dict(content: Mapping[str, Any]) -> TrainingRecord:
    """Build a run's record from the nested plain values of its file; missing keys have their defaults.

    Raises:
        InputError: as ``read_config``.
    """
    check_known(content, KEYS)
    content = _swept(content)
    training = from_mapping(TrainingConfig, {key: content[key] for key in content if key in _FIELDS}, "")
    return from_mapping(TrainingRecord, {key: content[key] for key in content if key in _STORES}, "", training=training)


def run_to_dict(config: TrainingRecord) -> dict[str, Any]:
    """Convert a run's record to nested plain values: every key, defaults included."""
    stores = {name: getattr(config, name) for name in _STORES}
    return {**stores, **shared_last(to_plain(config.training))}


def config_text(config: TrainingRecord) -> str:
    """Write a run's record as YAML text: every key, defaults included."""
    return to_yaml(run_to_dict(config))


def _swept(content: Mapping[str, Any]) -> dict[str, Any]:
    """Replace ``sweep`` in a file's content: each SAE that it names becomes one SAE for each of its weights."""
    sweep, saes = content.get(_SWEEP) or {}, content.get("saes") or {}
    check_type(_SWEEP, sweep, Mapping, "a mapping from names of SAEs to lists of weights")
    check_type("saes", saes, Mapping, "a mapping from names to SAEs")
    expanded: dict[str, Any] = {}
    for name, settings in saes.items():
        for weight in _weights(name, sweep[name]) if name in sweep else [None]:
            new_name = name if weight is None else f"{name}-{float(weight)!r}"
            if new_name in expanded or (weight is not None and new_name in saes):
                raise InputError(f"{_SWEEP}.{name}", f"{weight}, which makes {new_name!r} twice", "each name once")
            expanded[new_name] = settings if weight is None else _at_weight(settings, weight)
    check_known(sweep, tuple(saes), f"{_SWEEP}.")
    others = {key: value for key, value in content.items() if key not in (_SWEEP, "saes")}
    return {**others, "saes": expanded} if "saes" in content else others


def _at_weight(settings: object, weight: float) -> object:
    """Return the settings of a SAE with another ``mono_weight``; at 0, a baseline, without the options of MonoLoss."""
    if not isinstance(settings, Mapping):
        return settings
    unused = MONO_OPTIONS if weight == 0 else ()
    return {**{key: value for key, value in settings.items() if key not in unused}, "mono_weight": weight}


def _weights(name: str, weights: object) -> list[float]:
    """Check the weights that ``sweep`` lists for a SAE, and return them as floats."""
    check_type(f"{_SWEEP}.{name}", weights, list, "a list of weights, as in [1e-4, 3e-4]")
    assert isinstance(weights, list)  # noqa: S101 - for the type checker
    if not weights:
        raise InputError(f"{_SWEEP}.{name}", "an empty list", "at least one weight")
    for weight in weights:
        check_number(f"{_SWEEP}.{name}", weight, at_least=0.0)
    return [float(weight) for weight in weights]


def _split(content: Mapping[str, Any], key: str) -> list[str]:
    """Split a dotted key into nested keys; names of SAEs may hold dots, and a misspelt one must not make a new SAE."""
    first, _, rest = key.partition(".")
    if first == _SWEEP:
        return [first, rest] if rest else [first]
    if first != "saes" or not rest:
        return key.split(".")
    saes = content.get("saes") or {}
    check_type("saes", saes, Mapping, "a mapping from names to SAEs")
    names = [name for name in saes if isinstance(name, str)]
    matching = [name for name in names if rest == name or rest.startswith(f"{name}.")]
    if not matching:
        raise unknown_key("saes.", rest.partition(".")[0], tuple(names))
    name = max(matching, key=len)
    rest = rest[len(name) + 1 :]
    return [first, name, *(rest.split(".") if rest else [])]


def with_place(config: TrainingRecord, name: str, folder: str | None) -> TrainingRecord:
    """Return the record with another folder as its ``name`` ("store", "validation"), of any fingerprint."""
    if folder is None:
        return config
    changes: dict[str, Any] = {name: folder, f"{name}_fingerprint": None}
    return replace(config, **changes)
