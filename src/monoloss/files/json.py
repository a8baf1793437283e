"""Versioned JSON files, written atomically; undefined numbers (NaN) are stored as null."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monoloss.errors import InputError
from monoloss.files.atomic import write_text


def write_json(path: str | os.PathLike[str], content: Mapping[str, object], *, format_version: int) -> None:
    """Write a JSON file atomically, its `format_version` first. NaN (undefined) and None become null.

    Args:
        path: the file to write.
        content: nested values that JSON can hold; without the key "format_version".
        format_version: the version that `read_json` must be given.

    Raises:
        InputError: an infinite number, which JSON cannot hold; the error names its place. Nothing is written.
    """
    if "format_version" in content:
        raise InputError("content", "the key 'format_version'", "the version as the argument format_version")
    document = {"format_version": format_version, **_to_json(content, str(path), "")}
    text = json.dumps(document, indent=1, allow_nan=False)  # ASCII: any string survives, even undecodable file names
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str], *, format_version: int, null: float | None = None) -> dict[str, Any]:
    """Read a JSON file of `write_json`.

    Args:
        path: the file.
        format_version: the only version that is accepted.
        null: what a null becomes: None, or `math.nan` for files in which every null is an undefined number.

    Returns:
        The content, without "format_version".

    Raises:
        InputError: the file is missing, torn, not JSON, or of another version; the error names it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", "a readable JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"a file that is not JSON ({error})", "the file as it was written") from error
    if not isinstance(content, dict):
        raise InputError(str(path), f"a JSON {type(content).__name__}", "a JSON object with a format_version")
    version = content.pop("format_version", None)
    if version != format_version:
        got = "no format_version" if version is None else f"format_version {version!r}"
        raise InputError(str(path), got, f"format_version {format_version}, which this version of monoloss reads")
    return content if null is None else _replace_null(content, null)


def _to_json(value: Any, file: str, where: str) -> Any:
    """Copy nested values with NaN as None; refuse infinity, naming the file and the value's dotted path `where`."""
    if isinstance(value, float):
        if math.isinf(value):
            raise InputError(file, f"{value} at '{where}'", "finite numbers, or NaN for undefined")
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {key: _to_json(item, file, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item, file, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _replace_null(value: Any, null: float) -> Any:
    """Return nested JSON values with `null` in the place of every None."""
    if value is None:
        return null
    if isinstance(value, dict):
        return {key: _replace_null(item, null) for key, item in value.items()}
    return [_replace_null(item, null) for item in value] if isinstance(value, list) else value


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which are not JSON though Python's parser takes them."""
    raise ValueError(f"the constant {name}")
