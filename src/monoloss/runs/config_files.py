"""Configuration files of runs: YAML, read strictly, with options over it, and compared."""

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
    """Read a run's file as nested plain values, with options over them.

    Args:
        file: YAML; anchors and ``<<`` work.
        options: dotted keys and values as YAML texts, such as ``("optimisation.lr", "1e-3")``.
        split: the keys of the nested values that the key of an option stands for, given these; None: parted at dots.

    Raises:
        InputError: no such file, or not YAML; an option without a place.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or "a file that is not text"
        raise InputError(str(file), got, "a readable YAML file") from error
    content = from_yaml(text, str(file))
    check_type(str(file), content, Mapping, "a YAML mapping of keys and values")
    try:
        content = to_plain(content)  # anchors share what they name; an option is meant for one place
    except RecursionError:
        raise InputError(str(file), "an anchor inside of itself", "nested keys and values") from None
    for key, value in options:
        _set(content, key, key.split(".") if split is None else split(content, key), from_yaml(value, f"--{key}"))
    return dict(content)


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], but: Sequence[str] = (), prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """The first key at which two nested mappings differ, with both values; keys in ``but`` are not compared."""
    for key in dict.fromkeys([*before, *now]):
        if key in but:
            continue
        was, is_now = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            found = first_difference(was, is_now, prefix=f"{prefix}{key}.")
            if found is not None:
                return found
        elif was != is_now or (key in before) != (key in now):
            return f"{prefix}{key}", was, is_now
    return None


def _set(content: dict[str, Any], key: str, path: Sequence[str], value: Any) -> None:
    place = content
    for depth, part in enumerate(path[:-1]):
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        check_type(".".join(path[: depth + 1]), place, dict, f"keys and values, because of --{key}")
    place[path[-1]] = value
