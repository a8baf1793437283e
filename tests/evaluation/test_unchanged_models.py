"""An evaluation reads every row once, in stored order, and changes nothing of the models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monoloss.errors import InputError
from monoloss.evaluation.run import evaluate
from monoloss.sae.model import SparseAutoencoder
from support.evaluated_models import ROWS, D, M, N, some_trained_sae
from support.sae_checks import Spy, check_evaluation_changes_no_tensor, check_every_row_is_read_once_in_order
from support.saes import bits_of, some_config


def test_every_row_is_read_once_in_stored_order(tmp_path):
    check_every_row_is_read_once_in_order(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 7, N, N + 1])
def test_the_last_short_batch_counts(stores, batch_size):
    spy = Spy()
    evaluate(stores["shards"], {"spy": spy}, batch_size=batch_size)
    assert torch.equal(torch.cat(spy.seen), ROWS)


def test_changes_no_tensor(tmp_path):
    check_evaluation_changes_no_tensor(tmp_path)


class Layered(nn.Module):
    """A module of parts in different modes, which notes in which modes it was run."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D)).eval()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(D, M))
        self.fails, self.ran_in = fails, []

    def encode(self, inputs: Tensor) -> Tensor:
        self.ran_in.append({part.training for part in self.modules()})
        assert not torch.is_grad_enabled()
        if self.fails:
            raise ZeroDivisionError("a fault")
        return self.head(self.frozen(inputs)).relu()


def modes_of(model: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in model.named_modules()}


def test_modes_of_all_parts_come_back(stores):
    layered, sae = Layered(), some_trained_sae("batch_topk").train()
    before, bits = modes_of(layered), bits_of(layered)
    assert set(before.values()) == {True, False}
    evaluate(stores["single"], {"a": layered, "b": sae}, batch_size=100)
    assert layered.ran_in == [{False}, {False}]
    assert modes_of(layered) == before
    assert all(modes_of(sae).values())
    assert bits_of(layered) == bits
    assert all(parameter.grad is None for parameter in layered.parameters())


def test_modes_come_back_after_an_error(stores):
    layered, sae = Layered(fails=True), some_trained_sae("topk").train()
    before = modes_of(layered)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        evaluate(stores["single"], {"b": sae, "a": layered})
    assert modes_of(layered) == before
    assert all(modes_of(sae).values())
    uncalibrated = SparseAutoencoder(D, some_config("batch_topk", M, 4))
    with pytest.raises(InputError):
        evaluate(stores["single"], {"a": uncalibrated})
    assert all(modes_of(uncalibrated).values())
