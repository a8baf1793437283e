"""When a run is saved, what is kept, and what its folder holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from monoloss.sae.model import SparseAutoencoder
from monoloss.training import checkpoints
from monoloss.training.checkpoints import checkpoints_in, step_of
from monoloss.training.config_files import read_config
from monoloss.training.sae import train_saes
from resume_samples import ALL_FOUR, all_bits, config_of
from training_samples import a_run


def saved(store, folder, **options):
    """The steps at which a run of 18 steps was saved."""
    steps, save = [], torch.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoints.torch, "save", lambda content, path: (steps.append(content["global_step"]), save(content, path))
        )
        config = a_run({"vanilla": ALL_FOUR["vanilla"]}, **options)
        train_saes(store, config, folder, progress=False)
    return steps, [step_of(path) for path in checkpoints_in(folder / "checkpoints")]


@pytest.mark.parametrize(
    ("options", "steps", "kept"),
    [
        ({}, [18], [18]),
        ({"checkpoint_every_minutes": None}, [18], [18]),
        ({"checkpoint_every_steps": 5}, [5, 10, 15, 18], [18, 15]),
        ({"checkpoint_every_steps": 6, "keep_checkpoints": 5}, [6, 12, 18], [18, 12, 6]),
        ({"checkpoint_every_steps": 2, "accumulate_batches": 3, "keep_checkpoints": 1}, [2, 4, 6], [6]),
    ],
)
def test_every_so_many_steps_and_at_the_end(store, tmp_path, options, steps, kept):
    assert saved(store, tmp_path, **options) == (steps, kept)


def test_every_so_many_minutes(store, tmp_path, monkeypatch):
    """A clock that goes on by 20 s with every look at it: one look a step, one at the start and after each save."""
    ticks = iter(range(0, 10_000, 20))
    monkeypatch.setattr(checkpoints, "monotonic", lambda: next(ticks))
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


def test_the_folder_of_a_run(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(epochs=1)
    saes = train_saes(store, config, "runs/first", progress=False)
    found = {path.relative_to(tmp_path / "runs/first").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    files = {"config.yaml", "logs/version_0/metrics.csv", "checkpoints/step=00000006.ckpt"}
    files |= {f"saes/{name}/{file}" for name in saes for file in ("config.json", "model.safetensors", "README.md")}
    assert found == files
    loaded = {name: SparseAutoencoder.from_pretrained(tmp_path / "runs/first/saes" / name) for name in saes}
    assert all_bits(loaded) == all_bits(saes)
    provenance = loaded["topk.tied"].provenance
    assert provenance.store_fingerprint == store.fingerprint
    assert provenance.training["name"] == "topk.tied"
    assert provenance.training["warmup_steps"] == 3
    assert provenance.training["run"]["epochs"] == 1


def test_the_config_is_there_before_the_first_step_and_says_everything(store, tmp_path, monkeypatch):
    seen: list[Any] = []
    forward = SparseAutoencoder.forward

    def look(self: SparseAutoencoder, inputs: torch.Tensor) -> Any:
        seen.append((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
        return forward(self, inputs)

    monkeypatch.setattr(SparseAutoencoder, "forward", look)
    config = config_of(epochs=1, log_every_steps=500)
    train_saes(store, config, tmp_path / "run", validation=store, progress=False)
    written = read_config(tmp_path / "run" / "config.yaml")
    assert written.training == config
    assert (written.store, written.store_fingerprint) == (str(store.folder.resolve()), store.fingerprint)
    assert (written.validation, written.validation_fingerprint) == (written.store, written.store_fingerprint)
    assert set(seen) == {(tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")}
    assert yaml.safe_load(seen[0])["saes"]["jump_relu"]["sae"]["target_l0"] == 4.0
