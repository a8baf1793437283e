"""Where the scripts write what they measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monoloss.benchmark.machine import write_measured

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json` with the machine, the versions and the commit beside the figures."""
    path = RESULTS / f"{name}.json"
    write_measured(path, result)
    return path
