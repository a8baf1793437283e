"""Measure the peak memory of `monoloss evaluate` as a process, on stores of 2048, 20 000 and 100 000 rows.

    python benchmarks/memory.py

Writes stores of random rows of width 768 and a TopK SAE with 8192 latents (k = 64) into a temporary folder of 400 MB.
Each store is evaluated in a new process, whose largest resident memory is measured. Embeddings are read block by block
with `read`, not mapped, so that no pages of the files are counted; ids are not read. Asserts the numbers of rows and
latents in each evaluation. Two cores need about four minutes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import write_result
from targets import Target, print_targets

from monoloss import Evaluation, FeatureStore, SparseAutoencoder, TopKConfig
from monoloss.benchmark.measure import random_rows

ROWS, WIDTH, N_LATENTS, K = (2048, 20_000, 100_000), 768, 8192, 64
CLOCK = Path("/usr/bin/time")
IN_A_CHILD = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print("Maximum resident set size (kbytes):", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""


def main() -> None:
    """Evaluate each store, assert the evaluation, print the peaks, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SparseAutoencoder(WIDTH, TopKConfig("topk", N_LATENTS, K)).save_pretrained(folder / "sae")
        for n in ROWS:
            FeatureStore.create(folder / "store", random_rows(n, WIDTH, 0))
            peaks[n] = peak_mb(folder)
            assert_evaluated(folder, n)
            print(f"{n:7} rows: {peaks[n]:7.0f} MB", flush=True)
            for part in ("store", "evaluation"):
                shutil.rmtree(folder / part)
    few, some, many = (peaks[n] for n in ROWS)
    targets = [
        Target("100 000 rows above 20 000 rows", many - some, at_most=60, unit=" MB"),
        Target("100 000 rows above 2048 rows", many - few, at_most=600, unit=" MB"),
    ]
    result = {
        "sizes": {"width": WIDTH, "n_latents": N_LATENTS, "k": K, "threads": torch.get_num_threads()},
        "measured_with": method(),
        "mapped_pages": "embeddings are read, not mapped: no pages of the files are counted",
        "peak_mb": {str(n): peak for n, peak in peaks.items()},
        "targets": print_targets(targets),
    }
    write_result("memory", result)


def method() -> str:
    """Return the method that measures the peak: GNU time, or `getrusage` where that is missing."""
    return f"{CLOCK} -v" if CLOCK.exists() else "getrusage(RUSAGE_CHILDREN)"


def peak_mb(folder: Path) -> float:
    """Run `monoloss evaluate` on the store in a folder; return its largest resident memory in MB."""
    front = [str(CLOCK), "-v"] if CLOCK.exists() else [sys.executable, "-c", IN_A_CHILD]
    command = [sys.executable, "-m", "monoloss", "evaluate", "--store", str(folder / "store")]
    command += ["--saes", str(folder / "sae"), "--out", str(folder / "evaluation"), "--progress", "false"]
    done = subprocess.run([*front, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1]) / 1024


def assert_evaluated(folder: Path, n: int) -> None:
    """Assert that the evaluation in a folder is of n rows and all latents."""
    (file,) = (folder / "evaluation").rglob("evaluation.json")
    evaluation = Evaluation.load(file.parent)
    assert evaluation.metadata["n_rows"] == n
    assert evaluation.summary["n_latents"] == N_LATENTS
    assert abs(evaluation.summary["l0"] - K) <= 0.01 * K


if __name__ == "__main__":
    main()
