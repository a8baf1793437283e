"""ClassPurity and Reconstruction after batches of any sizes, and what one call over all rows gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from monoloss.functional.purity import class_purity
from monoloss.functional.reconstruction import reconstruction_quality
from monoloss.metrics import ClassPurity, Reconstruction
from support.embeddings import (
    CLASSES,
    LAYOUTS,
    N_LATENTS,
    rows_of,
    some_activations,
    some_embeddings,
    some_labels,
    some_reconstruction,
)

N, D = 64, 8


def some_purity(sizes: list[int], layout: str = "dense", *, multi: bool = False, **options: Any) -> ClassPurity:
    """A metric of purity after batches of these sizes."""
    metric, start = ClassPurity(N_LATENTS, CLASSES, **options), 0
    codes, labels = LAYOUTS[layout](some_activations()), some_labels(multi=multi)
    for size in sizes:
        rows = slice(start, start + size)
        metric.update(rows_of(codes, rows), labels[rows])
        start += size
    return metric


def some_quality(sizes: list[int], measure: str = "explained_variance") -> Reconstruction:
    """A metric of reconstruction after batches of these sizes."""
    metric, start = Reconstruction(D, measure=measure), 0
    for size in sizes:
        rows = slice(start, start + size)
        metric.update(some_embeddings()[rows], some_reconstruction()[rows])
        start += size
    return metric


MAKERS: dict[str, Callable[[list[int]], Metric]] = {
    "purity": some_purity,
    "multi-label purity": lambda sizes: some_purity(sizes, multi=True),
    "reconstruction": some_quality,
}
CALLS: dict[str, Callable[[], Any]] = {
    "purity": lambda: class_purity(some_activations(), some_labels(), CLASSES),
    "multi-label purity": lambda: class_purity(some_activations(), some_labels(multi=True)),
    "reconstruction": lambda: reconstruction_quality(some_embeddings(), some_reconstruction()),
}


def assert_summary(got: Any, expected: Any) -> None:
    """Two results of the same class are equal within the rounding of float64 sums, field by field."""
    assert type(got) is type(expected)
    for field in fields(expected):
        value = getattr(expected, field.name)
        torch.testing.assert_close(
            getattr(got, field.name), value, rtol=1e-12, atol=1e-13, equal_nan=True, msg=field.name
        )


def states(metric: Metric) -> dict[str, Tensor]:
    """Copies of the states of a metric, by name."""
    return {name: getattr(metric, name).clone() for name in metric._defaults}


def assert_states(metric: Metric, expected: dict[str, Tensor]) -> None:
    """The states are float64 and equal to these, bit for bit: nothing was computed in between."""
    assert set(metric._defaults) == set(expected)
    for name, state in expected.items():
        assert getattr(metric, name).dtype == torch.float64
        assert torch.equal(getattr(metric, name), state), name


def tail_of(which: str) -> Metric:
    """A metric that has seen the rows from 20 on."""
    if which == "reconstruction":
        metric: Metric = Reconstruction(D)
        metric.update(some_embeddings()[20:], some_reconstruction()[20:])
    else:
        metric = ClassPurity(N_LATENTS, CLASSES)
        metric.update(some_activations()[20:], some_labels(multi=which != "purity")[20:])
    return metric
