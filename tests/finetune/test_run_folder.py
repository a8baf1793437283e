"""The folder of a fine-tuning run: whose config.yaml it takes, and the measures and the model that finish it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from monoloss.errors import InputError
from monoloss.finetune.model.folder import load_finetuned
from monoloss.finetune.run_folder import FINETUNE_RUN, finish, validation_measures
from monoloss.runs.folder import RunFolder
from support.finetune_models import small_model


def test_measures_and_model_finish_a_run(tmp_path: Path) -> None:
    folder, model = RunFolder(tmp_path, FINETUNE_RUN), small_model()
    assert not folder.is_finished
    finish(folder, model, {"top1": 0.75, "score": math.nan})
    assert folder.is_finished
    measures = validation_measures(tmp_path)
    assert measures.keys() == {"top1", "score"}
    assert measures["top1"] == 0.75
    assert math.isnan(measures["score"])  # no latent was defined
    assert load_finetuned(folder.result).class_names == model.class_names


def test_a_run_without_measures_has_no_file_of_them(tmp_path: Path) -> None:
    finish(RunFolder(tmp_path, FINETUNE_RUN), small_model(), {})
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert validation_measures(tmp_path) == {}


@pytest.mark.door
def test_measures_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "validation.json").write_text('{"format_version": 2, "top1": 0.5}', encoding="utf-8")
    with pytest.raises(InputError, match=r"validation\.json: got format_version 2; expected format_version 1"):
        validation_measures(tmp_path)


@pytest.mark.door
@pytest.mark.parametrize("text", ["train_fingerprint: a\n", "model: {backbone: a}\ndata: {images: b}\n"])
def test_somebody_s_file_is_not_of_a_run(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml: got a file that no run has written"):
        RunFolder(tmp_path, FINETUNE_RUN).check(resume=False)
