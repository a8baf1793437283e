"""What the host knows of the most idle latent without asking the device."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from monoloss.sae.config import AuxLoss, TopKConfig
from monoloss.sae.idle import LongestIdle
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import SparseActivations
from monoloss.waiting import branch_free

AFTER = 10


def some_sae() -> SparseAutoencoder:
    return SparseAutoencoder(4, TopKConfig("topk", 6, 2, aux=AuxLoss(k=2, dead_after_samples=AFTER)))


def count(sae: SparseAutoencoder, n_rows: int, *active: int) -> None:
    """Count rows on which only these latents are active."""
    indices = torch.tensor([active] * n_rows)
    sae.count_activity_(SparseActivations(torch.ones(indices.shape), indices, 6))


def test_the_bound_is_the_rows_counted():
    counts = torch.zeros(3, dtype=torch.int64)
    idle = LongestIdle(counts)
    assert idle.bound(counts) == 0
    for total in (5, 10):
        before = idle.bound(counts)
        counts += 5
        idle.add(counts, 5, before)
        assert idle.bound(counts) == total
    counts[0] = 0
    assert idle.bound(counts) is None
    counts[1] = 2
    idle.read(counts)
    assert idle.bound(counts) == 10


@pytest.mark.parametrize(
    "change",
    [
        lambda sae: sae.samples_since_active.fill_(AFTER),
        lambda sae: sae.load_state_dict(sae.state_dict() | {"samples_since_active": torch.full((6,), AFTER)}),
        lambda sae: setattr(sae, "samples_since_active", torch.full((6,), AFTER)),
    ],
)
def test_whoever_changes_the_counts_makes_the_bound_unknown(change):
    """The wrong variant, a bound that is believed whoever has written, would skip the aux loss of dead latents."""
    sae = some_sae()
    with branch_free():
        assert not sae.may_have_dead
        change(sae)
        assert sae.may_have_dead
        count(sae, 1, 0, 1)  # what is unknown stays unknown
        assert sae.may_have_dead


def test_no_latent_can_be_dead_before_so_many_rows():
    sae = some_sae()
    with branch_free():
        count(sae, AFTER - 1, 0, 1)
        assert not sae.may_have_dead
        assert not sae.dead.any()
        count(sae, 1, 0, 1)
        assert sae.may_have_dead
        assert sae.dead.any()


def test_reading_makes_it_exact():
    sae = some_sae()
    with branch_free():
        for latents in ((0, 1), (2, 3), (4, 5)) * 4:
            count(sae, 1, *latents)
        assert sae.may_have_dead  # 12 rows have passed, though each latent was active on one of the last three
        sae.read_idle()
        assert not sae.may_have_dead
        count(sae, AFTER - 3, 0, 1)
        assert not sae.may_have_dead
        count(sae, 1, 0, 1)
        assert sae.may_have_dead  # the most idle of all read may have stayed idle; it has not
        assert not sae.dead.any()
        count(sae, 1, 0, 1)
        assert sae.dead.tolist() == [False, False, True, True, False, False]


def test_on_a_cpu_the_counts_themselves_are_asked():
    sae = some_sae()
    for latents in ((0, 1), (2, 3), (4, 5)) * 4:
        count(sae, 1, *latents)
    assert not sae.may_have_dead


def test_a_tensor_at_the_place_of_a_freed_one_is_not_taken_for_it():
    """The variant that compares addresses takes it for that in half of the runs."""
    for _ in range(20):
        sae = some_sae()
        with branch_free():
            for _ in range(2):
                sae.samples_since_active = torch.full((6,), AFTER)
            assert sae.may_have_dead


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))])
def test_a_copy_knows_no_less_than_the_truth(copied):
    sae = some_sae()
    with branch_free():
        count(sae, AFTER, 0, 1)
        other = copied(sae)
        assert other.may_have_dead
        count(other, 1, 0, 1)
        assert other.may_have_dead


def test_counts_made_in_inference_mode_are_unknown():
    with torch.inference_mode():
        sae = some_sae()
    with branch_free():
        assert sae.may_have_dead
