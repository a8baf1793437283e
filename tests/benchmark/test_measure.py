"""How time is measured and extrapolated, and what rows it is measured with."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

import reference
from monoloss.benchmark import measure
from monoloss.benchmark.measure import quadratic_fit, random_rows, time_in_turn


def test_opponents_take_turns_and_the_first_round_is_not_timed(monkeypatch):
    ticks, ran, said = itertools.count(), [], []
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: 2.0 ** next(ticks)))
    opponents = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    timings = time_in_turn(opponents, 3, advance=said.append)
    assert "".join(ran) == "".join(said) == "cbaabccbaabc"
    # run number r, from 0, lasts 2^(2 r + 1) - 2^(2 r) = 4^r
    assert timings["a"].seconds == (4.0**3, 4.0**8, 4.0**9)
    assert timings["a"].median == 4.0**8
    assert timings["a"].minimum == 4.0**3
    assert timings["c"].as_dict() == {"median_s": 4.0**6, "minimum_s": 4.0**5, "runs": 3}
    assert [len(timing.seconds) for timing in time_in_turn(opponents, 2, warm=False).values()] == [2, 2, 2]
    assert len(ran) == 12 + 6


def test_quadratic_fit():
    rows = [512, 1024, 2048]
    fit = quadratic_fit(rows, [3e-6 * n * n + 0.002 * n for n in rows])
    assert fit(2**16) == pytest.approx(3e-6 * 2**32 + 0.002 * 2**16)
    superlinear = quadratic_fit(rows, [n**2.2 for n in rows])
    assert superlinear.linear == 0
    assert superlinear(1024) == pytest.approx(1024**2.2, rel=0.3)
    assert quadratic_fit(rows, [n**0.8 for n in rows]).square == 0


def test_random_rows_follow_from_the_seed():
    one, again, other = (random_rows(50, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (50, 8)
    chance = reference.chance_pairwise(one)
    assert 0.05 < chance < 0.9
