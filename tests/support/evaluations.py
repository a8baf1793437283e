"""Reference loops, written from the definitions, for the examples, classes and histograms of latents."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import Tensor

from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation


def tensors_of(evaluation: Evaluation) -> dict[str, Tensor]:
    """The tensors of an evaluation other than the columns of its latents, by name."""
    tensors = {}
    for field in fields(evaluation):
        value = getattr(evaluation, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif is_dataclass(value):
            tensors |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
    return tensors


def hash_of(row: int) -> int:
    """SplitMix64 in Python integers, as a signed 64-bit integer."""
    mask = 2**64 - 1
    x = (row + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


def highest_first(column: list[float], rows: list[int]) -> list[int]:
    return sorted(rows, key=lambda row: (-column[row], row))


def expected_rows(kind: str, column: list[float], k: int, size: int) -> list[int]:
    """Rows of one latent's examples of a kind, from its column of activations."""
    active = [row for row, value in enumerate(column) if value > 0]
    if kind == "highest":
        return highest_first(column, active)[:k]
    if kind == "lowest":
        return sorted(active, key=lambda row: (column[row], row))[:k]
    sample = highest_first(column, sorted(active, key=hash_of)[:size])
    if kind == "sample":
        return sample
    return sample[max(0, (len(sample) - k) // 2) :][:k]


def examples_by_loops(kind: str, z: Tensor, k: int, size: int) -> tuple[list[list[int]], list[list[float]]]:
    """Rows and values of all latents; missing examples are row -1 with value 0."""
    all_rows, all_values = [], []
    width = size if kind == "sample" else k
    for column in z.double().t().tolist():
        rows = expected_rows(kind, column, k, size)
        missing = width - len(rows)
        all_rows.append(rows + [-1] * missing)
        all_values.append([column[row] for row in rows] + [0.0] * missing)
    return all_rows, all_values


def assert_examples(by_kind: dict[str, Examples], z: Tensor, k: int, size: int) -> None:
    for kind, examples in by_kind.items():
        rows, values = examples_by_loops(kind, z, k, size)
        assert examples.rows.dtype == torch.int64
        assert examples.values.dtype == torch.float64
        assert examples.rows.tolist() == rows, kind
        assert examples.values.tolist() == values, kind


def classes_by_loops(rows: list[list[float]]) -> tuple[list[list[int]], list[list[int]]]:
    """The most frequent first, of equal counts the lower class; -1 and 0 where there is none."""
    classes, counts = [], []
    for of_class in rows:
        width = min(10, len(of_class))
        ranked = sorted((-count, name) for name, count in enumerate(of_class) if count > 0)[:width]
        missing = width - len(ranked)
        classes.append([name for _, name in ranked] + [-1] * missing)
        counts.append([int(-negated) for negated, _ in ranked] + [0] * missing)
    return classes, counts


def assert_classes(top: TopClasses, rows: Tensor) -> None:
    classes, counts = classes_by_loops(rows.tolist())
    assert top.classes.dtype == top.counts.dtype == torch.int64
    assert top.classes.tolist() == classes
    assert top.counts.tolist() == counts


def histogram_by_loops(z: Tensor) -> np.ndarray:
    """Each active entry looked up among the edges; below the first in bin 0, from the last on in the last bin."""
    edges = np.array([2.0 ** (i // 2) * (np.sqrt(2.0) if i % 2 else 1.0) for i in range(-40, 41)])
    counts = np.zeros((z.shape[1], len(edges) - 1), dtype=np.int64)
    for row in z.double().numpy():
        for latent, value in enumerate(row):
            if value > 0:
                place = int((edges <= value).sum()) - 1
                counts[latent, min(max(place, 0), len(edges) - 2)] += 1
    return counts
