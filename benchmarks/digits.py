"""Repeat the demo over several seeds: does memory + centred MonoLoss keep its promises on held-out digits?

    python benchmarks/digits.py [--seeds 3]

Prints the mean over the seeds and asserts the differences to the baseline that the README claims.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

from machine import write_result

from monoloss.demo import LOSSES, VARIANTS, run_demo

FIGURES = (
    "score_mean",
    "score_mean_zero_filled",
    "lift_mean",
    "purity_binary",
    "purity_weighted",
    "explained_variance",
    "l0",
    "n_alive",
    "n_eff_median",
)
RISING = ("score_mean", "score_mean_zero_filled", "lift_mean", "purity_weighted")


def main() -> None:
    """Train and evaluate, print the means, assert the claims, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name, evaluation in run_demo(seed, Path(folder) / str(seed), progress=False).evaluations.items():
                found[name].append(dict(evaluation.summary))
    means = {name: {key: mean(row[key] for row in rows) for key in FIGURES} for name, rows in found.items()}
    print(f"\nmean over seeds {list(seeds)}")
    print(f"{'':22}" + "".join(f"{key.removesuffix('_mean'):>23}" for key in FIGURES))
    for name, row in means.items():
        print(f"{name:22}" + "".join(f"{row[key]:23.3f}" for key in FIGURES))
    for variant in VARIANTS:
        base, best = means[f"{variant}-baseline"], means[f"{variant}-memory"]
        for key in RISING:
            assert best[key] > base[key], (variant, key, base[key], best[key])
        assert best["n_alive"] >= 0.97 * base["n_alive"], (variant, "n_alive")
        assert best["explained_variance"] >= base["explained_variance"] - 0.03, (variant, "explained_variance")
        for loss in LOSSES:
            for row in found[f"{variant}-{loss}"]:
                assert abs(row["l0"] / 8 - 1) <= 0.05, (variant, loss, row["l0"])
    print("every claim holds")
    write_result("digits", {"seeds": list(seeds), "means": means, "each": found})


if __name__ == "__main__":
    main()
