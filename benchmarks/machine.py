"""Progress bar and result files of the benchmark scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monoloss.benchmark.machine import write_measured
from monoloss.terminal import progress

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json`: the measures, with the machine, the versions and the commit."""
    path = RESULTS / f"{name}.json"
    write_measured(path, result)
    return path


@contextmanager
def progress_of_runs(n_runs: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar of `n_runs` runs; yield a function to call with the name of each finished run."""
    with progress("measuring", n_runs, "runs") as advance:
        yield lambda name: advance(1, f"runs; last: {name}")
