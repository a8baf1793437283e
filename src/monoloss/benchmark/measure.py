"""Tools of a measurement: timing several opponents in turn, a quadratic fit, random rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Timing(NamedTuple):
    """Seconds of each timed run of one opponent."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the median run."""
        return median(self.seconds)

    @property
    def minimum(self) -> float:
        """Seconds of the fastest run."""
        return min(self.seconds)

    def as_dict(self) -> dict[str, float]:
        """Return median, minimum and number of runs, as they stand in result files."""
        return {"median_s": self.median, "minimum_s": self.minimum, "runs": len(self.seconds)}


class Quadratic(NamedTuple):
    """``seconds = square * n^2 + linear * n``, neither below 0."""

    square: float
    linear: float

    def __call__(self, n: int) -> float:
        """Return the seconds for n rows."""
        return self.square * n * n + self.linear * n


def time_in_turn(
    opponents: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: bool = True,
    advance: Callable[[str], object] | None = None,
) -> dict[str, Timing]:
    """Measure the wall-clock time of opponents in rounds: each runs once a round, every second round in reverse order.

    Args:
        opponents: functions to time, by name.
        rounds: number of timed rounds.
        warm: run one round first that is not timed.
        advance: called with the name of an opponent after each of its runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in opponents}
    for number in range(-1 if warm else 0, rounds):
        for name in list(opponents)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            opponents[name]()
            took = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(took)
            if advance is not None:
                advance(name)
    return {name: Timing(tuple(runs)) for name, runs in seconds.items()}


def quadratic_fit(rows: Sequence[int], seconds: Sequence[float]) -> Quadratic:
    """Fit a quadratic through 0 to times by least squares of the relative errors; no coefficient is below 0."""
    n, t = np.asarray(rows, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    terms, ones = np.stack([n * n / t, n / t], axis=1), np.ones(len(n))
    square, linear = np.linalg.lstsq(terms, ones, rcond=None)[0]
    if linear < 0:
        square, linear = terms[:, 0].sum() / np.square(terms[:, 0]).sum(), 0.0
    elif square < 0:
        square, linear = 0.0, terms[:, 1].sum() / np.square(terms[:, 1]).sum()
    return Quadratic(float(square), float(linear))


def random_rows(n: int, width: int, seed: int) -> Float[Tensor, "n width"]:
    """Draw rows with structure: sparse mixtures of 256 directions, with noise and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(256, width, generator=generator)
    mixtures = torch.randn(n, 256, generator=generator).relu_()
    noise = torch.randn(n, width, generator=generator)
    return torch.addmm(noise, mixtures, directions, beta=0.3, alpha=1 / 16).add_(0.5)
