"""Seeds that depend on their parts alone, and torch's generator, lent and given back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monoloss.finetune.images.seeds import seed_of, seeded_from

PARTS = st.lists(st.integers(0, 50) | st.sampled_from(["batch", "image"]), max_size=4)


@given(PARTS, PARTS)
def test_seeds_are_equal_where_the_parts_are(one, other) -> None:
    assert (seed_of(*one) == seed_of(*other)) == (one == other)
    assert 0 <= seed_of(*one) < 2**63


def test_digits_do_not_run_together() -> None:
    assert len({seed_of(0, 1, 2), seed_of(0, 12), seed_of(1, 0, 2), seed_of(12, 0)}) == 4


def test_draws_depend_on_the_parts_alone() -> None:
    draws = []
    for parts in (("image", 0, 1), ("image", 0, 2), ("image", 0, 1)):
        torch.rand(3)
        with seeded_from(*parts):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_the_random_state_is_restored_after_an_error_too() -> None:
    def draw_and_fail() -> None:
        with seeded_from("image", 0):
            torch.rand(3)
            raise ZeroDivisionError

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)
