"""The sizes of ``monoloss benchmark`` and the comparison of its four ways; the command is in tests/commands."""

from __future__ import annotations

import pytest
import torch

from monoloss import InputError
from monoloss.benchmark import run
from monoloss.benchmark.run import OURS, PAIRWISE, PRODUCT, TOLERANCE, TWO_PASS, Sizes, Ways

SIZES = Sizes(width=8, n_latents=32, k=2, batch_size=20, max_rows=150, pairwise_rows=64, rounds=1)


def rows(n=50):
    return torch.randn(n, SIZES.width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("pairwise_rows", "max_rows", "expected"),
    [(64, 150, (16, 32, 64, 128, 150)), (64, 128, (16, 32, 64, 128)), (16, 16, (4, 8, 16)), (18, 19, (4, 9, 18, 19))],
)
def test_rows_double_up_to_the_largest_number(pairwise_rows, max_rows, expected):
    sizes = Sizes(pairwise_rows=pairwise_rows, max_rows=max_rows)
    assert sizes.rows == expected
    assert sizes.pairwise == expected[:3]


@pytest.mark.door
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 33, "n_latents": 32}, r"^k: got 33; expected at most n_latents, 32$"),
        ({"max_rows": 63, "pairwise_rows": 64}, r"^max_rows: got 63; expected an integer at least 64$"),
        ({"rounds": 0}, r"^rounds: got 0; expected an integer at least 1$"),
    ],
)
def test_sizes_that_cannot_be_measured(options, text):
    with pytest.raises(InputError, match=text):
        Sizes(**options)


def test_all_ways_score_the_same_rows():
    ways = Ways(SIZES)
    runs = ways.runs(rows())
    assert list(runs) == [PAIRWISE, PRODUCT, TWO_PASS, OURS]
    with torch.no_grad():
        scores = {name: score() for name, score in runs.items()}
        assert ways.check(rows()) <= TOLERANCE
    is_compared = run.n_eff(ways.metric.sums) >= run.MIN_N_EFF
    assert is_compared.sum() > SIZES.n_latents / 2
    for name in (PAIRWISE, PRODUCT, TWO_PASS):
        assert run._difference(scores[name], scores[OURS], is_compared) <= TOLERANCE, name


def test_ways_that_differ_are_an_error(monkeypatch):
    ways = Ways(SIZES)
    right = run.pairwise_score
    monkeypatch.setattr(run, "pairwise_score", lambda *arguments: right(*arguments) + 2 * TOLERANCE)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"^scores differ by 2\.\de-04$"):
        ways.check(rows())


def test_the_difference_is_of_the_compared_latents_and_sees_undefined_ones():
    scores, others = torch.tensor([0.5, torch.nan, 0.25, 0.0]), torch.tensor([0.5, torch.nan, 0.75, torch.nan])
    assert run._difference(scores, others, torch.tensor([True, True, False, False])) == 0
    assert run._difference(scores, others, torch.tensor([True, True, True, False])) == 0.5
    assert run._difference(scores, others, torch.tensor([False, False, False, True])) == torch.inf
    assert run._difference(scores, others, torch.zeros(4, dtype=torch.bool)) == 0
