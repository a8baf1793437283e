"""Settings of every run: defaults, refusals, and their place in a configuration."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from monoloss.errors import InputError
from monoloss.runs.settings import ResumableBatches, RunSettings, shared_last


def test_loggers_become_a_tuple_without_repeats():
    settings = RunSettings(epochs=1, batch_size=2, loggers=["wandb", "tensorboard", "wandb"])
    assert settings.loggers == ("wandb", "tensorboard")
    assert RunSettings(epochs=1, batch_size=2).loggers == ()


def test_shared_settings_come_last_in_their_order():
    shared = asdict(RunSettings(epochs=1, batch_size=2))
    content = {"seed": 3, "saes": {}, "epochs": 4, "store": None}
    assert list(shared_last(content).items()) == [("saes", {}), ("store", None), ("seed", 3), ("epochs", 4)]
    assert list(shared_last({**shared, "x": 1})) == ["x", *shared]


def test_batches_are_told_by_their_methods():
    class Batches:
        def __len__(self):
            return 1

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    assert isinstance(Batches(), ResumableBatches)
    assert not isinstance([], ResumableBatches)


@pytest.mark.door
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 0}, "epochs: got 0; expected an integer at least 1"),
        ({"batch_size": 1.5}, "batch_size: got 1.5; expected an integer at least 1"),
        ({"accumulate_batches": True}, "accumulate_batches: got True; expected an integer at least 1"),
        ({"log_every_steps": None}, "log_every_steps: got None; expected an integer at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: got 0; expected an integer at least 1"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps: got 0; expected an integer at least 1"),
        ({"checkpoint_every_minutes": 0}, "checkpoint_every_minutes: got 0; expected a number above 0.0"),
        ({"precision": "16"}, "precision: got '16'; expected one of '32-true', 'bf16-mixed'"),
        ({"loggers": "wandb"}, "loggers: got a str; expected a list of 'tensorboard', 'wandb' or both"),
        ({"loggers": ["csv"]}, "loggers: got 'csv'; expected one of 'tensorboard', 'wandb'"),
        ({"seed": -1}, f"seed: got -1; expected an integer at least 0 and below {2**63}"),
    ],
)
def test_error_texts(options, text):
    with pytest.raises(InputError) as caught:
        RunSettings(**({"epochs": 1, "batch_size": 2} | options))
    assert str(caught.value) == text
