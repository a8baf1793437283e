"""Time random batches of a feature store: float32, float16, uint8; from memory, and block-shuffled from the disk.

    python benchmarks/reading.py [--rows 131072] [--batches 60] [--rounds 5]

Batches are 2048 rows of width 768, as float32, in the order in which training reads them. Asserts first that batches
hold the rows that the order names. Stores of random rows are written to a temporary folder (131 072 rows take 400, 200
and 100 MB), so their files are in the system's cache. Nothing is computed meanwhile: the time is that of reading alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from machine import progress_of_runs, write_result
from targets import Target, print_targets
from torch import Tensor

from monoloss import FeatureStore
from monoloss.benchmark.measure import random_rows, time_in_turn
from monoloss.runs.shuffling import block_shuffled, shuffled
from monoloss.training.batches import ShuffledBatches

WIDTH, BATCH_SIZE = 768, 2048
DTYPES = ("float32", "float16", "uint8")
IN_MEMORY, FROM_DISK = "in memory, any row", "from disk, in blocks"
ORDERS = {IN_MEMORY: shuffled, FROM_DISK: block_shuffled}


def main() -> None:
    """Write stores, assert their batches, measure and print the times, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 131_072), ("batches", 60), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    n_batches = min(options.batches, options.rows // BATCH_SIZE)
    rows = random_rows(options.rows, WIDTH, 0)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], None]] = {}
        for dtype in DTYPES:
            for way in ORDERS:
                store = write_store(Path(folder) / f"{dtype}-{len(runs)}", rows, dtype)
                if way == IN_MEMORY:
                    store.load()
                assert_rows(store, way)
                runs[f"{dtype}, {way}"] = lambda store=store: read(store, n_batches)
        del rows
        with progress_of_runs((options.rounds + 1) * len(runs)) as advance:
            timings = time_in_turn(runs, options.rounds, advance=advance)
    each = {name: 1e3 * timing.median / n_batches for name, timing in timings.items()}
    print(f"a batch of {BATCH_SIZE} x {WIDTH} out of {options.rows} rows")
    for name, timing in timings.items():
        print(f"  {name:30} median {each[name]:6.2f} ms   minimum {1e3 * timing.minimum / n_batches:6.2f} ms")
    targets = [Target(f"{name}, ms a batch", ms, at_most=1.5) for name, ms in each.items() if IN_MEMORY in name]
    result = {
        "sizes": {"rows": options.rows, "width": WIDTH, "batch_size": BATCH_SIZE, "batches": n_batches},
        "timings": {
            name: {"median_ms": each[name], "minimum_ms": 1e3 * timing.minimum / n_batches, "runs": options.rounds}
            for name, timing in timings.items()
        },
        "targets": print_targets(targets),
    }
    write_result("reading", result)


def write_store(folder: Path, rows: Tensor, dtype: str) -> FeatureStore:
    """Write rows as a store of a dtype; for uint8, which needs values from 0, clamped and scaled."""
    if dtype == "uint8":
        return FeatureStore.create(folder, rows.clamp(0.0, 2.55).add_(0.01), dtype="uint8", scale=0.0105)
    return FeatureStore.create(folder, rows, dtype=dtype)


def assert_rows(store: FeatureStore, way: str) -> None:
    """Assert that the first batches hold the rows that the order names."""
    batches = ShuffledBatches(store, BATCH_SIZE, seed=0)
    order = ORDERS[way](store.n_rows, 0, 0)
    assert batches.order == ("rows" if way == IN_MEMORY else "blocks")
    stored = FeatureStore(store.folder)
    for number, batch in enumerate(islice(iter(batches), 2)):
        named = order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
        assert batch.dtype == torch.float32
        for place in range(0, BATCH_SIZE, 211):
            row = int(named[place])
            assert torch.equal(batch[place], stored.embeddings(row, row + 1)[0])


def read(store: FeatureStore, n_batches: int) -> None:
    """Read the first batches of an epoch."""
    for _ in islice(iter(ShuffledBatches(store, BATCH_SIZE, seed=0)), n_batches):
        pass


if __name__ == "__main__":
    main()
