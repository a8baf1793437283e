"""The metrics ClassPurity and Reconstruction: streaming gives what one call gives."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

import reference
from monoloss.errors import InputError
from monoloss.functional.purity import class_purity
from monoloss.functional.reconstruction import reconstruction_quality
from monoloss.metrics import ClassPurity, MonoScore, Reconstruction
from support.embeddings import (
    CLASSES,
    LAYOUTS,
    N_LATENTS,
    ragged,
    rows_of,
    some_activations,
    some_embeddings,
    some_labels,
    some_reconstruction,
)

N, D = 64, 8


def some_purity(sizes: list[int], layout: str = "dense", *, multi: bool = False, **options: Any) -> ClassPurity:
    metric, start = ClassPurity(N_LATENTS, CLASSES, **options), 0
    codes, labels = LAYOUTS[layout](some_activations()), some_labels(multi=multi)
    for size in sizes:
        rows = slice(start, start + size)
        metric.update(rows_of(codes, rows), labels[rows])
        start += size
    return metric


def some_quality(sizes: list[int], measure: str = "explained_variance") -> Reconstruction:
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
    assert type(got) is type(expected)
    for field in fields(expected):
        value = getattr(expected, field.name)
        torch.testing.assert_close(
            getattr(got, field.name), value, rtol=1e-12, atol=1e-13, equal_nan=True, msg=field.name
        )


def states(metric: Metric) -> dict[str, Tensor]:
    return {name: getattr(metric, name).clone() for name in metric._defaults}


def assert_states(metric: Metric, expected: dict[str, Tensor]) -> None:
    assert set(metric._defaults) == set(expected)
    for name, state in expected.items():
        assert getattr(metric, name).dtype == torch.float64
        assert torch.equal(getattr(metric, name), state), name


# Streaming is the functional call


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multi", [False, True])
def test_purity_over_batches_is_that_of_all_rows(layout, multi):
    codes = LAYOUTS[layout](some_activations())
    expected = class_purity(codes, some_labels(multi=multi), CLASSES)
    for sizes in ([64], [1, 0, 40, 23]):
        assert_summary(some_purity(sizes, layout, multi=multi).summary(), expected)
    dense = codes if isinstance(codes, Tensor) else codes.to_dense()
    per_latent = reference.class_purity(dense, some_labels(multi=multi), CLASSES)
    for weighted in (False, True):
        kind = "weighted" if weighted else "binary"
        for average, key in (("none", kind), ("mean", f"mean_{kind}"), ("mass", f"mass_{kind}")):
            metric = some_purity([30, 34], layout, multi=multi, weighted=weighted, average=average)
            np.testing.assert_allclose(metric.compute(), per_latent[key], rtol=1e-12)
            assert metric.compute().shape == ((N_LATENTS,) if average == "none" else ())
            assert metric.compute().dtype == torch.float64


@pytest.mark.parametrize("measure", ["explained_variance", "r2", "nmse", "mse"])
def test_reconstruction_over_batches_is_that_of_all_rows(measure):
    expected = getattr(reference, {"r2": "r2_uniform"}.get(measure, measure))(some_embeddings(), some_reconstruction())
    for sizes in ([64], [1, 0, 40, 23]):
        metric = some_quality(sizes, measure)
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-11)
        assert metric.compute().dtype == torch.float64
        assert_summary(metric.summary(), reconstruction_quality(some_embeddings(), some_reconstruction()))
        assert metric.higher_is_better == (measure in ("explained_variance", "r2"))


@given(cuts=st.lists(st.integers(0, N), max_size=4), which=st.sampled_from(list(MAKERS)))
def test_any_split(cuts, which):
    sizes = [stop - start for start, stop in pairwise([0, *sorted(cuts), N])]
    assert_summary(MAKERS[which](sizes).summary(), CALLS[which]())


def test_without_rows():
    assert bool(torch.isnan(ClassPurity(3, 2).summary().binary).all())
    assert math.isnan(float(Reconstruction(3).summary().mse))


# As torchmetrics' users expect


@pytest.mark.parametrize("which", MAKERS)
def test_forward_gives_the_batch_and_adds_it(which):
    metric, again, fresh = (MAKERS[which](sizes) for sizes in ([20], [20], []))
    rows = slice(20, 64)
    if which == "reconstruction":
        batch = (some_embeddings()[rows], some_reconstruction()[rows])
    else:
        batch = (some_activations()[rows], some_labels(multi=which != "purity")[rows])
    fresh.update(*batch)
    torch.testing.assert_close(metric(*batch), fresh.compute(), rtol=1e-12, atol=0, equal_nan=True)
    assert_summary(metric.summary(), CALLS[which]())
    again.update(*batch)
    assert_summary(again.summary(), CALLS[which]())


def tail_of(which: str) -> Metric:
    """A metric that has seen the rows from 20 on."""
    if which == "reconstruction":
        metric: Metric = Reconstruction(D)
        metric.update(some_embeddings()[20:], some_reconstruction()[20:])
    else:
        metric = ClassPurity(N_LATENTS, CLASSES)
        metric.update(some_activations()[20:], some_labels(multi=which != "purity")[20:])
    return metric


@pytest.mark.parametrize("which", MAKERS)
def test_merged_metrics_have_seen_all_rows(which):
    first, other = MAKERS[which]([20]), tail_of(which)
    theirs = states(other)
    first.compute()  # a value that was kept must not survive
    for incoming in (other, theirs):
        merged = first.clone()
        merged.merge_state(incoming)
        assert_summary(merged.summary(), CALLS[which]())
        assert_states(other, theirs)
    empty = MAKERS[which]([])
    empty.merge_state(other)
    assert_states(empty, theirs)
    other.merge_state(MAKERS[which]([]))
    assert_states(other, theirs)


@pytest.mark.parametrize("which", MAKERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_alone(which, copied):
    metric = MAKERS[which]([20])
    kept, other = states(metric), copied(metric)
    assert_states(other, kept)
    other.merge_state(tail_of(which))
    assert_summary(other.summary(), CALLS[which]())
    assert_states(metric, kept)


@pytest.mark.parametrize("which", MAKERS)
def test_reset_forgets_all(which):
    metric = MAKERS[which]([64])
    empty = states(MAKERS[which]([]))
    for _ in range(2):
        metric.reset()
        assert_states(metric, empty)
        metric.merge_state(MAKERS[which]([20]))
        metric.merge_state(tail_of(which))
        assert_summary(metric.summary(), CALLS[which]())


@pytest.mark.parametrize("which", MAKERS)
def test_reset_in_inference_mode_and_out_of_it(which):
    metric, empty = MAKERS[which]([64]), states(MAKERS[which]([]))
    with torch.inference_mode():
        metric.reset()
        assert_states(metric, empty)
        metric.merge_state(MAKERS[which]([20]))  # states made here cannot be changed outside
    metric.reset()
    assert_states(metric, empty)
    metric.merge_state(MAKERS[which]([20]))
    metric.merge_state(tail_of(which))
    assert_summary(metric.summary(), CALLS[which]())


def test_reset_makes_no_new_sums():
    metric = MonoScore(8, 13)
    kept = metric.w
    metric.update(some_embeddings(), some_activations())
    metric.reset()
    assert metric.w is kept
    assert not kept.any()


def test_what_was_computed_before_an_update_stays():
    metric = some_purity([20])
    binary, kept = metric.compute(), metric.clone()
    value = binary.clone()
    metric.update(some_activations()[20:], some_labels()[20:])
    assert torch.equal(binary.nan_to_num(7.0), value.nan_to_num(7.0))
    assert_states(kept, states(some_purity([20])))


def test_in_a_collection_called_by_keyword():
    collection = MetricCollection(
        {
            "score": MonoScore(D, N_LATENTS, average="mean"),
            "binary": ClassPurity(N_LATENTS, CLASSES, average="mean"),
            "weighted": ClassPurity(N_LATENTS, CLASSES, weighted=True, average="mass"),
            "variance": Reconstruction(D),
            "nmse": Reconstruction(D, measure="nmse"),
        }
    )
    for rows in (slice(0, 20), slice(20, 21), slice(21, 64)):
        collection.update(
            embeddings=some_embeddings()[rows],
            activations=ragged(some_activations()[rows]),
            labels=some_labels()[rows],
            inputs=some_embeddings()[rows],
            reconstruction=some_reconstruction()[rows],
        )
    got = collection.compute()
    purity, quality = CALLS["purity"](), CALLS["reconstruction"]()
    expected = {
        "score": np.nanmean(reference.mono_score_pairwise(some_embeddings(), some_activations())),
        "binary": float(purity.mean_binary),
        "weighted": float(purity.mass_weighted_weighted),
        "variance": float(quality.explained_variance),
        "nmse": float(quality.nmse),
    }
    assert {name: float(value) for name, value in got.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("which", MAKERS)
@pytest.mark.parametrize(
    "cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float(), lambda m: m.type(torch.float16)]
)
def test_casting_a_model_keeps_float64(which, cast):
    metric = MAKERS[which]([20])
    kept = states(metric)
    cast(nn.ModuleDict({"layer": nn.Linear(2, 2), "metric": metric}))
    assert_states(metric, kept)
    metric.merge_state(tail_of(which))
    assert_summary(metric.summary(), CALLS[which]())
    metric.reset()
    assert_states(metric, states(MAKERS[which]([])))


def test_nothing_stays_on_the_graph():
    purity, quality = ClassPurity(N_LATENTS, CLASSES), Reconstruction(D)
    purity.update(some_activations().requires_grad_(), some_labels())
    quality.update(some_embeddings().requires_grad_(), some_reconstruction().requires_grad_())
    for metric in (purity, quality):
        assert not any(state.requires_grad for state in states(metric).values())


# The door


@pytest.mark.door
def test_error_texts():
    z, labels, x = some_activations(), some_labels(), some_embeddings()
    purity, quality = ClassPurity(N_LATENTS, CLASSES), Reconstruction(D)
    zero_row = x.clone()
    zero_row[3] = 0
    nan_code = z.clone()
    nan_code[5, 2] = torch.nan
    outside = labels.clone()
    outside[9] = CLASSES
    before = [states(purity), states(quality)]
    for call, text in (
        (lambda: ClassPurity(0, 2), "m: got 0; expected an integer at least 1"),
        (lambda: ClassPurity(2, 0), "n_classes: got 0; expected an integer at least 1"),
        (lambda: ClassPurity(2, 2, average="median"), "average: got 'median'; expected one of 'none', 'mean', 'mass'"),
        (lambda: Reconstruction(0), "d: got 0; expected an integer at least 1"),
        (
            lambda: Reconstruction(2, measure="mae"),
            "measure: got 'mae'; expected one of 'explained_variance', 'r2', 'nmse', 'mse'",
        ),
        (
            lambda: purity.update([1.0], labels),
            "activations: got list; expected a floating-point tensor of shape (n, any width)",
        ),
        (lambda: purity.update(z[:, :4], labels), "activations: got 4 latents; expected 13 latents"),
        (lambda: purity.update(z, labels[:9]), "labels: got 9 rows; expected as many as activations has, 64"),
        (lambda: purity.update(z, outside), "labels: got 5 (row 9); expected labels from 0 to 4"),
        (lambda: purity.update(nan_code, labels), "activations: got nan (row 5, latent 2); expected finite numbers"),
        (
            lambda: quality.update(x[:, :3], x[:, :3]),
            "inputs: got shape (64, 3); expected a floating-point tensor of shape (n, 8)",
        ),
        (
            lambda: quality.update(x, x[:9]),
            "reconstruction: got shape (9, 8); expected a floating-point tensor of shape (64, 8)",
        ),
        (
            lambda: quality.update(zero_row, x),
            "inputs: got a row of zeros (row 3); expected rows of finite numbers, not all zero",
        ),
        (lambda: quality.update([1.0], x), "inputs: got list; expected a floating-point tensor of shape (n, 8)"),
        (
            lambda: purity.merge_state(ClassPurity(3, CLASSES)),
            "incoming_state['rows']: got (3, 5); expected shape (13, 5)",
        ),
        (lambda: quality.merge_state(Reconstruction(3)), "incoming_state['mean']: got (3,); expected shape (8,)"),
        (lambda: quality.merge_state({}), "incoming_state['n']: got None; expected shape ()"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text
    assert_states(purity, before[0])  # what was refused has left no trace
    assert_states(quality, before[1])
