"""Conversion of nested plain values (of a YAML or JSON file) to dataclasses and back; errors name the dotted key."""

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
    """Build a dataclass from a mapping of its fields.

    Args:
        kind: the dataclass.
        content: the mapping.
        where: the mapping's dotted key, for errors; "" at the top.
        complete: require every field. Otherwise a missing field has its default; where the default is itself a
            dataclass, missing keys of a nested mapping have their values in that default.
        given: values of fields that the mapping must not hold.

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
    except InputError as error:  # its argument is the field alone, or "kind.field"
        argument = error.argument.removeprefix(f"{where.rpartition('.')[2]}.") if where else error.argument
        raise InputError(f"{prefix}{argument}", error.got, error.expected) from None


def read_field(hint: Any, value: Any, where: str, *, complete: bool = False) -> Any:
    """Convert a plain value to the type of an annotation; the key ``variant`` chooses from a union of dataclasses.

    A list becomes a tuple, and an integer a float where the annotation says so; nothing else is converted. ``where`` is
    the value's dotted key, for errors.

    Raises:
        InputError: as ``from_mapping``.
    """
    if get_origin(hint) in (Union, UnionType):
        kinds = [choice for choice in get_args(hint) if choice is not NoneType]
        if value is None and len(kinds) < len(get_args(hint)):
            return None
        if len(kinds) > 1:
            return _read_variant(kinds, value, where, complete=complete)
        return _read_single(kinds[0], value, where, complete=complete, expected=_expected(hint))
    return _read_single(hint, value, where, complete=complete, expected=_expected(hint))


def _read_single(hint: Any, value: Any, where: str, *, complete: bool, expected: str) -> Any:
    """Convert a value whose annotation is no union; ``expected`` is the error's text for a wrong type."""
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
    """Convert nested dataclasses, mappings and sequences to new dicts and lists of plain values."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def check_known(content: Iterable[object], known_keys: Sequence[object], prefix: str = "") -> None:
    """Refuse keys that are not in ``known_keys``; ``prefix`` precedes the key in the error."""
    for key in content:
        if key not in known_keys:
            raise unknown_key(prefix, key, known_keys)


def unknown_key(prefix: str, key: object, known_keys: Sequence[object]) -> InputError:
    """Return the error for an unknown key: it suggests the most similar known key and lists them all."""
    names = [str(name) for name in known_keys]
    near = get_close_matches(str(key), names, n=1)
    meant = f"{near[0]}, if that was meant, or " if near else ""
    return InputError(f"{prefix}{key}", "an unknown key", f"{meant}one of {', '.join(names) or 'none at all'}")


def _filled(field: Field[Any], content: Any) -> Any:
    """Complete a mapping for a nested dataclass from the field's default; return any other content as it is."""
    default = field.default if field.default is not MISSING else None
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return {**to_plain(default), **content} if is_dataclass(default) and isinstance(content, Mapping) else content


def _read_variant(kinds: Sequence[Any], value: Any, where: str, *, complete: bool) -> Any:
    """Build the dataclass, of several, that the key ``variant`` of a mapping names."""
    check_type(where, value, Mapping, "keys and values")
    variants = {get_args(get_type_hints(kind)[_VARIANT])[0]: kind for kind in kinds}
    expected = "one of " + ", ".join(variants)
    if _VARIANT not in value:
        raise InputError(f"{where}.{_VARIANT}", "nothing", expected)
    kind = variants.get(value[_VARIANT]) if isinstance(value[_VARIANT], str) else None
    if kind is None:
        raise InputError(f"{where}.{_VARIANT}", repr(value[_VARIANT]), expected)
    names = [field.name for field in fields(kind)]
    for key in value:
        others = [variant for variant, other in variants.items() if key in {field.name for field in fields(other)}]
        if key not in names and others:
            got, expected = f"an option of {', '.join(others)}", f"those of {value[_VARIANT]}: {', '.join(names)}"
            raise InputError(f"{where}.{key}", got, expected)
    return from_mapping(kind, value, where, complete=complete)


def _expected(hint: Any) -> str:
    """Describe the values that an annotation allows, for errors."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, choices))
    if origin in (Union, UnionType) and NoneType in choices:
        (kind,) = (choice for choice in choices if choice is not NoneType)
        return f"{_expected(kind)}, or null"
    return _WORDS.get(hint, "keys and values")
