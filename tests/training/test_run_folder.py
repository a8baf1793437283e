"""The folder of a run that trains SAEs: its record, and the model folders that finish it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monoloss.errors import InputError
from monoloss.runs.folder import RunFolder
from monoloss.training import run as training
from monoloss.training.config_files import run_to_dict
from monoloss.training.run import train_saes
from monoloss.training.run_folder import SAE_RUN, load_saes, run_config, save_saes
from support.resumed_runs import ALL_FOUR, all_bits
from support.saes import some_sae
from support.training_runs import a_run


def test_a_record_names_its_stores_by_folder_and_fingerprint(store, tmp_path):
    config = a_run({"a": ALL_FOUR["topk"]})
    alone, with_validation = run_config(store, config, None), run_config(store, config, store)
    assert (alone.training, alone.store) == (config, str(store.folder.resolve()))
    assert (alone.store_fingerprint, alone.validation, alone.validation_fingerprint) == (store.fingerprint, None, None)
    assert with_validation.validation == alone.store
    assert with_validation.validation_fingerprint == store.fingerprint
    folder = RunFolder(tmp_path, SAE_RUN)
    folder.write_or_check_config(run_to_dict(alone), resume=False)
    assert SAE_RUN.read(folder.config_file) == run_to_dict(alone)


def test_saes_come_back_under_their_names_and_finish_the_run(tmp_path):
    folder, saes = RunFolder(tmp_path, SAE_RUN), {name: some_sae(name).float().eval() for name in ("topk", "vanilla")}
    assert not folder.is_finished
    save_saes(folder, saes, {"topk": {"score_mean": 0.25}})
    assert folder.is_finished
    assert all_bits(load_saes(folder, saes)) == all_bits(saes)
    assert "0.25" in (folder.result / "topk" / "README.md").read_text(encoding="utf-8")


@pytest.mark.door
def test_a_training_that_went_astray_names_its_sae(store, tmp_path, monkeypatch):
    def astray(module: Any, *_: Any) -> None:
        module.saes[-1].decoder_bias.data.fill_(torch.nan)

    monkeypatch.setattr(training, "calibrate", astray)
    saes = {"good": ALL_FOUR["topk"], "bad": ALL_FOUR["vanilla"]}
    with pytest.raises(InputError, match=r"saes\.bad: .*decoder_bias"):
        train_saes(store, a_run(saes, epochs=1), tmp_path, progress=False)
    assert not (tmp_path / "saes").exists()
