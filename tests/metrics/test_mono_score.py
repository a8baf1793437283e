"""The metric MonoScore: streaming gives what one call gives, and it lives as torchmetrics' users expect."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import MetricCollection

from monoloss.errors import InputError
from monoloss.functional.moments import batch_moments, unit_rows
from monoloss.functional.score import mono_score, summarise
from monoloss.metrics import MonoScore
from support import mono_checks
from support.embeddings import LAYOUTS, ragged, rows_of, some_activations, some_embeddings
from support.mono_checks import (
    TOLERANCES,
    assert_scores,
    check_mean_score,
    check_score_while_the_minimum_falls,
    streamed,
)

STATES = ("n", "h_sum", "b", "u", "v", "w")


def assert_same_scores(one: Tensor, other: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)


def states(metric: MonoScore) -> dict[str, Tensor]:
    return {name: getattr(metric, name).clone() for name in STATES}


def assert_states(metric: MonoScore, expected: dict[str, Tensor]) -> None:
    for name, state in expected.items():
        assert getattr(metric, name).dtype == torch.float64
        assert torch.equal(getattr(metric, name), state), name


@pytest.fixture
def metric() -> MonoScore:
    return streamed(some_embeddings(), some_activations(), [30, 34])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_of_any_size_give_the_score_of_all_rows(layout, offset, dtype):
    embeddings = some_embeddings(150, dtype=dtype)
    activations = LAYOUTS[layout](some_activations(150, dtype=dtype, offset=offset))
    for sizes in ([150], [1, 0, 99, 50], [30] * 5):
        scores = streamed(embeddings, activations, sizes).compute()
        assert_scores(scores, embeddings, activations, atol=TOLERANCES[dtype])


def test_score_while_the_minimum_falls():
    check_score_while_the_minimum_falls()


def test_mean_score():
    check_mean_score()


@given(seed=st.integers(0, 2**16), cuts=st.lists(st.integers(0, 40), max_size=5), layout=st.sampled_from(list(LAYOUTS)))
@settings(max_examples=25)
def test_any_split_and_order(seed, cuts, layout):
    embeddings, dense = some_embeddings(40, seed=seed), some_activations(40, seed=seed)
    activations = LAYOUTS[layout](dense)
    bounds = [0, *sorted(cuts), 40]
    sizes = [stop - start for start, stop in pairwise(bounds)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    scores = streamed(embeddings[order], rows_of(activations, order), sizes).compute()
    mono_checks.assert_same_scores(scores, mono_score(embeddings, activations), activations)


def test_constants_stay_undefined_over_batches():
    embeddings = some_embeddings(50, dtype=torch.float32)
    for dense in (torch.tensor([[0.1, 100.1]]).repeat(50, 1), torch.zeros(50, 2)):
        for layout in ("dense", "ragged", "every_entry"):
            metric = streamed(embeddings, LAYOUTS[layout](dense), [20, 30])
            assert torch.isnan(metric.compute()).all()
            assert metric.summary().n_defined == 0


def test_center_average_undefined_and_summary():
    embeddings, activations = some_embeddings(), some_activations()
    center = embeddings.mean(0)
    scores = mono_score(embeddings, activations, center=center)
    assert_same_scores(streamed(embeddings, activations, [10, 54], center=center).compute(), scores)
    mean = streamed(embeddings, activations, [10, 54], center=center, average="mean").compute()
    assert mean.shape == ()
    assert_same_scores(mean, scores[~scores.isnan()].mean())
    zero = streamed(embeddings, activations, [10, 54], center=center, undefined="zero")
    assert_same_scores(zero.compute(), scores.nan_to_num(0.0))
    zero = streamed(embeddings, activations, [10, 54], center=center, undefined="zero", average="mean")
    assert_same_scores(zero.compute(), scores.nan_to_num(0.0).mean())
    got = streamed(embeddings, activations, [10, 54], center=center).summary()
    expected = summarise(batch_moments(unit_rows(embeddings, center), activations))
    assert dataclasses.asdict(got) == pytest.approx(dataclasses.asdict(expected), rel=1e-11)


def test_forward_gives_the_batch_and_adds_it(metric):
    embeddings, activations = some_embeddings(20, seed=1), some_activations(20, seed=1) - 0.5
    assert_same_scores(metric(embeddings, activations), mono_score(embeddings, activations))
    whole = torch.cat([some_embeddings(), embeddings]), torch.cat([some_activations(), activations])
    assert_same_scores(metric.compute(), mono_score(*whole))


def test_update_leaves_what_was_computed_or_copied_before_alone(metric):
    scores, copied, kept = metric.compute(), metric.clone(), states(metric)
    value = scores.clone()
    metric.update(some_embeddings(seed=1), some_activations(seed=1))
    assert torch.equal(scores.nan_to_num(7), value.nan_to_num(7))
    assert_states(copied, kept)


def test_merged_metrics_have_seen_all_rows(metric):
    embeddings, activations = some_embeddings(20, seed=1), some_activations(20, seed=1) - 0.5
    other = streamed(embeddings, activations, [20])
    theirs = states(other)
    expected = mono_score(torch.cat([some_embeddings(), embeddings]), torch.cat([some_activations(), activations]))
    assert metric.compute() is not None  # a value that was kept must not survive
    for incoming in (other, theirs):
        merged = metric.clone()
        merged.merge_state(incoming)
        assert_same_scores(merged.compute(), expected)
        assert_states(other, theirs)
    empty = MonoScore(8, 13)
    empty.merge_state(other)
    assert_same_scores(empty.compute(), other.compute())
    other.merge_state(MonoScore(8, 13))
    assert_states(other, theirs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_alone(metric, copied):
    kept, other = states(metric), copied(metric)
    assert_states(other, kept)
    other.update(some_embeddings(5, seed=1), some_activations(5, seed=1))
    assert_states(metric, kept)
    metric.update(some_embeddings(5, seed=1), some_activations(5, seed=1))
    assert_same_scores(other.compute(), metric.compute(), atol=0)


def test_reset(metric):
    metric.reset()
    assert_states(metric, states(MonoScore(8, 13)))
    metric.update(some_embeddings(), some_activations())
    assert_same_scores(metric.compute(), mono_score(some_embeddings(), some_activations()))
    metric.reset()
    assert_states(metric, states(MonoScore(8, 13)))  # what update wrote to were not the defaults


def test_state_dict(metric):
    assert set(metric.state_dict()) == set()
    metric.persistent(True)
    other = MonoScore(8, 13)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert_states(other, states(metric))
    for one in (metric, other):
        one.update(some_embeddings(5, seed=1), some_activations(5, seed=1))
    assert_same_scores(other.compute(), metric.compute(), atol=0)
    assert set(MonoScore(8, 13, center=torch.zeros(8)).state_dict()) == {"center"}


def test_metrics_loaded_from_one_state_are_two(metric):
    metric.persistent(True)
    saved, before = metric.state_dict(), states(metric)
    one, other = MonoScore(8, 13), MonoScore(8, 13)
    for loaded in (one, other):
        loaded.persistent(True)
        loaded.load_state_dict(saved)
    one.update(some_embeddings(5, seed=1), some_activations(5, seed=1))
    assert_states(other, before)
    assert_states(metric, before)


def saved_and_loaded(metric: MonoScore) -> MonoScore:
    metric.persistent(True)
    other = MonoScore(8, 13)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    other.update(torch.zeros(0, 8), torch.zeros(0, 13))  # torchmetrics warns where a loaded metric never saw a batch
    return other


def merged_into_an_empty_one(metric: MonoScore) -> MonoScore:
    other = MonoScore(8, 13)
    other.merge_state(metric)
    return other


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda metric: metric.clone(),
        lambda metric: pickle.loads(pickle.dumps(metric)),
        saved_and_loaded,
        merged_into_an_empty_one,
        lambda metric: metric.half(),
    ],
)
def test_products_that_wait_in_float32_are_in_every_copy(copied):
    """Sparse float32 batches: the latest are not in the stored sums, but whoever reads these must find them there.

    Without them the scores would be 0.003 to 0.05 away.
    """
    embeddings, activations = some_embeddings(dtype=torch.float32), ragged(some_activations(dtype=torch.float32))
    expected = mono_score(embeddings, activations)
    metric = streamed(embeddings, activations, [30, 34])
    other = copied(metric)
    assert_same_scores(other.compute(), expected, atol=TOLERANCES[torch.float32])
    assert_same_scores(metric.compute(), expected, atol=TOLERANCES[torch.float32])
    for one in (metric, other):
        one.reset()
        assert_states(one, states(MonoScore(8, 13)))
        one.update(embeddings, activations)  # and nothing of before comes back
        assert_same_scores(one.compute(), expected, atol=TOLERANCES[torch.float32])


def test_a_batch_of_forward_is_the_batch_where_products_wait():
    embeddings, activations = some_embeddings(dtype=torch.float32), ragged(some_activations(dtype=torch.float32))
    metric = streamed(embeddings[:30], rows_of(activations, slice(0, 30)), [30])
    last = embeddings[30:], rows_of(activations, slice(30, 64))
    assert_same_scores(metric(*last), mono_score(*last), atol=TOLERANCES[torch.float32])
    assert_same_scores(metric.compute(), mono_score(embeddings, activations), atol=TOLERANCES[torch.float32])


def test_in_a_collection_called_by_keyword():
    center = some_embeddings().mean(0)
    collection = MetricCollection(
        {
            "each": MonoScore(8, 13),
            "mean": MonoScore(8, 13, average="mean"),
            "centred": MonoScore(8, 13, center=center, average="mean"),
        }
    )
    for rows in (slice(0, 20), slice(20, 41), slice(41, 64)):
        collection.update(embeddings=some_embeddings()[rows], activations=ragged(some_activations()[rows]))
    got = collection.compute()
    scores = mono_score(some_embeddings(), some_activations())
    assert_same_scores(got["each"], scores)
    assert_same_scores(got["mean"], scores.nanmean())
    assert_same_scores(got["centred"], mono_score(some_embeddings(), some_activations(), center=center).nanmean())


@pytest.mark.parametrize(
    "cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float(), lambda m: m.type(torch.float16)]
)
@pytest.mark.parametrize("computed", [False, True])
def test_casting_a_model_keeps_float64(cast, computed):
    center = some_embeddings().mean(0)
    metric = streamed(some_embeddings(), some_activations(), [30, 34], center=center)
    if computed:
        metric.compute()
    kept = states(metric)
    model = nn.ModuleDict({"layer": nn.Linear(2, 2), "score": metric})
    cast(model)
    assert_states(metric, kept)
    assert torch.equal(metric.center, center)
    assert_same_scores(metric.compute(), mono_score(some_embeddings(), some_activations(), center=center))
    metric.reset()
    assert_states(metric, states(MonoScore(8, 13)))


def test_autocast_changes_no_bit():
    embeddings, activations = some_embeddings(dtype=torch.float32), some_activations(dtype=torch.float32)
    plain = streamed(embeddings, activations, [30, 34])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = streamed(embeddings, activations, [30, 34])
    assert_states(other, states(plain))


def test_nothing_stays_on_the_graph():
    metric = MonoScore(8, 13)
    metric.update(some_embeddings().requires_grad_(), some_activations().requires_grad_())
    assert not any(getattr(metric, name).requires_grad for name in STATES)


E6, Z6 = some_embeddings(6), some_activations(6)
REFUSED = [
    (lambda _: MonoScore(0, 13), "d: got 0; expected an integer at least 1"),
    (lambda _: MonoScore(8, 1.5), "m: got 1.5; expected an integer at least 1"),
    (lambda _: MonoScore(8, 13, average="median"), "average: got 'median'; expected one of 'none', 'mean'"),
    (lambda _: MonoScore(8, 13, undefined=0), "undefined: got 0; expected one of 'nan', 'zero'"),
    (lambda _: MonoScore(8, 13, center=torch.zeros(7)),
     "center: got shape (7,), dtype torch.float32; expected a floating-point tensor of shape (8,)"),
    (lambda m: m.update(E6[:, :7], Z6), "embeddings: got width 7; expected width 8"),
    (lambda m: m.update(E6, Z6[:, :12]), "activations: got 12 latents; expected 13 latents"),
    (lambda m: m.update(E6[:5], Z6), "activations: got 6 rows; expected as many as embeddings has, 5"),
    (lambda m: m.update(E6.index_fill(0, torch.tensor(1), 0.0), Z6), "embeddings: got a row of zeros (row 1)"),
    (lambda m: m.update(E6, Z6.index_fill(0, torch.tensor(1), torch.inf)), "activations: got inf (row 1, latent 0)"),
    (lambda m: m.merge_state(MonoScore(8, 12)), "incoming_state['b']: got (12,); expected shape (13,)"),
    (lambda m: m.merge_state(MonoScore(7, 13)), "incoming_state['h_sum']: got (7,); expected shape (8,)"),
    (lambda m: m.merge_state({"n": torch.zeros(())}), "incoming_state['h_sum']: got None; expected shape (8,)"),
    (lambda m: m.merge_state(streamed(E6, Z6, [6], center=E6.mean(0))),
     "incoming_state: got another center; expected the center of this metric"),
]  # fmt: skip


@pytest.mark.door
@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(metric, call, text):
    kept = states(metric)
    with pytest.raises(InputError) as refusal:
        call(metric)
    assert str(refusal.value).startswith(text)
    assert_states(metric, kept)


@pytest.mark.door
@pytest.mark.parametrize(
    ("state", "text"), [("h_sum", "embeddings: got a row that is zero"), ("u", "activations: got NaN")]
)
def test_what_a_gpu_lets_in_is_refused_in_compute(metric, state, text):
    getattr(metric, state)[0] = torch.nan
    for call in (metric.compute, metric.summary):
        with pytest.raises(InputError) as refusal:
            call()
        assert str(refusal.value).startswith(text)
