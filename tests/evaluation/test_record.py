"""The record of an evaluation is all that its charts need."""

from __future__ import annotations

from dataclasses import fields

from monoloss.evaluation.charts.bars import latent_measures
from monoloss.evaluation.charts.overview import overview_figures
from monoloss.evaluation.record import EvaluationRecord
from monoloss.evaluation.result import Evaluation
from support.charts import run


def record_of(evaluation: Evaluation) -> EvaluationRecord:
    return EvaluationRecord(**{field.name: getattr(evaluation, field.name) for field in fields(EvaluationRecord)})


def test_an_evaluation_adds_no_field():
    assert [field.name for field in fields(Evaluation)] == [field.name for field in fields(EvaluationRecord)]


def test_what_was_not_measured_is_none():
    record = EvaluationRecord("mine", {}, {}, {}, run("mine", [0.5]).examples)
    assert record.middle_examples is record.bottom_examples is record.histogram is None
    assert record.top_classes is record.decoder_directions is None


def test_charts_take_a_record():
    evaluation = run("mine", [0.2, 0.7])
    record = record_of(evaluation)
    assert not isinstance(record, Evaluation)
    drawn, expected = ([f.figure.to_json() for f in overview_figures({"": [one]})] for one in (record, evaluation))
    assert drawn == expected
    assert latent_measures(record, 1) == latent_measures(evaluation, 1)
