"""Progress of the runs, and the files of what they measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monoloss.benchmark.machine import write_measured
from monoloss.terminal import progress

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json` with the machine, the versions and the commit beside the figures."""
    path = RESULTS / f"{name}.json"
    write_measured(path, result)
    return path


@contextmanager
def progress_of_runs(n_runs: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar of some runs; the function that it gives is called with the name of each that is done."""
    with progress("measuring", n_runs, "runs") as advance:
        yield lambda name: advance(1, f"runs; last: {name}")
