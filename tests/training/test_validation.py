"""Figures on held-out rows: those of the evaluation, and no bit of the training changes by them."""

from __future__ import annotations

import pytest
import torch

from monoloss import Evaluation, FeatureStore, InputError, evaluate
from monoloss.training.run import train_saes
from monoloss.training.validation import VALIDATED
from support.resumed_runs import ALL_FOUR, all_bits, config_of, logged_lines, train_until_killed
from support.saes import structured_store
from support.training_runs import LOGGED, a_run


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return structured_store(tmp_path_factory.mktemp("held_out") / "store", 120, seed=1)


def test_validation_changes_no_bit_and_logs_what_evaluate_finds(store, held_out, tmp_path):
    without = train_saes(store, config_of(log_every_steps=6), tmp_path / "without", progress=False)
    config = config_of(log_every_steps=6, validate_every_steps=9)
    saes = train_saes(store, config, tmp_path / "with", validation=held_out, progress=False)
    assert all_bits(saes) == all_bits(without)
    lines, plain_lines = logged_lines(tmp_path / "with"), logged_lines(tmp_path / "without")
    assert sorted(lines) == [5, 8, 11, 17]
    names = {f"{name}/{figure}" for name in ALL_FOUR for figure in VALIDATED}
    assert set(lines[8]) == names | {"epoch", "step"}
    assert lines[8]["epoch"] == "1"
    for step, line in plain_lines.items():
        assert {key: value for key, value in lines[step].items() if key not in names} == line
    for name, evaluation in evaluate(held_out, dict(saes)).items():
        for title, key in VALIDATED.items():
            assert float(lines[17][f"{name}/{title}"]) == pytest.approx(evaluation.summary[key], nan_ok=True)
        loaded = Evaluation.load(tmp_path / "with" / "evaluations" / name)
        assert dict(loaded.summary) == pytest.approx(dict(evaluation.summary), nan_ok=True)
        card = (tmp_path / "with" / "saes" / name / "README.md").read_text(encoding="utf-8")
        assert "purity_weighted_by_mass" in card
    assert not (tmp_path / "without" / "evaluations").exists()


def test_validation_resumes_with_its_run(store, held_out, tmp_path):
    options = {"validate_every_steps": 2, "checkpoint_every_steps": 3, "log_every_steps": 3, "epochs": 2}
    config = a_run({"a": ALL_FOUR["batch_topk"]}, **options)
    train_saes(store, config, tmp_path / "whole", validation=held_out, progress=False)
    train_until_killed(store, config, tmp_path / "run", 6, validation=held_out)
    train_saes(store, config, tmp_path / "run", validation=held_out, resume=True, progress=False)
    assert logged_lines(tmp_path / "run") == logged_lines(tmp_path / "whole")


@pytest.mark.door
def test_held_out_rows_must_fit(store, tmp_path):
    narrow = structured_store_of_width(tmp_path / "narrow", 8)
    with pytest.raises(
        InputError, match=r"validation: got rows of width 8; expected the width of the training rows, 32"
    ):
        train_saes(store, config_of(), tmp_path / "run", validation=narrow, progress=False)
    assert not (tmp_path / "run").exists()


def structured_store_of_width(folder, d):
    return FeatureStore.create(folder, torch.randn(40, d, generator=torch.Generator().manual_seed(0)))


def test_tensorboard_gets_the_same_measures(store, held_out, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = a_run(
        {"a": ALL_FOUR["vanilla"]}, loggers=["tensorboard"], log_every_steps=3, validate_every_steps=6, epochs=1
    )
    train_saes(store, config, tmp_path, validation=held_out, progress=False)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "version_0"))
    events.Reload()
    lines = logged_lines(tmp_path)
    for figure in (*LOGGED, *VALIDATED):
        seen = {event.step: event.value for event in events.Scalars(f"a/{figure}")}
        expected = {step: float(line[f"a/{figure}"]) for step, line in lines.items() if f"a/{figure}" in line}
        assert seen == pytest.approx(expected, rel=1e-6)
