"""Data as script files: a page that opens from the disk may load scripts, but not fetch."""

from __future__ import annotations

import json
import math
from pathlib import Path

VARIABLE = "MONOLOSS"  # of the page, which all files fill


def script_text(place: str, value: object, *, key: str | None = None) -> str:
    r"""A script that sets ``MONOLOSS.place``, or ``MONOLOSS.place[key]``; scripts may be loaded in any order.

    Example:
        >>> script_text("blocks", [1, None], key="run-0/0")
        'window.MONOLOSS=window.MONOLOSS||{};MONOLOSS.blocks=MONOLOSS.blocks||{};MONOLOSS.blocks["run-0/0"]=[1,null];\n'
    """
    start = f"window.{VARIABLE}=window.{VARIABLE}||{{}};"
    name = f"{VARIABLE}.{place}"
    if key is None:
        return f"{start}{name}={json_text(value)};\n"
    return f"{start}{name}={name}||{{}};{name}[{json_text(key)}]={json_text(value)};\n"


def json_text(value: object) -> str:
    r"""JSON that may stand in a script, also within a page: ASCII, without ``<``.

    Raises:
        ValueError: NaN or an infinity, which JSON cannot hold.

    Example:
        >>> json_text("</script>")
        '"\\u003c/script>"'
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def write_script(path: Path, place: str, value: object, *, key: str | None = None) -> None:
    """Write :func:`script_text` as a file; missing parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script_text(place, value, key=key), encoding="ascii", newline="\n")


def short(value: float) -> float | None:
    """A number with six significant digits; None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def short_all(values: list[float]) -> list[float | int | None]:
    """The same of many; whole numbers without a fraction, which takes less room."""
    shortened = map(short, values)
    return [int(value) if value is not None and value.is_integer() else value for value in shortened]
