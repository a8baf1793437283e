"""SAE configurations as plain nested dicts and back, strictly: what files hold of them.

Everything follows from the dataclasses in `config`: a new variant, or a new field, needs no change here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from monoloss.checks import check_choice, check_type
from monoloss.errors import InputError
from monoloss.sae.config import SAE_CONFIGS, SaeConfig

_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "a text", NoneType: "nothing (null)"}
_LARGE = 2**63  # no count is larger, and float() takes it


def config_to_dict(config: SaeConfig) -> dict[str, Any]:
    """A configuration as a nested dict of plain values: every field, defaults too, ``variant`` first.

    Example:
        >>> from monoloss import BatchTopKConfig
        >>> config_to_dict(BatchTopKConfig("batch_topk", n_latents=8, k=2))["inputs"]
        {'unit_norm': True, 'center': False, 'standardise': False}
    """
    check_type("config", config, SaeConfig, SAE_CONFIGS)
    return asdict(config)


def config_from_dict(content: object, where: str = "config") -> SaeConfig:
    """The configuration that a nested dict describes: every field must be there, and no other key.

    Args:
        content: what `config_to_dict` returned.
        where: how errors call it: its keys follow, as in ``config.inputs.center``.

    Raises:
        InputError: a key that is missing or unknown, a value of another type or out of range, a variant that does not
            exist; the error names the key with its dotted path.

    Example:
        >>> from monoloss import TopKConfig
        >>> config = TopKConfig("topk", n_latents=8, k=2)
        >>> config_from_dict(config_to_dict(config)) == config
        True
    """
    check_type(where, content, Mapping, "an object of keys and values")
    variants = {get_args(get_type_hints(kind)["variant"])[0]: kind for kind in get_args(SaeConfig)}
    try:
        if "variant" not in content:  # type: ignore[operator]
            raise InputError("variant", "nothing", "one of " + ", ".join(map(repr, variants)))
        variant = content["variant"]  # type: ignore[index]
        check_choice("variant", variant, tuple(variants))
        config: SaeConfig = _build(variants[variant], content, "")
    except InputError as error:  # of the dataclasses too: they name their fields from the variant downwards
        raise InputError(f"{where}.{error.argument}", error.came, error.needed) from None
    return config


def check_keys(content: Mapping[str, object], keys: Iterable[str], prefix: str = "") -> None:
    """Refuse a mapping that lacks one of these keys or has another; ``prefix`` precedes the key in the error."""
    keys = tuple(keys)
    for key in content:
        if key not in keys:
            raise InputError(f"{prefix}{key}", "an unknown key", "one of " + ", ".join(repr(name) for name in keys))
    for key in keys:
        if key not in content:
            raise InputError(f"{prefix}{key}", "nothing", "a value for this key")


def read_value(hint: Any, value: Any, path: str) -> Any:
    """A value of a file as what the annotation ``hint`` says; ``path`` is its name in errors.

    A nested dataclass is built. Everything else must be of the type already, but for integers where a number is asked
    for.
    """
    if is_dataclass(hint):
        check_type(path, value, Mapping, "an object of keys and values")
        return _build(hint, value, f"{path}.")
    members = (hint, *get_args(hint))
    if type(value) is int and float in members and int not in members and abs(value) < _LARGE:
        value = float(value)
    if not _fits(hint, value):
        raise InputError(path, repr(value), _needed(hint))
    return value


def _build(kind: Any, content: Any, prefix: str) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    check_keys(content, names, prefix)
    return kind(**{name: read_value(hints[name], content[name], f"{prefix}{name}") for name in names})


def _fits(hint: Any, value: object) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(member, value) for member in get_args(hint))
    if hint not in _NAMES:
        raise TypeError(f"no rule how a file holds {hint}")
    return type(value) is hint and not (isinstance(value, int) and abs(value) >= _LARGE)


def _needed(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_needed(member) for member in get_args(hint))
    return _NAMES[hint]
