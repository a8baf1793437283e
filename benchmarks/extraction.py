"""Measure the speed of extracting a feature store from images, and the shares of decoding and of the model.

    python benchmarks/extraction.py IMAGES [--split val] [--encoder resnet18] [--image_size 64] [--device cpu]

IMAGES is a folder with SPLIT/class/file. The encoder has random weights unless `--pretrained` is given; the speed is
the same. Asserts that ids and labels are those of an independent listing before it reports a speed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import write_result

from monoloss import FeatureStore
from monoloss.data.encoders import load_encoder
from monoloss.data.extraction.batches import default_workers
from monoloss.data.extraction.run import Extraction, extract
from monoloss.data.images import open_images


def main() -> None:
    """Extract with several numbers of workers, assert the stores, print the speeds, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=None)
    parser.add_argument("--pretrained", action="store_true")
    given = parser.parse_args()
    workers_of_runs = given.workers or sorted({0, 1, default_workers(given.device)})
    encoder = load_encoder(given.encoder, pretrained=given.pretrained, image_size=given.image_size, device=given.device)
    expected = listing(given.images / given.split)
    results: dict[str, Any] = {}
    fingerprints = set()
    with tempfile.TemporaryDirectory() as folder:
        for workers in workers_of_runs:
            source = open_images(f"imagefolder:{given.images}", split=given.split)
            out = Path(folder) / f"workers-{workers}"
            run = Extraction(source, encoder, out, workers=workers, batch_size=given.batch_size)
            store = run.run()
            check(store, expected)
            extract(source, encoder, out, workers=workers, batch_size=given.batch_size)
            fingerprints.add(store.fingerprint)
            timing = run.timing
            figures = {name: value for name, value in asdict(timing).items() if not name.startswith("_")}
            model_share, waiting_share = timing.model_s / timing.total_s, timing.wait_s / timing.total_s
            speeds = {"images_per_s": timing.images_per_s, "model_share": model_share, "waiting_share": waiting_share}
            results[f"workers {workers}"] = {**figures, **speeds}
            print(f"{workers} workers: {timing}")
    if given.device == "cpu":
        assert len(fingerprints) == 1, "the number of workers changes a store"
    settings = {name: getattr(given, name) for name in ("split", "encoder", "image_size", "device", "batch_size")}
    write_result("extraction", {"settings": settings, "runs": results})


def listing(folder: Path) -> list[tuple[str, int]]:
    """List the files with the number of their class folder, by `os.walk`, sorted by path."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    found = []
    for place, _, files in os.walk(folder):
        names = Path(place).relative_to(folder).parts
        found += [("/".join([*names, file]), classes.index(names[0])) for file in files if names]
    return sorted(found)


def check(store: FeatureStore, expected: list[tuple[str, int]]) -> None:
    """Assert that every row has the id and label of its file, and that every file is a row or was skipped."""
    skipped = {file.path for file in store.skipped}
    there = [(name, label) for name, label in expected if name not in skipped]
    assert list(store.ids) == [name for name, _ in there]
    assert store.labels().tolist() == [label for _, label in there]
    assert store.n_rows + len(skipped) == len(expected)
    store.verify()


if __name__ == "__main__":
    main()
