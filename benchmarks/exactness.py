"""Measure the error of MonoScore against its definition (a pairwise float64 loop) and float64 sums of a million rows.

    python benchmarks/exactness.py

Prints the largest error over latents with n_eff >= 1.1. Asserts that it is at most 1e-12 for float64 inputs and 1e-5
for float32 inputs, and that the same latents are undefined.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from machine import write_result

from monoloss import MonoScore, SparseActivations, mono_score

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import reference

N, D, M = 2000, 32, 24
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def cases() -> dict[str, np.ndarray]:
    """Return activations by the name of their numerical difficulty."""
    chance = np.random.default_rng(0)
    z = chance.standard_normal((N, M))
    sparse = np.maximum(z - 1.5, 0)
    few = np.zeros((N, M))
    few[chance.integers(0, N, 5)] = 100 + chance.random((5, M))
    constant = np.broadcast_to(np.where(np.arange(M) % 2, 0.1, 100.1), (N, M)).copy()
    heavy = np.exp(4 * z)
    return {
        "any sign": z,
        "codes of a ReLU": sparse,
        "shifted by 100": np.abs(z) + 100,
        "five active rows at 100": few,
        "constants 0.1 and 100.1": constant,
        "negative": -np.abs(z) - 1,
        "one row outweighs the rest": heavy,
    }


def errors(embeddings: np.ndarray, activations: np.ndarray, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest error of the dense, sparse, streamed and merged scores of the same activations."""
    e, z = torch.from_numpy(embeddings).to(dtype), torch.from_numpy(activations).to(dtype)
    expected = reference.mono_score_pairwise(e, z)
    counts = reference.n_eff(z)
    judged = np.isfinite(expected) & (counts >= 1.1)
    streamed, left, right = (MonoScore(D, M) for _ in range(3))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for part in order.split([1, 7, 64, 500, N - 572]):
        streamed.update(e[part], z[part])
    left.update(e[:700], z[:700])
    right.update(e[700:], SparseActivations.from_dense(z[700:]))
    left.merge_state(right)
    ways = {
        "dense": mono_score(e, z),
        "sparse": mono_score(e, SparseActivations.from_dense(z)),
        "streamed": streamed.compute(),
        "merged": left.compute(),
    }
    found = {}
    for way, scores in ways.items():
        assert np.array_equal(np.isnan(scores.numpy()), np.isnan(expected)), way
        found[way] = float(np.abs(scores.numpy() - expected)[judged].max(initial=0.0))
        assert found[way] <= TOLERANCE[dtype], (way, found[way])
    return found


def million_rows() -> float:
    """Return the largest error on a million float32 rows with offset 100, against the formulas in float64."""
    n, d, m = 1_000_000, 16, 8
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(n, d, generator=generator) + 0.3
    z = torch.randn(n, m, generator=generator).abs() + 100
    metric = MonoScore(d, m)
    for rows, codes in zip(e.split(8192), z.split(8192), strict=True):
        metric.update(rows, codes)
    h = e.double() / e.double().norm(dim=1, keepdim=True)
    a = z.double() - z.double().amin(0)
    u, v, w = a.sum(0), a.square().sum(0), a.T @ h
    expected = (w.square().sum(1) - v) / (u.square() - v)
    whole = float((mono_score(e, z) - expected).abs().max())
    return max(float((metric.compute() - expected).abs().max()), whole)


def main() -> None:
    """Measure and assert the errors, print them, write the result."""
    embeddings = np.random.default_rng(1).standard_normal((N, D)) + 0.5
    result: dict[str, dict[str, float]] = {}
    for name, activations in cases().items():
        for dtype in TOLERANCE:
            found = errors(embeddings, activations, dtype)
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            result[key] = found
            print(f"{key:40}" + "".join(f"{way:>12} {error:.1e}" for way, error in found.items()))
    million = million_rows()
    print(f"a million float32 rows, offset 100:     {million:.1e}")
    assert million <= 1e-5
    write_result("exactness", {"errors": result, "million_rows": million})


if __name__ == "__main__":
    main()
