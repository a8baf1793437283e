"""Compare time and peak memory of a sweep over mono_weight: all SAEs on one pass, or a run for each.

    python benchmarks/many_saes.py

Trains eight SAEs one after the other, and 1, 2, 4 and 8 of them on one pass, each time in a new process, on random
features. Asserts that each SAE of a joint run equals, bit for bit, the same SAE trained alone.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from machine import write_result

from monoloss import BatchTopKConfig, FeatureStore, SaeTraining, TrainingConfig, train_saes

WEIGHTS = (0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TOGETHER = (1, 2, 4, 8)
MB = 1024**2


@dataclass(frozen=True)
class Sizes:
    """Sizes of the SAEs, the data and the runs."""

    width: int
    n_latents: int
    k: int
    batch_size: int
    n_batches: int
    epochs: int

    @property
    def n_steps(self) -> int:
        """Optimiser steps of a run."""
        return self.n_batches * self.epochs


@dataclass(frozen=True)
class Measured:
    """Time and memory of one run.

    Attributes:
        elapsed_s: seconds of `train_saes`, with start and calibration.
        peak_mb: largest resident memory of the process so far.
        own_mb: the same without the memory resident before the first run.
    """

    elapsed_s: float
    peak_mb: float
    own_mb: float


def main() -> None:
    """Train all runs, assert equal SAEs, print time and memory, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 768), ("n_latents", 1024), ("k", 32), ("batch_size", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--n_batches", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1)
    sizes = Sizes(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        features = torch.randn(
            sizes.n_batches * sizes.batch_size, sizes.width, generator=torch.Generator().manual_seed(0)
        )
        FeatureStore.create(f"{folder}/store", features)
        del features
        alone = in_a_process(Path(folder), sizes, [(weight,) for weight in WEIGHTS], "alone")
        joint = {n: in_a_process(Path(folder), sizes, [WEIGHTS[:n]], f"joint-{n}")[0] for n in TOGETHER}
        for n in TOGETHER:
            for weight in WEIGHTS[:n]:
                assert_same_bits(*(Path(folder, kind, f"{name_of(weight)}.pt") for kind in ("alone", f"joint-{n}")))
    print("every SAE of a joint run equals the one that was trained alone, bit for bit")
    rows = {n: row(n, alone, joint, sizes) for n in TOGETHER}
    print(f"{'SAEs':>5}{'one pass':>12}{'one by one':>12}{'peak':>10}{'of it own':>12}{'each more':>12}")
    for n, values in rows.items():
        print(
            f"{n:5}{values['joint_s']:10.1f} s{values['alone_s']:10.1f} s{values['peak_mb']:7.0f} MB"
            f"{values['own_mb']:9.0f} MB{values['mb_each_more']:9.0f} MB"
        )
    write_result("many_saes", {"sizes": vars(sizes), "saes": {str(n): values for n, values in rows.items()}})


def row(n: int, alone: list[Measured], joint: dict[int, Measured], sizes: Sizes) -> dict[str, float]:
    """Return the measures of n SAEs on one pass, and the time of n runs one after the other."""
    return {
        "joint_s": joint[n].elapsed_s,
        "alone_s": sum(run.elapsed_s for run in alone[:n]),
        "joint_s_a_step": joint[n].elapsed_s / sizes.n_steps,
        "peak_mb": joint[n].peak_mb,
        "own_mb": joint[n].own_mb,
        "mb_each_more": (joint[n].own_mb - joint[1].own_mb) / max(1, n - 1),
        "n_runs_side_by_side_mb": n * joint[1].peak_mb,
    }


def in_a_process(folder: Path, sizes: Sizes, runs: list[tuple[float, ...]], kind: str) -> list[Measured]:
    """Call :func:`measure` in a new process, because peak memory is counted by process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, folder, sizes, runs, kind).result()


def measure(folder: Path, sizes: Sizes, runs: list[tuple[float, ...]], kind: str) -> list[Measured]:
    """Train runs, each given by its weights of MonoLoss, one after the other; save the SAEs in `folder / kind`."""
    store = FeatureStore(folder / "store")
    (folder / kind).mkdir()
    before, found = peak_mb(), []
    for weights in runs:
        start = time.perf_counter()
        saes = train_saes(store, config(sizes, weights), folder / kind / f"run-{len(found)}", progress=False)
        found.append(Measured(time.perf_counter() - start, peak_mb(), peak_mb() - before))
        for each, sae in saes.items():
            torch.save(sae.state_dict(), folder / kind / f"{each}.pt")
    return found


def config(sizes: Sizes, weights: tuple[float, ...]) -> TrainingConfig:
    """Return the configuration of a run with a SAE for each weight of MonoLoss."""
    sae = BatchTopKConfig("batch_topk", n_latents=sizes.n_latents, k=sizes.k)
    saes = {name_of(weight): SaeTraining(sae, mono_weight=weight) for weight in weights}
    return TrainingConfig(saes, batch_size=sizes.batch_size, epochs=sizes.epochs, log_every_steps=10)


def name_of(weight: float) -> str:
    """Return the name of the SAE with a weight of MonoLoss."""
    return f"mono-{weight!r}"


def assert_same_bits(one: Path, other: Path) -> None:
    """Assert that all tensors of two saved SAEs are equal."""
    left, right = torch.load(one, weights_only=True), torch.load(other, weights_only=True)
    assert set(left) == set(right)
    for key, tensor in left.items():
        assert torch.equal(tensor, right[key]), (one, key)


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if platform.system() == "Darwin" else peak / 1024


if __name__ == "__main__":
    main()
