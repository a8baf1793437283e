"""Dataclasses from nested plain values (of a YAML or JSON file) and back: strict, errors name the key from the top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from monoloss.checks import check_choice, check_type
from monoloss.errors import InputError

BuiltT = TypeVar("BuiltT")

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_VARIANT = "variant"
_LARGE = 2**63  # no count is larger, and float() takes it


def from_mapping(kind: type[BuiltT], content: object, where: str, *, complete: bool = False, **given: Any) -> BuiltT:
    """A dataclass from a mapping of its fields.

    Args:
        kind: the dataclass.
        content: the mapping.
        where: its dotted key, for errors; "" at the top.
        complete: every field must be there. Otherwise fields that are left out keep their defaults; of a field whose
            default is itself a dataclass, keys that are left out keep what they have in that default.
        given: fields that do not come from the mapping.

    Raises:
        InputError: an unknown or missing key, a value of another type, or one that the dataclass refuses.
    """
    check_type(where or "the configuration", content, Mapping, "keys and values")
    assert isinstance(content, Mapping)  # noqa: S101 - for the type checker
    prefix = f"{where}." if where else ""
    hints, kinds = get_type_hints(kind), {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    check_known(content, [name for name in kinds if name not in given], prefix)
    values = dict(given)
    for name, field in kinds.items():
        if name in content:
            value = content[name] if complete else _filled(field, content[name])
            values[name] = read_field(hints[name], value, f"{prefix}{name}", complete=complete)
        elif name not in given and (complete or (field.default is MISSING and field.default_factory is MISSING)):
            raise InputError(f"{prefix}{name}", "nothing", _expected(hints[name]))
    try:
        return kind(**values)
    except InputError as error:  # it names the field alone, or the field with what holds it
        argument = error.argument.removeprefix(f"{where.rpartition('.')[2]}.") if where else error.argument
        raise InputError(f"{prefix}{argument}", error.got, error.expected) from None


def read_field(hint: Any, value: Any, where: str, *, complete: bool = False) -> Any:
    """A plain value as what an annotation says; a union of dataclasses is decided by the key ``variant``.

    Raises:
        InputError: as ``build``; an integer is taken where a number is asked for, nothing else is converted.
    """
    if get_origin(hint) in (Union, UnionType):
        kinds = [choice for choice in get_args(hint) if choice is not NoneType]
        if value is None and len(kinds) < len(get_args(hint)):
            return None
        if len(kinds) > 1:
            return _read_variant(kinds, value, where, complete=complete)
        return _read_one(kinds[0], value, where, complete=complete, expected=_expected(hint))
    return _read_one(hint, value, where, complete=complete, expected=_expected(hint))


def _read_one(hint: Any, value: Any, where: str, *, complete: bool, expected: str) -> Any:
    """A value of one kind."""
    origin, choices = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, where, complete=complete)
    if origin is Literal:
        check_choice(where, value, choices)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        check_type(where, value, Mapping, "keys and values")
        value = {key: read_field(choices[1], item, f"{where}.{key}", complete=complete) for key, item in value.items()}
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        check_type(where, value, list | tuple, f"a list of {_expected(choices[0])}")
        value = tuple(read_field(choices[0], item, where, complete=complete) for item in value)
    elif hint not in _WORDS:
        raise TypeError(f"no rule how a file holds {hint}")
    elif hint is float and type(value) is int and abs(value) < _LARGE:
        value = float(value)
    elif type(value) is not hint or (hint is int and abs(value) >= _LARGE):
        raise InputError(where, repr(value), expected)
    return value


def to_plain(value: Any) -> Any:
    """Nested dataclasses, mappings and sequences as new dicts, lists and plain values."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def check_known(content: Iterable[object], known: Sequence[object], prefix: str = "") -> None:
    """Refuse a key that is not among these; ``prefix`` precedes it in the error."""
    for key in content:
        if key not in known:
            raise unknown_key(prefix, key, known)


def unknown_key(prefix: str, key: object, known: Sequence[object]) -> InputError:
    """What to say of a key that there is none of."""
    names = [str(name) for name in known]
    near = get_close_matches(str(key), names, n=1)
    meant = f"{near[0]}, if that was meant, or " if near else ""
    return InputError(f"{prefix}{key}", "an unknown key", f"{meant}one of {', '.join(names) or 'none at all'}")


def _filled(field: Field[Any], content: Any) -> Any:
    """The keys of a nested dataclass over those of the field's default."""
    default = field.default if field.default is not MISSING else None
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return {**to_plain(default), **content} if is_dataclass(default) and isinstance(content, Mapping) else content


def _read_variant(kinds: Sequence[Any], value: Any, where: str, *, complete: bool) -> Any:
    """One of several dataclasses: that which ``variant`` names."""
    check_type(where, value, Mapping, "keys and values")
    variants = {get_args(get_type_hints(kind)[_VARIANT])[0]: kind for kind in kinds}
    expected = "one of " + ", ".join(variants)
    if _VARIANT not in value:
        raise InputError(f"{where}.{_VARIANT}", "nothing", expected)
    kind = variants.get(value[_VARIANT]) if isinstance(value[_VARIANT], str) else None
    if kind is None:
        raise InputError(f"{where}.{_VARIANT}", repr(value[_VARIANT]), expected)
    own = [field.name for field in fields(kind)]
    for key in value:
        others = [name for name, other in variants.items() if key in {field.name for field in fields(other)}]
        if key not in own and others:
            got, expected = f"an option of {', '.join(others)}", f"those of {value[_VARIANT]}: {', '.join(own)}"
            raise InputError(f"{where}.{key}", got, expected)
    return from_mapping(kind, value, where, complete=complete)


def _expected(hint: Any) -> str:
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, choices))
    if origin in (Union, UnionType) and NoneType in choices:
        (kind,) = (choice for choice in choices if choice is not NoneType)
        return f"{_expected(kind)}, or null"
    return _WORDS.get(hint, "keys and values")
