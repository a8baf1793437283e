"""What the folder of a run holds, and which folders are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from monoloss.errors import InputError
from monoloss.files.yaml import from_yaml
from monoloss.runs.folder import RunFolder, RunKind
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.config_files import read_config
from monoloss.training.run import train_saes
from support.resumed_runs import ALL_FOUR, all_bits, config_of
from support.training_runs import a_run


def test_the_folder_of_a_run(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(epochs=1)
    saes = train_saes(store, config, "runs/first", progress=False)
    written = {path.relative_to(tmp_path / "runs/first").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    files = {"config.yaml", "logs/version_0/metrics.csv", "checkpoints/step=00000006.ckpt"}
    files |= {f"saes/{name}/{file}" for name in saes for file in ("config.json", "model.safetensors", "README.md")}
    assert written == files
    loaded = {name: SparseAutoencoder.from_pretrained(tmp_path / "runs/first/saes" / name) for name in saes}
    assert all_bits(loaded) == all_bits(saes)
    provenance = loaded["topk.tied"].provenance
    assert provenance.store_fingerprint == store.fingerprint
    assert provenance.training["name"] == "topk.tied"
    assert provenance.training["warmup_steps"] == 3
    assert provenance.training["run"]["epochs"] == 1
    settings = from_yaml((tmp_path / "runs/first/config.yaml").read_text(encoding="utf-8"), "config.yaml")
    shared = [key for key in settings if key in provenance.training["run"]]
    assert shared == list(provenance.training["run"])  # in one order everywhere


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
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a place that nobody can write to, even root")
def test_a_place_that_cannot_be_written(store):
    with pytest.raises(InputError, match="/proc/run: got a place that cannot be written"):
        train_saes(store, config_of(), "/proc/run", progress=False)


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


def test_a_resumed_run_may_move_its_movable_settings_alone(tmp_path):
    kind = RunKind("result", lambda file: from_yaml(file.read_text(encoding="utf-8"), str(file)), "data_id", ("place",))
    folder = RunFolder(tmp_path, kind)
    config = {"data_id": "abc", "place": "here", "lr": 0.1}
    folder.write_or_check_config(config, resume=True)  # nothing was written yet: from the beginning
    folder.write_or_check_config({**config, "place": "elsewhere"}, resume=True)
    assert from_yaml(folder.config_file.read_text(encoding="utf-8"), "x") == config
    for key, value in {"lr": 0.2, "data_id": "xyz"}.items():
        with pytest.raises(InputError) as caught:
            folder.write_or_check_config({**config, key: value}, resume=True)
        assert (caught.value.argument, caught.value.got) == (key, repr(value))
    folder.write_or_check_config({**config, "lr": 0.2}, resume=False)
    assert from_yaml(folder.config_file.read_text(encoding="utf-8"), "x")["lr"] == 0.2
