"""When a run is saved, how many checkpoints stay, and what is not saved."""

from __future__ import annotations

import pytest
import torch

from monoloss.errors import InputError
from monoloss.runs import saving
from monoloss.runs.checkpoints import checkpoints_in, step_of
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.module import SaeTrainingModule
from monoloss.training.run import train_saes
from support.resumed_runs import ALL_FOUR, config_of
from support.training_runs import a_run


def saved(store, folder, **options):
    """The steps at which a run of 18 steps was saved."""
    steps, save = [], torch.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", lambda content, path: (steps.append(content["global_step"]), save(content, path)))
        config = a_run({"vanilla": ALL_FOUR["vanilla"]}, **options)
        train_saes(store, config, folder, progress=False)
    return steps, [step_of(path) for path in checkpoints_in(folder / "checkpoints")]


@pytest.mark.parametrize(
    ("options", "steps", "remaining"),
    [
        ({}, [18], [18]),
        ({"checkpoint_every_minutes": None}, [18], [18]),
        ({"checkpoint_every_steps": 5}, [5, 10, 15, 18], [18, 15]),
        ({"checkpoint_every_steps": 6, "keep_checkpoints": 5}, [6, 12, 18], [18, 12, 6]),
        ({"checkpoint_every_steps": 2, "accumulate_batches": 3, "keep_checkpoints": 1}, [2, 4, 6], [6]),
    ],
)
def test_every_so_many_steps_and_at_the_end(store, tmp_path, options, steps, remaining):
    assert saved(store, tmp_path, **options) == (steps, remaining)


def test_every_so_many_minutes(store, tmp_path, monkeypatch):
    """A clock that advances by 20 s with every look at it: one look a step, one at the start and after each save."""
    ticks = iter(range(0, 10_000, 20))
    monkeypatch.setattr(saving, "monotonic", lambda: next(ticks))
    assert saved(store, tmp_path, checkpoint_every_minutes=2.0)[0] == [6, 12, 18]


def test_a_checkpoint_holds_calibrated_thresholds(store, tmp_path):
    config = config_of(checkpoint_every_steps=9, keep_checkpoints=9)
    train_saes(store, config, tmp_path, progress=False)
    thresholds = []
    for path in checkpoints_in(tmp_path / "checkpoints"):
        state = torch.load(path, weights_only=True)["state_dict"]
        prefix = f"saes.{list(ALL_FOUR).index('batch_topk')}."
        sae = SparseAutoencoder(32, ALL_FOUR["batch_topk"].sae, input_mean=torch.zeros(32))
        sae.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        assert len(sae.eval().encode(store.embeddings()).values) == 3 * store.n_rows
        thresholds.append(float(sae.activation.threshold))
    assert thresholds[0] != thresholds[1]


@pytest.mark.door
def test_what_has_diverged_is_not_saved(store, tmp_path, monkeypatch):
    """The last good checkpoint stays, and the error names the SAE."""
    config = a_run({"good": ALL_FOUR["topk"], "evil": ALL_FOUR["vanilla"]}, checkpoint_every_steps=1, epochs=2)
    step = SaeTrainingModule.optimizer_step

    def broken(self, *args):
        step(self, *args)
        if self.global_step + 1 == 4:
            torch.nn.init.constant_(self.by_name()["evil"].decoder_bias, torch.nan)

    monkeypatch.setattr(SaeTrainingModule, "optimizer_step", broken)
    with pytest.raises(
        InputError, match=r"saes\.evil: got weights that are no finite numbers after step 4; expected a "
    ):
        train_saes(store, config, tmp_path / "run", progress=False)
    assert [step_of(path) for path in checkpoints_in(tmp_path / "run" / "checkpoints")] == [3, 2]
