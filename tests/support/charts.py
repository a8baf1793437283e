"""Small evaluations to draw charts of, and names that a page must show as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monoloss import FeatureStore, SparseAutoencoder, TopKConfig, evaluate
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation

HOSTILE = [
    "<script>alert(1)</script>",
    "<b>bold</b> <a href='javascript:alert(1)'>link</a>",
    "\"><img src=x onerror=alert(1)> ' &amp;",
    "$x_1$ %{y} {} %s",
    "emoji 😀 👩‍👩‍👧",
    "שלום العربية",
    "\u202ereversed \x00\ttab\nline",
    "undecodable \udcff",
    "W" * 300,
    "",
]


def run(name: str, scores: Sequence[float], **summary: float) -> Evaluation:
    """An evaluation of some latents; where the score is undefined the latent is active on no row."""
    score = torch.tensor(scores, dtype=torch.float64)
    latents = {
        "score": score,
        "lift": (score - 0.25) / 0.75,
        "n_eff": torch.where(score.isnan(), torch.nan, 10.0 ** (4 * score)),
        "density": torch.where(score.isnan(), 0.0, 0.1),
        "purity_weighted": score.clamp(0, 1),
    }
    whole = {"score_mean": float(score.nanmean()), "chance": 0.25, "explained_variance": 0.8, "r2": 0.7, **summary}
    return Evaluation(name, {}, whole, latents, Examples.none(len(scores), 2))


def run_groups() -> dict[str, list[Evaluation]]:
    """Two groups of a baseline and a run with MonoLoss."""
    return {
        "TopK": [
            run("topk-base", [0.4, 0.5, math.nan], explained_variance=0.8, r2=0.7, purity_weighted=0.3),
            run("topk-mono", [0.6, 0.7, 0.8], explained_variance=0.79, r2=0.71, purity_weighted=0.4),
        ],
        "BatchTopK": [
            run("batch_topk-base", [0.3, 0.5, 0.1], explained_variance=0.82, r2=0.72, purity_weighted=0.2),
            run("batch_topk-mono", [0.5, 0.5, 0.6], explained_variance=0.81, r2=0.74, purity_weighted=0.6),
        ],
    }


def small_store(folder: str, **more: object) -> FeatureStore:
    """64 rows of width 8 with four classes, ids and thumbnails whose grey is the row's number."""
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    grey = torch.arange(64, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 1).contiguous()
    given = {"labels": torch.arange(64) % 4, "ids": [f"id {row}" for row in range(64)], "thumbnails": grey, **more}
    return FeatureStore.create(folder, rows, **{key: value for key, value in given.items() if value is not None})


def judged(store: FeatureStore) -> Evaluation:
    """A SAE with random weights, evaluated on the store."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
    return evaluate(store, {"mine": sae}, n_examples=3)["mine"]
