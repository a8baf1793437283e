"""The learning rate after its warm-up, against its description."""

from __future__ import annotations

import math

import pytest

from monoloss.runs.schedule import factor_after_warmup


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.0, 0.0]),
        ("cosine", [1.0, math.cos(math.pi / 8) ** 2, 0.5, 0.0, 0.0]),
    ],
)
def test_from_1_after_the_warm_up_to_0_at_the_end(course, expected):
    steps = (2, 3, 4, 6, 9)  # of a run of 6 with a warm-up of 2
    assert [factor_after_warmup(course, step, 2, 6) for step in steps] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("course", ["constant", "linear", "cosine"])
def test_a_warm_up_as_long_as_the_run_is_followed_by_1(course):
    assert factor_after_warmup(course, 6, 6, 6) == factor_after_warmup(course, 8, 8, 6) == 1.0
