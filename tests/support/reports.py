"""Stores, evaluations and reports for the tests of reports, and what a browser would read from their files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from monoloss.data.store import FeatureStore
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.run import evaluate
from monoloss.files.model_folder import Provenance
from monoloss.sae.model import SparseAutoencoder
from support.saes import some_config, structured_rows

N, D, M = 90, 32, 24
_STATEMENT = re.compile(r"MONOLOSS\.(\w+)(?:=MONOLOSS\.\w+\|\|\{\};MONOLOSS\.\w+\[(\"[^\"]*\")\])?=(.*);")
# Metadata of an evaluation that published values may be compared with
PUBLISHED_SETTING = {
    "store": "imagenet-val",
    "n_rows": 50_000,
    "class_names": ["a"] * 1000,
    "centred": False,
    "encoder": {"name": "vit_large_patch14_clip_224", "weights": "datacompxl"},
}
_START = "window.MONOLOSS=window.MONOLOSS||{};"


def grey_thumbnails(n: int = N, side: int = 8) -> np.ndarray:
    """Flat images, the grey of row r is 2 r + 10."""
    greys = (2 * np.arange(n) + 10).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (n, side, side, 1)).copy()


def some_store(folder: Path, **options: Any) -> FeatureStore:
    """90 rows of 32 numbers with labels, class names, ids; `labels=None` and so on leave them out."""
    rows, labels = structured_rows(N, D)
    given: dict[str, Any] = {
        "labels": labels,
        "ids": [f"image-{row}" for row in range(N)],
        "class_names": [f"class {number}" for number in range(24)],
    } | options
    if given["labels"] is None:
        del given["class_names"]
    return FeatureStore.create(folder, rows, **given)


def some_models(weights: Mapping[str, float], variant: str = "topk", m: int = M) -> dict[str, SparseAutoencoder]:
    """SAEs that claim to be trained with these weights of MonoLoss."""
    models = {}
    for seed, (name, weight) in enumerate(weights.items()):
        sae = SparseAutoencoder(D, some_config(variant, m), seed=seed)
        sae.calibrate_([structured_rows(200, D)[0]])
        training = {"name": name, "mono_weight": weight, "lr": 1e-3, "seed": seed, "run": {"epochs": 2}}
        sae.provenance = Provenance(training=training)
        models[name] = sae.eval()
    return models


def some_evaluations(store: FeatureStore, n_examples: int = 4, **options: Any) -> list[Evaluation]:
    """Of a baseline and a MonoLoss SAE."""
    models = some_models({"base": 0.0, "mono": 0.1})
    return list(evaluate(store, models, n_examples=n_examples, **options).values())


def evaluated(store: FeatureStore, weights: Mapping[str, float], variant: str = "topk", m: int = M) -> list[Evaluation]:
    """Evaluate SAEs that claim to be trained with these weights of MonoLoss."""
    return list(evaluate(store, some_models(weights, variant, m), n_examples=2).values())


def renamed(evaluation: Evaluation, name: str, **metadata: object) -> Evaluation:
    """Copy an evaluation with another name and some other metadata."""
    return replace(evaluation, name=name, metadata={**evaluation.metadata, **metadata})


def bare(name: str = "mine", weight: float = 0.0, score: float = 0.5, **metadata: object) -> Evaluation:
    """Make an evaluation of three latents (alive, undefined, dead) without data, that claims to be of 8192 latents."""
    latents = {"score": torch.tensor([score, torch.nan, torch.nan]), "density": torch.tensor([0.5, 0.1, 0.0])}
    given = {
        "model": "TopKConfig(variant='topk', n_latents=8192, k=64, tied=True, aux=AuxLoss(k=512))",
        "training": {"mono_weight": weight},
    } | metadata
    summary = {"score_mean": score, "score_mean_zero_filled": score / 3, "r2": 0.8, "chance": 0.1, "n_latents": 8192.0}
    return Evaluation(name, given, summary, latents, Examples.none(3, 1))


def as_written_before(evaluation: Evaluation) -> Evaluation:
    """Without what earlier versions did not keep."""
    metadata = {k: v for k, v in evaluation.metadata.items() if k not in ("sae", "training", "store_folder", "store")}
    missing: dict[str, None] = dict.fromkeys(
        ("middle_examples", "bottom_examples", "histogram", "top_classes", "decoder_directions")
    )
    return replace(evaluation, metadata=metadata, **missing)


def image_files(root: Path, rows: range) -> list[str]:
    """Flat grey images of 20 x 12 pixels, the grey of row r is 2 r + 10."""
    (root / "some").mkdir(parents=True)
    paths = [f"some/{row}.png" for row in rows]
    for row, path in zip(rows, paths, strict=True):
        Image.new("L", (20, 12), 2 * row + 10).save(root / path)
    return paths


def class_members(n_classes: int = 24) -> torch.Tensor:
    """Several labels a row, none for some rows."""
    generator = torch.Generator().manual_seed(3)
    members = torch.rand(N, n_classes, generator=generator) < 0.1
    members[:3] = False
    return members


def page_data(folder: Path) -> dict[str, Any]:
    """What the scripts of a report set, by variable and key; refuses anything but plain assignments of JSON."""
    found: dict[str, Any] = {}
    for file in sorted((folder / "data").rglob("*.js")):
        for line in file.read_bytes().decode("ascii").splitlines():
            assert line.startswith(_START), file
            match = _STATEMENT.fullmatch(line.removeprefix(_START))
            assert match is not None, file
            place, key, value = match[1], match[2], json.loads(match[3], parse_constant=_refuse)
            if key is None:
                assert place not in found, file
                found[place] = value
            else:
                assert json.loads(key) not in found.setdefault(place, {}), file
                found[place][json.loads(key)] = value
    return found


def cell_of(folder: Path, store: Mapping[str, Any], key: str, item: int) -> np.ndarray:
    """The image of an item, cut out of its sheet as the page does it."""
    sheet, place = divmod(item, store["per_sheet"])
    line, column = divmod(place, store["sheet_columns"])
    cell = store["cell"]
    with Image.open(folder / "images" / key / f"sheet-{sheet:04d}.{store['sheet_suffix']}") as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels[line * cell : (line + 1) * cell, column * cell : (column + 1) * cell]


def _refuse(constant: str) -> None:
    raise AssertionError(constant)
