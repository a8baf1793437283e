"""Part "memory": the most memory of the GPU that a training step and the scoring of rows need, each alone on it.

In a rehearsal the memory is that of the process since its start, which says nothing about a case.
"""

from __future__ import annotations

from functools import partial

import torch

from gpu_parts.bench import Bench, Case, Line, told
from gpu_parts.models import make_sae, step_cases, trainings
from gpu_parts.score import Scoring
from monoloss.benchmark.measure import random_rows


def cases(bench: Bench) -> dict[str, Case]:
    """Return the cases of this part by name."""
    steps = {f"step: {name}": case for name, case in step_cases(bench, _step).items()}
    return steps | {f"score: {bench.sizes.score_rows} rows": partial(_score, bench)}


def _step(bench: Bench, kind: str, n: int, n_latents: int, _deadline: float) -> Line:
    """Measure two steps of each training, with its model, gradients and optimiser, without the rows."""
    rows = random_rows(n, bench.sizes.width, 0).to(bench.device)
    sae = make_sae(kind, bench.sizes, n_latents).to(bench.device)

    def two_steps(name: str) -> None:
        """Take two steps: the first allocates the optimiser's state."""
        training = trainings(kind, sae)[name]()
        for _ in range(2):
            training.step(rows)

    found: Line = {}
    for name in trainings(kind, sae):
        with told(found, name, bench):
            peak = bench.peak_mb(partial(two_steps, name))
            found[name] = round(peak, 1)
    return {"peak_mb": found}


@torch.no_grad()
def _score(bench: Bench, _deadline: float) -> Line:
    """Measure the scoring of rows beyond the rows, the models and the sums."""
    scoring, found = Scoring(bench, bench.sizes.score_rows), Line()
    for size in bench.sizes.score_batches:
        runs = {"ours": partial(scoring.ours, size), "dense, lean": partial(scoring.two_passes, size, lean=True)}
        for name, run in runs.items():
            key = f"{name}, batch {size}"
            with told(found, key, bench):
                peak = bench.peak_mb(run)
                found[key] = round(peak, 1)
    return {"peak_mb": found}
