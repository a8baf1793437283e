"""What SumsMetric adds to torchmetrics, seen on ClassPurity and Reconstruction: merging, copies, reset, casts."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.wrappers import Running

import reference
from monoloss.errors import InputError
from monoloss.metrics import ClassPurity, MonoScore, Reconstruction
from support.embeddings import (
    CLASSES,
    N_LATENTS,
    ragged,
    some_activations,
    some_embeddings,
    some_labels,
    some_reconstruction,
)
from support.metrics import CALLS, MAKERS, D, N, assert_states, assert_summary, some_purity, states, tail_of


@given(cuts=st.lists(st.integers(0, N), max_size=4), which=st.sampled_from(list(MAKERS)))
def test_any_split(cuts, which):
    sizes = [stop - start for start, stop in pairwise([0, *sorted(cuts), N])]
    assert_summary(MAKERS[which](sizes).summary(), CALLS[which]())


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


@pytest.mark.parametrize("which", MAKERS)
def test_merged_metrics_have_seen_all_rows(which):
    first, other = MAKERS[which]([20]), tail_of(which)
    other_states = states(other)
    first.compute()  # the cached value must not survive
    for incoming in (other, other_states):
        merged = first.clone()
        merged.merge_state(incoming)
        assert_summary(merged.summary(), CALLS[which]())
        assert_states(other, other_states)
    empty = MAKERS[which]([])
    empty.merge_state(other)
    assert_states(empty, other_states)
    other.merge_state(MAKERS[which]([]))
    assert_states(other, other_states)


@pytest.mark.parametrize("which", MAKERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(which, copied):
    metric = MAKERS[which]([20])
    before, other = states(metric), copied(metric)
    assert_states(other, before)
    other.merge_state(tail_of(which))
    assert_summary(other.summary(), CALLS[which]())
    assert_states(metric, before)


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
        metric.merge_state(MAKERS[which]([20]))  # states of inference mode cannot be changed outside
    metric.reset()
    assert_states(metric, empty)
    metric.merge_state(MAKERS[which]([20]))
    metric.merge_state(tail_of(which))
    assert_summary(metric.summary(), CALLS[which]())


def test_what_was_computed_before_an_update_stays():
    metric = some_purity([20])
    binary, copied = metric.compute(), metric.clone()
    value = binary.clone()
    metric.update(some_activations()[20:], some_labels()[20:])
    assert torch.equal(binary.nan_to_num(7.0), value.nan_to_num(7.0))
    assert_states(copied, states(some_purity([20])))


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
    before = states(metric)
    cast(nn.ModuleDict({"layer": nn.Linear(2, 2), "metric": metric}))
    assert_states(metric, before)
    metric.merge_state(tail_of(which))
    assert_summary(metric.summary(), CALLS[which]())
    metric.reset()
    assert_states(metric, states(MAKERS[which]([])))


@pytest.mark.door
def test_states_of_other_sizes_are_refused():
    metric = Reconstruction(D)
    before = states(metric)
    for incoming, text in (
        (Reconstruction(3), "incoming_state['mean']: got (3,); expected shape (8,)"),
        ({}, "incoming_state['n']: got None; expected shape ()"),
    ):
        with pytest.raises(InputError) as caught:
            metric.merge_state(incoming)
        assert str(caught.value) == text
    assert_states(metric, before)


@pytest.mark.parametrize("change", ["reset", "update"])
@pytest.mark.parametrize("hold", ["state", "tensor", "alias", "view"])
@pytest.mark.parametrize("which", MAKERS)
def test_who_holds_a_state_keeps_its_values(which, hold, change):
    """The variant that changes it in place loses the rows of a state to be merged elsewhere."""
    metric = MAKERS[which]([20])
    names = list(metric.metric_state)
    takers = {
        "state": lambda: metric.metric_state,
        "tensor": lambda: {name: getattr(metric, name) for name in names},
        "alias": lambda: {name: getattr(metric, name).detach() for name in names},
        "view": lambda: {name: getattr(metric, name)[...] for name in names},
    }
    held = takers[hold]()
    expected = {name: value.clone() for name, value in held.items()}
    if change == "reset":
        metric.reset()
        assert_states(metric, states(MAKERS[which]([])))
    else:
        rows = slice(20, 64)
        first = some_embeddings() if which == "reconstruction" else some_activations()
        second = some_reconstruction() if which == "reconstruction" else some_labels(multi=which != "purity")
        metric.update(first[rows], second[rows])
        assert_summary(metric.summary(), CALLS[which]())
    for name, value in held.items():
        assert torch.equal(value, expected[name]), name


def test_a_state_taken_before_a_reset_can_be_merged():
    first, other = MonoScore(6, 4), MonoScore(6, 4)
    embeddings, activations = some_embeddings(20, 6), some_activations(20)[:, :4]
    first.update(embeddings, activations)
    expected, state = first.compute(), first.metric_state
    first.reset()
    other.merge_state(state)
    torch.testing.assert_close(other.compute(), expected, rtol=1e-12, atol=0, equal_nan=True)


def test_running_windows():
    """torchmetrics' wrapper keeps the states of the last batches, and resets the metric after each."""
    running = Running(Reconstruction(6), window=2)
    batches = [(some_embeddings(12, 6)[i : i + 4], some_embeddings(16, 6)[i + 4 : i + 8]) for i in (0, 4, 8)]
    for batch in batches:
        running.update(*batch)
    last = Reconstruction(6)
    for batch in batches[1:]:
        last.update(*batch)
    torch.testing.assert_close(running.compute(), last.compute(), rtol=1e-12, atol=0)


def test_a_metric_that_is_alone_changes_in_place():
    """A new state of the size of many gigabytes' sums takes longer than a batch."""
    metric = MonoScore(6, 4)
    place = metric.w.data_ptr()
    metric.update(some_embeddings(20, 6), some_activations(20)[:, :4])
    metric.reset()
    assert metric.w.data_ptr() == place
    assert not metric.w.any()
