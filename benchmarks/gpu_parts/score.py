"""Part "score": rows through a TopK SAE to scores, ours and in two dense passes, and over all pairs of fewer rows.

The time is that from rows on the device to scores on the device, with the SAE's pass. Pairs get the codes. The paper's
seconds, on an H100, stand beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gpu_parts.bench import Bench, Case, Line, ratio
from gpu_parts.models import make_sae
from monoloss import MonoScore, SparseActivations, SparseAutoencoder
from monoloss.benchmark.dense import DenseSae, TwoPassSums, two_pass_score, two_pass_score_of_sae
from monoloss.benchmark.measure import random_rows
from monoloss.benchmark.pairwise import pairwise_score, pairwise_score_as_product
from monoloss.functional.score import n_eff

PAPER_PAIRS_S = {2**10: 2.1, 2**12: 8.3, 2**14: 97.0, 2**15: 380.0, 2**16: 1516.0}
PAPER_LINEAR_S = {2**14: 0.3, 2**16: 1.2}
TOLERANCE = 1e-4  # of float32 scores, summed in float32 by the opponents
MIN_N_EFF = 1.1  # scores of fewer effective rows are mostly rounding error and not compared
PAIRS, PRODUCT, OURS = "pairs", "pairs as product", "ours"


class Scoring:
    """Rows and an SAE on the device, and ways to the scores of its latents.

    Args:
        bench: device and sizes.
        n: number of rows.
    """

    def __init__(self, bench: Bench, n: int) -> None:
        sizes, self.k = bench.sizes, bench.sizes.k
        self.rows = random_rows(n, sizes.width, 0).to(bench.device)
        self.sae: SparseAutoencoder = make_sae("topk", sizes).eval().to(bench.device)
        self.dense = DenseSae(self.sae)
        self.metric = MonoScore(sizes.width, sizes.n_latents).to(bench.device)
        self.sums = TwoPassSums(sizes.width, sizes.n_latents, device=bench.device)

    def ours(self, batch_size: int, codes: Sequence[SparseActivations] | None = None) -> Tensor:
        """Score all rows by the library; encode them if their codes are not given, batch by batch."""
        self.metric.reset()
        for number, batch in enumerate(self.rows.split(batch_size)):
            self.metric.update(batch, self.sae.encode(batch) if codes is None else codes[number])
        scores: Tensor = self.metric.compute()
        return scores

    def two_passes(self, batch_size: int, *, lean: bool) -> Tensor:
        """Score all rows in two dense passes."""
        return two_pass_score_of_sae(self.dense, self.rows.split(batch_size), self.sums, lean=lean)

    def floor(self, batch_size: int) -> None:
        """Compute only what no way can leave out: the encoder's product and the largest of each row."""
        for batch in self.rows.split(batch_size):
            pre = self.sae.pre_activations(self.sae.scale(batch).scaled)
            pre.topk(self.k, dim=1, sorted=False)


def cases(bench: Bench) -> dict[str, Case]:
    """Return the cases of this part by name."""
    sizes = bench.sizes
    seconds: dict[str, tuple[int, float]] = {}
    found: dict[str, Case] = {f"{sizes.score_rows} rows": partial(_rows, bench)}
    for n in sizes.pairs:
        found[f"{n} rows in pairs"] = partial(_pairs, bench, n, seconds)
    return found


@torch.no_grad()
def _rows(bench: Bench, deadline: float) -> Line:
    """Assert equal scores of some rows, then time all of them in batches of each size."""
    sizes = bench.sizes
    agreement = assert_equal_scores(bench)
    scoring = Scoring(bench, sizes.score_rows)
    runs: dict[str, Callable[[], object]] = {}
    for size in sizes.score_batches:
        codes = [scoring.sae.encode(batch) for batch in scoring.rows.split(size)]
        runs |= {
            f"floor, batch {size}": partial(scoring.floor, size),
            f"{OURS}, batch {size}": partial(scoring.ours, size),
            f"{OURS}, codes given, batch {size}": partial(scoring.ours, size, codes),
            f"dense, lean, batch {size}": partial(scoring.two_passes, size, lean=True),
            f"dense, plain, batch {size}": partial(scoring.two_passes, size, lean=False),
        }
    times = bench.times(runs, deadline)
    return {
        "largest_difference": agreement,
        "times": times,
        "dense_over_ours": {
            str(size): ratio(times, f"dense, lean, batch {size}", f"{OURS}, batch {size}")
            for size in sizes.score_batches
        },
        "paper_linear_s": PAPER_LINEAR_S.get(sizes.score_rows),
        "paper_pairs_s": PAPER_PAIRS_S.get(sizes.score_rows),
    }


@torch.no_grad()
def _pairs(bench: Bench, n: int, seconds: dict[str, tuple[int, float]], deadline: float) -> Line:
    """Time the scores of n rows over all pairs, with ours on the same codes; not what would take too long.

    `seconds` has rows and time of each way over pairs at its last number of rows.
    """
    sizes = bench.sizes
    scoring = Scoring(bench, n)
    codes = [scoring.sae.encode(batch) for batch in scoring.rows.split(sizes.step_batches[0])]
    dense = torch.cat([each.to_dense() for each in codes])
    runs: dict[str, Callable[[], object]] = {
        OURS: partial(scoring.ours, sizes.step_batches[0], codes),
        PRODUCT: partial(pairwise_score_as_product, scoring.rows, dense),
        PAIRS: partial(pairwise_score, scoring.rows, dense, _latents_per_block(bench)),
    }
    left_out: Line = {}
    for name in (PRODUCT, PAIRS):
        rows_before, before = seconds.get(name, (n, 0.0))
        expected = before * (n / rows_before) ** 2
        if expected > deadline - time.perf_counter():
            left_out[name] = {"skipped": f"it would take about {expected:.0f} s"}
            del runs[name]
    times = bench.times(runs, deadline)
    for name in (PRODUCT, PAIRS):
        if "median_s" in times.get(name, {}):
            seconds[name] = n, times[name]["median_s"]
    return {
        "times": {**times, **left_out},
        "paper_pairs_s": PAPER_PAIRS_S.get(n),
        "paper_linear_s": PAPER_LINEAR_S.get(n),
    }


def _latents_per_block(bench: Bench) -> int:
    """Return all latents for a GPU, whose memory is fast; a CPU has blocks that stay in its cache."""
    return bench.sizes.n_latents if bench.is_gpu else min(256, bench.sizes.n_latents)


@torch.no_grad()
def assert_equal_scores(bench: Bench) -> float:
    """Assert that all ways give the same scores for the same codes; return the largest difference."""
    scoring = Scoring(bench, bench.sizes.pairs[0])
    rows, codes = scoring.rows, scoring.sae.encode(scoring.rows)
    dense = codes.to_dense()
    expected = scoring.ours(len(rows), [codes])
    compared = n_eff(scoring.metric.sums) >= MIN_N_EFF
    half = len(rows) // 2
    ways = {
        PAIRS: pairwise_score(rows, dense, _latents_per_block(bench)),
        PRODUCT: pairwise_score_as_product(rows, dense),
        "dense": two_pass_score(rows.split(half), lambda i: dense.split(half)[i], scoring.sums),
    }
    largest = 0.0
    for name, scores in ways.items():
        both = scores.double()[compared], expected.double()[compared]
        assert torch.equal(both[0].isnan(), both[1].isnan()), f"{name}: other latents have a score"
        largest = max(largest, float((both[0] - both[1]).nan_to_num().abs().max()))
        assert largest <= TOLERANCE, f"{name}: scores differ by {largest:.1e}"
    return largest
