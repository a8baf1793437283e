"""When a run is saved, what is kept, and what its folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from monoloss import InputError
from monoloss.data.store import FeatureStore
from monoloss.runs import saving
from monoloss.runs.checkpoints import checkpoints_in, step_of
from monoloss.sae.model import SparseAutoencoder
from monoloss.training import run as training
from monoloss.training.config_files import read_config
from monoloss.training.module import SaeTrainingModule
from monoloss.training.run import train_saes
from support.resumed_runs import ALL_FOUR, all_bits, config_of
from support.training_runs import a_run, training_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return training_store(tmp_path_factory.mktemp("training") / "store")


def saved(store, folder, **options):
    """The steps at which a run of 18 steps was saved."""
    steps, save = [], torch.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", lambda content, path: (steps.append(content["global_step"]), save(content, path)))
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
    assert yaml.safe_load(seen[0])["saes"]["jump_relu"]["sae"]["target_l0"] == 2.0


@pytest.mark.door
def test_a_training_that_went_astray_names_its_sae(store, tmp_path, monkeypatch):
    def astray(module: Any, *_: Any) -> None:
        module.saes[-1].decoder_bias.data.fill_(torch.nan)

    monkeypatch.setattr(training, "calibrate", astray)
    saes = {"good": ALL_FOUR["topk"], "bad": ALL_FOUR["vanilla"]}
    with pytest.raises(InputError, match=r"saes\.bad: .*decoder_bias"):
        train_saes(store, a_run(saes, epochs=1), tmp_path, progress=False)
    assert not (tmp_path / "saes").exists()


@pytest.mark.door
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a place that nobody can write to, even root")
def test_a_place_that_cannot_be_written(store):
    with pytest.raises(InputError, match="/proc/run: got a place that cannot be written"):
        train_saes(store, config_of(), "/proc/run", progress=False)


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


@pytest.mark.door
def test_folders_that_are_not_for_a_run(store, tmp_path):
    config = a_run({"a": ALL_FOUR["topk"]})
    (tmp_path / ".x.tmp").mkdir()
    mine = tmp_path / "config.yaml"
    mine.write_text("# mine\n")
    for folder, text in (
        (tmp_path, f"{mine}: got a file that no run has written; expected a folder of its own for the run"),
        (store.folder, f"{store.folder}: got the folder of a feature store; expected a folder of its own for the run"),
        ("", "run: got an empty text; expected a folder"),
    ):
        with pytest.raises(InputError) as caught:
            train_saes(store, config, folder, progress=False)
        assert str(caught.value) == text
    assert mine.read_text() == "# mine\n"
    assert sorted(path.name for path in store.folder.iterdir())[0] == "manifest.json"
    mine.unlink()
    train_saes(store, config, tmp_path, progress=False)
    assert (tmp_path / ".x.tmp").is_dir()  # nobody's leftovers but our own are removed
