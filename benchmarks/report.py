"""Measure the size of a report of 8192 latents on 50 000 rows, and the time to write it after the evaluation.

    python benchmarks/report.py [--rows 50000] [--latents 8192] [--width 768]

The report has two evaluations (a baseline and a MonoLoss SAE of random weights on random rows) and thumbnails of
64 x 64 pixels that are as hard to compress as photographs: their spectrum falls with the frequency, with edges on top.
Asserts that the files hold every latent, every item and, in a sample, the right images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_result
from PIL import Image
from targets import Target, print_targets

from monoloss import BatchTopKConfig, Evaluation, FeatureStore, SparseAutoencoder, evaluate
from monoloss.benchmark.measure import random_rows
from monoloss.files.model_folder import Provenance
from monoloss.report.page import write_report

SIDE, K, N_CLASSES = 64, 64, 1000


def main() -> None:
    """Evaluate, write and assert the report, print its size and time, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 50_000), ("latents", 8192), ("width", 768)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", options.rows, options.width)
        evaluations = judged(store, options.latents)
        start, used = time.perf_counter(), time.process_time()
        page = write_report(evaluations, Path(folder) / "report", stores=[store], progress=True)
        seconds, processor_s = time.perf_counter() - start, time.process_time() - used
        n_items = assert_report(page.parent, evaluations, store)
        sizes = {part: megabytes(page.parent / part) for part in (".", "images", "data", "assets")}
    print(f"two runs of {options.latents} latents on {options.rows} rows, {n_items} of them shown")
    print(f"  {seconds:.1f} s ({processor_s:.1f} s of processors)")
    for part, size in sizes.items():
        print(f"  {'all' if part == '.' else part:8} {size:7.1f} MB")
    targets = [
        Target("report, size", sizes["."], at_most=120, unit=" MB"),
        Target("report, time", seconds, at_most=120, unit=" s"),
    ]
    result = {
        "sizes": {"rows": options.rows, "latents": options.latents, "width": options.width, "shown": n_items},
        "seconds": seconds,
        "processor_s": processor_s,
        "megabytes": {"all" if part == "." else part: size for part, size in sizes.items()},
        "targets": print_targets(targets),
    }
    write_result("report", result)


def make_store(folder: Path, n: int, d: int) -> FeatureStore:
    """Write a store of random rows with labels and thumbnails."""
    labels = torch.randint(0, N_CLASSES, (n,), generator=torch.Generator().manual_seed(1))
    names = [f"class {number}" for number in range(N_CLASSES)]
    rows = random_rows(n, d, 0).numpy()
    thumbnails = np.concatenate([image_like(min(1000, n - first), first) for first in range(0, n, 1000)])
    ids = [f"class-{int(label):04d}/image-{row:08d}.jpeg" for row, label in enumerate(labels)]
    return FeatureStore.create(folder, rows, labels, ids, thumbnails=thumbnails, class_names=names, dtype="float16")


def image_like(n: int, seed: int) -> np.ndarray:
    """Return noise with the spectrum of photographs, under edges: ``(n, 64, 64, 3)`` bytes."""
    generator = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    falling = 1 / np.maximum(frequencies, 1 / SIDE)
    noise = np.fft.rfft2(generator.normal(size=(n, 3, SIDE, SIDE)).astype(np.float32))
    pictures = np.fft.irfft2(noise * falling, s=(SIDE, SIDE)).astype(np.float32)
    grey = pictures.mean(1, keepdims=True)
    pictures = 0.8 * grey + 0.2 * pictures  # the channels of photographs differ little
    pictures /= pictures.std((1, 2, 3), keepdims=True)
    pictures += np.where(pictures[:, :, ::-1] > 0, 0.5, -0.5)
    return (128 + 45 * pictures).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def judged(store: FeatureStore, m: int) -> list[Evaluation]:
    """Evaluate two SAEs with m latents on one pass."""
    models: dict[str, Any] = {}
    for seed, (name, weight) in enumerate({"baseline": 0.0, "mono": 3e-4}.items()):
        sae = SparseAutoencoder(store.width, BatchTopKConfig("batch_topk", m, K), seed=seed)
        sae.calibrate_([store.embeddings(0, min(store.n_rows, 8192))])
        sae.provenance = Provenance(training={"mono_weight": weight})
        models[name] = sae.eval()
    return list(evaluate(store, models, progress=True).values())


def assert_report(folder: Path, evaluations: list[Evaluation], store: FeatureStore) -> int:
    """Assert that a report holds all latents, items and, in a sample, the right images; return the number of items."""
    rows: list[int] = []
    for file in sorted((folder / "data" / "store-0").glob("items-*.js")):
        items = content(file)
        assert 0 < len(items) <= 256
        rows += [row for _, _, row in items]
    assert rows == sorted(set(rows))
    for number, evaluation in enumerate(evaluations):
        shown = [
            latent
            for file in sorted((folder / "data" / f"run-{number}").glob("latents-*.js"))
            for latent in content(file)
        ]
        assert len(shown) == len(evaluation.examples.rows)
        for latent in range(0, len(shown), 97):
            expected = [row for row in evaluation.examples.rows[latent].tolist() if row >= 0]
            assert [rows[item] for item, _ in shown[latent]["top"]] == expected
    for item in range(0, len(rows), max(1, len(rows) // 50)):
        with Image.open(folder / "images" / "store-0" / f"sheet-{item // 256:04d}.webp") as sheet:
            top, left = item % 256 // 16 * SIDE, item % 16 * SIDE
            cell = np.asarray(sheet.convert("RGB"))[top : top + SIDE, left : left + SIDE].astype(float)
        image = store.thumbnails(torch.tensor([rows[item]]))[0].numpy().astype(float)
        assert np.corrcoef(cell.ravel(), image.ravel())[0, 1] > 0.9
    return len(rows)


def content(file: Path) -> Any:
    """Return the value that a script file assigns."""
    return json.loads(file.read_text(encoding="ascii").rpartition("]=")[2].rstrip(";\n"))


def megabytes(folder: Path) -> float:
    """Return the size of all files below a folder, in 10^6 bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
