"""Data as script files: a page opened from the disk may load scripts, but may not fetch other files."""

from __future__ import annotations

import json
import math
from pathlib import Path

VARIABLE = "MONOLOSS"  # global object of the page that all files add to


def script_text(place: str, value: object, *, key: str | None = None) -> str:
    """Return a script that sets ``MONOLOSS.place``, or ``MONOLOSS.place[key]``, to a value that JSON can hold.

    Several such scripts may be loaded in any order.
    """
    start = f"window.{VARIABLE}=window.{VARIABLE}||{{}};"
    name = f"{VARIABLE}.{place}"
    if key is None:
        return f"{start}{name}={json_text(value)};\n"
    return f"{start}{name}={name}||{{}};{name}[{json_text(key)}]={json_text(value)};\n"


def json_text(value: object) -> str:
    """Return a value as JSON in ASCII and without ``<``, so that it is safe in a script within a page.

    Raises:
        ValueError: NaN or an infinity, which JSON cannot hold.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def write_script(path: Path, place: str, value: object, *, key: str | None = None) -> None:
    """Write :func:`script_text` to a file; missing parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script_text(place, value, key=key), encoding="ascii", newline="\n")


def short(value: float) -> float | None:
    """Round a number to six significant digits; None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def short_all(values: list[float]) -> list[float | int | None]:
    """Apply :func:`short` to many numbers; whole ones become integers, which are shorter in JSON."""
    shortened = map(short, values)
    return [int(value) if value is not None and value.is_integer() else value for value in shortened]
