"""Measuring: opponents in turn in one run, medians and minima, a quadratic fit, rows to measure with."""

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
        """Seconds of the middle run."""
        return median(self.seconds)

    @property
    def minimum(self) -> float:
        """Seconds of the fastest run."""
        return min(self.seconds)

    def as_dict(self) -> dict[str, float]:
        """For a file."""
        return {"median_s": self.median, "minimum_s": self.minimum, "runs": len(self.seconds)}


class Quadratic(NamedTuple):
    """``seconds = square * n^2 + linear * n``, neither below 0."""

    square: float
    linear: float

    def __call__(self, n: int) -> float:
        """Seconds for n rows."""
        return self.square * n * n + self.linear * n


def time_in_turn(
    opponents: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: bool = True,
    advance: Callable[[str], object] | None = None,
) -> dict[str, Timing]:
    """Wall-clock time of each opponent, all of them once a round, every second round in the opposite order.

    Args:
        opponents: what to run, by name.
        rounds: timed runs of each.
        warm: run a round before that is not timed.
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
    """The quadratic through 0 that is nearest to some times, in relation to each of them."""
    n, t = np.asarray(rows, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    terms, wanted = np.stack([n * n / t, n / t], axis=1), np.ones(len(n))
    square, linear = np.linalg.lstsq(terms, wanted, rcond=None)[0]
    if linear < 0:
        square, linear = terms[:, 0].sum() / np.square(terms[:, 0]).sum(), 0.0
    elif square < 0:
        square, linear = 0.0, terms[:, 1].sum() / np.square(terms[:, 1]).sum()
    return Quadratic(float(square), float(linear))


def random_rows(n: int, width: int, seed: int) -> Float[Tensor, "n width"]:
    """Rows with a structure: sparse mixtures of 256 directions, noise, and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(256, width, generator=generator)
    mixtures = torch.randn(n, 256, generator=generator).relu_()
    noise = torch.randn(n, width, generator=generator)
    return torch.addmm(noise, mixtures, directions, beta=0.3, alpha=1 / 16).add_(0.5)
