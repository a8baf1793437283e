"""The bars of a latent are the counts of the evaluation, its measures the numbers in words."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from monoloss.errors import InputError
from monoloss.evaluation.charts.bars import ActivationBar, activation_bars, check_latent, class_bars, latent_measures
from monoloss.evaluation.result import Evaluation
from monoloss.functional.histogram import histogram_edges
from support.charts import run


def test_bars_are_the_histogram_from_its_first_to_its_last_filled_bin(evaluation: Evaluation) -> None:
    edges = histogram_edges().tolist()
    for latent, counts in enumerate(evaluation.histogram.tolist()):
        bars = activation_bars(evaluation, latent)
        assert {edges.index(bar.low): bar.n_rows for bar in bars if bar.n_rows} == {
            i: count for i, count in enumerate(counts) if count
        }
        assert all(a.high == b.low for a, b in pairwise(bars))
        if bars:
            assert bars[0].n_rows
            assert bars[-1].n_rows
    assert ActivationBar(1.0, 2**0.5, 5).range_text == "1 to 1.4"


def test_class_bars_are_the_counts_of_the_evaluation(evaluation: Evaluation, store) -> None:
    named = dataclasses.replace(evaluation, metadata={**evaluation.metadata, "class_names": ["a", "b", "<c>", "d"]})
    for latent in range(16):
        bars = class_bars(named, latent)
        assert sum(bar.n_rows for bar in bars) == named.histogram[latent].sum()  # every row has one of four classes
        top = zip(named.top_classes.classes[latent].tolist(), named.top_classes.counts[latent].tolist(), strict=True)
        assert bars == [(["a", "b", "<c>", "d"][number], count) for number, count in top if number >= 0]


def test_a_latent_that_is_active_on_no_row_has_no_bars(evaluation: Evaluation) -> None:
    empty = dataclasses.replace(evaluation, histogram=torch.zeros_like(evaluation.histogram))
    assert activation_bars(empty, 0) == []


def test_an_evaluation_without_histogram_and_classes_has_no_bars() -> None:
    older = run("old", [0.5])
    assert activation_bars(older, 0) is None
    assert class_bars(older, 0) is None


def test_measures_are_text() -> None:
    measured = run("mine", [0.5, math.nan])
    measured.latents["dominant_class"] = torch.tensor([1, -1])
    named = dataclasses.replace(measured, metadata={"class_names": ["cat", "dog"]})
    assert latent_measures(named, 0) == {
        "score": "0.500",
        "lift": "0.333",
        "effective rows": "100.0",
        "share of rows active": "10.00%",
        "weighted purity": "0.500",
        "dominant class": "dog",
    }
    assert latent_measures(named, 1)["score"] == latent_measures(named, 1)["effective rows"] == "undefined"
    assert "dominant class" not in latent_measures(named, 1)


@pytest.mark.door
def test_a_latent_that_does_not_exist_is_refused() -> None:
    one = run("mine", [0.5, 0.6])
    assert check_latent(one, 1) == 1
    for latent in (-1, 2, 1.0, True):
        with pytest.raises(InputError, match=rf"latent: got {latent}; expected an integer at least 0 and below 2"):
            check_latent(one, latent)
