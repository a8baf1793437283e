"""Configuration files (YAML) of runs: reading them with options that replace values, and comparing two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monoloss.checks import check_type
from monoloss.errors import InputError
from monoloss.files.dataclasses import to_plain
from monoloss.files.yaml import from_yaml


def read_settings(
    file: str | Path,
    options: Sequence[tuple[str, str]] = (),
    split: Callable[[Mapping[str, Any], str], list[str]] | None = None,
) -> dict[str, Any]:
    """Read a run's file as nested plain values, in which options replace values.

    Args:
        file: YAML; anchors and ``<<`` work.
        options: dotted keys and values as YAML texts, such as ``("optimisation.lr", "1e-3")``.
        split: ``split(content, key)`` splits an option's dotted key into the keys of the nested content; None: at dots.

    Raises:
        InputError: no such file, or not YAML; an option whose key goes through a value that has no keys.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or "a file that is not text"
        raise InputError(str(file), got, "a readable YAML file") from error
    content = from_yaml(text, str(file))
    check_type(str(file), content, Mapping, "a YAML mapping of keys and values")
    try:
        content = to_plain(content)  # without aliases, so that an option changes one place
    except RecursionError:
        raise InputError(str(file), "an anchor inside of itself", "nested keys and values") from None
    for key, value in options:
        _set(content, key, key.split(".") if split is None else split(content, key), from_yaml(value, f"--{key}"))
    return dict(content)


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str] = (), prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """Return the first dotted key at which two nested mappings differ, with its value in each; None if they are equal.

    Top-level keys in ``ignored`` are not compared; ``prefix`` precedes the key.
    """
    for key in dict.fromkeys([*before, *now]):
        if key in ignored:
            continue
        value_before, value_now = before.get(key), now.get(key)
        if isinstance(value_before, Mapping) and isinstance(value_now, Mapping):
            difference = first_difference(value_before, value_now, prefix=f"{prefix}{key}.")
            if difference is not None:
                return difference
        elif value_before != value_now or (key in before) != (key in now):
            return f"{prefix}{key}", value_before, value_now
    return None


def _set(content: dict[str, Any], key: str, path: Sequence[str], value: Any) -> None:
    """Set the value at a path of nested keys, which the option ``--key`` stands for; missing mappings are made."""
    holder = content
    for depth, part in enumerate(path[:-1]):
        if holder.get(part) is None:
            holder[part] = {}
        holder = holder[part]
        check_type(".".join(path[: depth + 1]), holder, dict, f"keys and values, because of --{key}")
    holder[path[-1]] = value
