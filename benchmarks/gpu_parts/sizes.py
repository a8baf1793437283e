"""Sizes and time of a run on a GPU, and of its rehearsal on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


def _seconds(**parts: float) -> Mapping[str, float]:
    return MappingProxyType(parts)


@dataclass(frozen=True)
class Sizes:
    """Sizes of models and data, and the time of each part.

    Attributes:
        width: width of the rows, d.
        n_latents: latents of the SAEs, m.
        k: active latents of a row.
        bandwidth: of JumpReLU.
        checked_rows: rows on which GPU and CPU, or two opponents, are compared.
        score_rows: rows that are scored.
        score_batches: batch sizes in which they are scored.
        pairs: numbers of rows of which all pairs are scored.
        step_batches: rows of a training step.
        wide_latents: latents of further TopK SAEs whose training step is timed, with the first of `step_batches`.
        product_rows: rows of the sparse codes whose products are timed.
        product_latents: numbers of latents of these codes.
        product_ks: active latents of a row of these codes.
        profiled_steps: steps that the profiler sees.
        rounds: timed samples of each opponent, if there is time.
        sample_s: least length of a sample, seconds: short runs are repeated within it.
        seconds: time of each part; when it is over no further sample begins.
        total_s: time after which no further case begins.
    """

    width: int = 768
    n_latents: int = 8192
    k: int = 64
    bandwidth: float = 1e-3
    checked_rows: int = 512
    score_rows: int = 2**16
    score_batches: tuple[int, ...] = (2048, 16384)
    pairs: tuple[int, ...] = (2**10, 2**11, 2**12, 2**13, 2**14)
    step_batches: tuple[int, ...] = (2048, 16384)
    wide_latents: tuple[int, ...] = (2**16, 2**18)
    product_rows: int = 2048
    product_latents: tuple[int, ...] = (2**13, 2**16, 2**18)
    product_ks: tuple[int, ...] = (16, 64, 256, 1024)
    profiled_steps: int = 5
    rounds: int = 7
    sample_s: float = 0.02
    seconds: Mapping[str, float] = field(
        default_factory=lambda: _seconds(correctness=50, score=80, step=80, waits=35, products=45, memory=30)
    )
    total_s: float = 340.0


FULL = Sizes()
REHEARSAL = Sizes(
    width=32,
    n_latents=512,
    k=8,
    bandwidth=0.02,  # wide enough to hold some entries of so few rows
    checked_rows=96,
    score_rows=512,
    score_batches=(128, 256),
    pairs=(32, 64),
    step_batches=(64, 128),
    wide_latents=(1024,),
    product_rows=64,
    product_latents=(512, 1024),
    product_ks=(4, 16, 128),
    profiled_steps=2,
    rounds=2,
    sample_s=0.002,
    seconds=_seconds(correctness=20, score=20, step=20, waits=20, products=20, memory=20),
)
