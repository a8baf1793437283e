"""Plausible faults, each put into the library: the check that passes without it is seen to fail with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import monoloss.losses
import monoloss.metrics
from monoloss.functional import loss, moments, score, streaming
from monoloss.functional.moments import MonoMoments
from support.mono_checks import (
    check_gradient_above_a_floor,
    check_gradient_of_floors_beside_moving_minima,
    check_gradient_where_the_minimum_moves,
    check_loss_value,
    check_mean_score,
    check_memory_keeps_scores_in_range,
    check_score_of_float32_at_offset_100,
    check_score_of_one_call,
    check_score_while_the_minimum_falls,
)

Patch = pytest.MonkeyPatch


def score_without_self_pairs_taken_off(patch: Patch) -> None:
    def score_of(sums: MonoMoments, *, undefined: str = "nan", w_squared: Tensor | None = None) -> Tensor:
        defined = score.is_defined(sums)
        ratio = (sums.w.double().square().sum(1) if w_squared is None else w_squared) / torch.where(
            defined, sums.u.square() - sums.v, 1.0
        )
        return torch.where(defined, ratio, torch.nan if undefined == "nan" else 0.0)

    for module in (score, loss, monoloss.metrics.mono_score):
        patch.setattr(module, "score_of", score_of)


def second_moment_not_corrected_for_the_shift(patch: Patch) -> None:
    right = moments.rebase
    for module in (moments, streaming):
        patch.setattr(module, "rebase", lambda sums, b: replace(right(sums, b), v=sums.v))


def raw_sums_shifted_at_the_end(patch: Patch) -> None:
    """Equal on paper: u - n b, v - 2 b u + n b^2, w - b H."""

    def batch_moments(h: Tensor, z: Tensor) -> MonoMoments:
        n, b, h_sum = float(h.shape[0]), z.amin(0), h.sum(0)
        u, v, w = z.sum(0), z.square().sum(0), z.T @ h
        v, u, w = v - 2 * b * u + n * b.square(), u - n * b, w - b[:, None] * h_sum
        return MonoMoments(torch.tensor(n).double(), h_sum.double(), b.double(), u.double(), v.double(), w)

    patch.setattr(score, "add_batch", lambda _none, h, z: batch_moments(h, z))


def undefined_latents_count_as_zero_in_the_loss(patch: Patch) -> None:
    patch.setattr(loss, "loss_of", lambda scores, _defined: 1.0 - scores.mean())


def undefined_latents_count_as_zero_in_the_mean(patch: Patch) -> None:
    right = monoloss.metrics.mono_score.score_of
    patch.setattr(monoloss.metrics.mono_score, "score_of", lambda sums, **_: right(sums, undefined="zero"))


def memory_without_the_rule(patch: Patch) -> None:
    """Takes part as soon as u^2 > v, not only while u^2 >= 2 v."""
    patch.setattr(loss, "_takes_part", score.is_defined)


def gradient_without_the_share_of_the_minimum(patch: Patch) -> None:
    patch.setattr(loss, "_shared_minimum", lambda *_, **__: None)


def gradient_of_the_minimum_at_floors_too(patch: Patch) -> None:
    """The minimum of a ReLU is its floor, which no row moves."""

    def shared(activations: Tensor, sums: MonoMoments, *_: object, **__: object) -> Tensor:
        return (activations.detach() == sums.b).sum(0).double()

    patch.setattr(loss, "_shared_minimum", shared)


def gradient_without_the_change_of_the_divisor(patch: Patch) -> None:
    """Without - s (u - a)."""
    right = loss._Batch.gradient_of_values

    def gradient_of_values(self: object, factor: Tensor, scores: Tensor, of_minimum: Tensor | None) -> Tensor:
        return right(self, factor, torch.zeros_like(scores), of_minimum)

    patch.setattr(loss._Batch, "gradient_of_values", gradient_of_values)


VARIANTS: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (score_without_self_pairs_taken_off, check_score_of_one_call),
    (score_without_self_pairs_taken_off, check_score_while_the_minimum_falls),
    (score_without_self_pairs_taken_off, check_loss_value),
    (second_moment_not_corrected_for_the_shift, check_score_while_the_minimum_falls),
    (raw_sums_shifted_at_the_end, check_score_of_float32_at_offset_100),
    (undefined_latents_count_as_zero_in_the_loss, check_loss_value),
    (undefined_latents_count_as_zero_in_the_mean, check_mean_score),
    (memory_without_the_rule, check_memory_keeps_scores_in_range),
    (gradient_without_the_share_of_the_minimum, check_gradient_where_the_minimum_moves),
    (gradient_of_the_minimum_at_floors_too, check_gradient_of_floors_beside_moving_minima),
    (gradient_of_the_minimum_at_floors_too, check_gradient_above_a_floor),
    (gradient_without_the_change_of_the_divisor, check_gradient_above_a_floor),
    (gradient_without_the_change_of_the_divisor, check_gradient_where_the_minimum_moves),
]


@pytest.mark.parametrize(
    ("variant", "check"), [pytest.param(*pair, id=f"{pair[0].__name__}-{pair[1].__name__}") for pair in VARIANTS]
)
def test_wrong_variant_is_rejected(variant, check):
    with pytest.MonkeyPatch.context() as patch:
        variant(patch)
        with pytest.raises(AssertionError):
            check()


@pytest.mark.parametrize("check", sorted({check for _, check in VARIANTS}, key=lambda check: check.__name__))
def test_the_same_check_passes_without_the_fault(check):
    check()


def test_raw_sums_are_equal_on_paper():
    """At offset 0 the very variant that fails at offset 100 passes: it is the rounding that is seen there."""
    with pytest.MonkeyPatch.context() as patch:
        raw_sums_shifted_at_the_end(patch)
        check_score_of_one_call()
