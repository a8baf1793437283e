"""The learning rate over a run, and warm-ups that a run is too short for."""

from __future__ import annotations

import pytest

from monoloss.errors import InputError
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.schedule import check_warmup, learning_rate_factor
from support.saes import some_config


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_falls_from_the_warm_up_to_nothing(schedule):
    factor = learning_rate_factor(schedule, 10, 110)
    assert [factor(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(60) == pytest.approx(0.5)
    assert 0.0 < factor(109) < 0.011
    assert factor(110) == 0.0
    falling = [factor(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_without_warm_up_a_constant_rate_is_1_from_the_first_step():
    factor = learning_rate_factor("constant", 0, 5)
    assert [factor(step) for step in range(5)] == [1.0] * 5
    assert learning_rate_factor("linear", 0, 5)(0) == 1.0


@pytest.mark.door
def test_a_warm_up_must_end_before_the_run():
    saes = {name: SaeTraining(some_config("topk", 8, 2), warmup_steps=n) for name, n in (("a", 0), ("b", 6))}
    check_warmup(TrainingConfig(saes), 7)
    with pytest.raises(InputError) as caught:
        check_warmup(TrainingConfig(saes), 6)
    assert str(caught.value) == "saes.b.warmup_steps: got 6; expected fewer than the run's 6 steps"
