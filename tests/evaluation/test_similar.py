"""Latents that resemble each other by their decoders, against a loop over all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from monoloss.errors import InputError
from monoloss.evaluation import similar
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.similar import SimilarLatents, closest_matches, similar_latents

D = 6


def some_evaluation(m: int = 30, seed: int = 0, dead: tuple[int, ...] = (3, 8)) -> Evaluation:
    directions = torch.randn(m, D, generator=torch.Generator().manual_seed(seed))
    density = torch.full((m,), 0.1, dtype=torch.float64)
    density[list(dead)] = 0.0
    unit = torch.nn.functional.normalize(directions, dim=1).half()
    return Evaluation("mine", {}, {}, {"density": density}, Examples.none(m, 1), decoder_directions=unit)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / math.sqrt(one @ one) / math.sqrt(other @ other))


def by_loops(one: Evaluation, other: Evaluation, k: int, *, but_itself: bool) -> tuple[list[list[int]], np.ndarray]:
    rows, candidates = (side.decoder_directions.double().numpy() for side in (one, other))
    latents, cosines = [], []
    for i, row in enumerate(rows):
        found = [
            (-cosine(row, candidate), j)
            for j, candidate in enumerate(candidates)
            if other.latents["density"][j] > 0 and not (but_itself and i == j)
        ]
        found = sorted(found)[:k]
        latents.append([j for _, j in found] + [-1] * (k - len(found)))
        cosines.append([-negated for negated, _ in found] + [math.nan] * (k - len(found)))
    return latents, np.array(cosines)


def check_both() -> None:
    one, other = some_evaluation(), some_evaluation(21, seed=1, dead=(0, 20))
    for k in (1, 5, 40):
        found = similar_latents(one, k)
        latents, cosines = by_loops(one, one, k, but_itself=True)
        assert found.latents.tolist() == latents
        np.testing.assert_allclose(found.cosines, cosines, atol=1e-6)
    for left, right in ((one, other), (other, one), (one, one)):
        match = closest_matches(left, right)
        latents, cosines = by_loops(left, right, 1, but_itself=False)
        assert match.latents.tolist() == [row[0] for row in latents]
        np.testing.assert_allclose(match.cosines, cosines[:, 0], atol=1e-6)


@pytest.mark.parametrize("block", [1, 70, 2**22])
def test_matches_a_loop_over_pairs(monkeypatch, block):
    monkeypatch.setattr(similar, "_BLOCK_COSINES", block)
    check_both()


def test_no_rounding_exchanges_two_latents():
    """Float32 cosines of 6 numbers are 1e-6 off at most; neighbours in the order above are further apart."""
    one, other = some_evaluation(), some_evaluation(21, seed=1, dead=(0, 20))
    for pair in ((one, one), (one, other), (other, one)):
        _, cosines = by_loops(*pair, 40, but_itself=False)
        assert np.nanmin(cosines[:, :-1] - cosines[:, 1:]) > 1e-5


def test_never_all_cosines_at_once(monkeypatch):
    sizes = []
    nearest = similar._nearest

    def noted(cosines: Tensor, k: int) -> SimilarLatents:
        sizes.append(cosines.numel())
        return nearest(cosines, k)

    monkeypatch.setattr(similar, "_BLOCK_COSINES", 100)
    monkeypatch.setattr(similar, "_nearest", noted)
    check_both()
    assert max(sizes) <= 100


def test_of_equal_cosines_the_lower_number():
    directions = torch.eye(D)[[0, 1, 0, 1, 0, 0]].half()
    one = replace(some_evaluation(6, dead=()), decoder_directions=directions)
    assert similar_latents(one, 5).latents[4].tolist() == [0, 2, 5, 1, 3]


def test_a_latent_without_a_direction_and_no_latent_that_is_active():
    one = some_evaluation(4, dead=())
    one.decoder_directions[2] = 0
    assert similar_latents(one, 3).cosines[2].tolist() == [0.0, 0.0, 0.0]
    none = replace(one, latents={"density": torch.zeros(4)})
    assert closest_matches(one, none).latents.tolist() == [-1] * 4
    assert closest_matches(one, none).cosines.isnan().all()


def itself_too(_: Evaluation) -> Callable[..., object]:
    nearest = similar._nearest
    return lambda cosines, k: nearest(cosines.nan_to_num(neginf=1.0), k)


WRONG = {
    "itself and dead latents too": ("_nearest", itself_too),
    "dead latents too": ("_is_active", lambda _: lambda one: torch.ones(len(one.latents["density"]), dtype=torch.bool)),
    "products instead of cosines": ("_directions", lambda _: lambda _, one: 2 * one.decoder_directions.float()),
    "the farthest": (
        "_cosine_blocks",
        lambda _: lambda rows, candidates, allowed: [(0, (-rows @ candidates.t()).masked_fill(~allowed, -torch.inf))],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_variants_are_seen(monkeypatch, wrong):
    name, variant = WRONG[wrong]
    monkeypatch.setattr(similar, name, variant(some_evaluation()))
    with pytest.raises(AssertionError):
        check_both()


@pytest.mark.door
def test_error_texts():
    one = some_evaluation()
    without = replace(one, name="old", decoder_directions=None)
    narrow = replace(one, decoder_directions=one.decoder_directions[:, :-1])
    lacks = (
        "got 'old', which has no decoder directions; expected the evaluation of a SAE; "
        "if an earlier version wrote it, evaluate again"
    )
    for call, text in (
        (lambda: similar_latents(without), f"evaluation: {lacks}"),
        (lambda: closest_matches(one, without), f"other: {lacks}"),
        (
            lambda: closest_matches(one, narrow),
            "other: got directions of width 5; expected the width of the first evaluation, 6",
        ),
        (lambda: similar_latents(one, 0), "k: got 0; expected an integer at least 1"),
        (lambda: similar_latents({}), "evaluation: got a dict; expected an Evaluation"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text


def test_chosen_latents_are_compared_as_all_are():
    evaluation, chosen = some_evaluation(), torch.tensor([13, 0, 8])
    few, every = similar_latents(evaluation, 4, chosen), similar_latents(evaluation, 4)
    assert torch.equal(few.latents, every.latents[chosen])
    torch.testing.assert_close(few.cosines, every.cosines[chosen], rtol=0, atol=1e-6, equal_nan=True)
