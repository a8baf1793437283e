"""The numbers of a latent's charts: bars of its activations and of its classes, and its measures as text."""

from __future__ import annotations

import math
from typing import NamedTuple

from monoloss.checks import check_number
from monoloss.evaluation.charts.names import class_name
from monoloss.evaluation.record import EvaluationRecord
from monoloss.functional.histogram import histogram_edges


class ActivationBar(NamedTuple):
    """Number of rows with an activation in ``[low, high)``; the first and last bin of all also hold what is beyond."""

    low: float
    high: float
    n_rows: int

    @property
    def range_text(self) -> str:
        """The bin as text, such as "0.71 to 1"."""
        return f"{self.low:.2g} to {self.high:.2g}"


class ClassBar(NamedTuple):
    """Number of a latent's active rows that carry a class."""

    name: str
    n_rows: int


def check_latent(evaluation: EvaluationRecord, latent: int) -> int:
    """Check that the evaluation has a latent of this number, and return the number as an int."""
    check_number("latent", latent, at_least=0, below=len(evaluation.latents["score"]), integer=True)
    return int(latent)


def activation_bars(evaluation: EvaluationRecord, latent: int) -> list[ActivationBar] | None:
    """Return the bins of a latent from its first to its last non-empty one; None if there is no histogram."""
    latent = check_latent(evaluation, latent)
    if evaluation.histogram is None:
        return None
    counts, edges = evaluation.histogram[latent].tolist(), histogram_edges().tolist()
    filled = [i for i, count in enumerate(counts) if count]
    bins = range(filled[0], filled[-1] + 1) if filled else range(0)
    return [ActivationBar(edges[i], edges[i + 1], counts[i]) for i in bins]


def class_bars(evaluation: EvaluationRecord, latent: int) -> list[ClassBar] | None:
    """Return the most frequent classes of a latent's active rows; None if purity was not measured."""
    latent = check_latent(evaluation, latent)
    top = evaluation.top_classes
    if top is None:
        return None
    names = evaluation.metadata.get("class_names")
    pairs = zip(top.classes[latent].tolist(), top.counts[latent].tolist(), strict=True)
    return [ClassBar(class_name(number, names), count) for number, count in pairs if number >= 0]


def latent_measures(evaluation: EvaluationRecord, latent: int) -> dict[str, str]:
    """Return the measures of a latent as text ("undefined" if NaN), by their names in words."""
    latent = check_latent(evaluation, latent)
    values = {key: column[latent].item() for key, column in evaluation.latents.items()}
    texts: dict[str, str] = {}
    for key, (word, form) in _WORDS.items():
        if key in values:
            texts[word] = format(values[key], form) if math.isfinite(values[key]) else "undefined"
    if (dominant := int(values.get("dominant_class", -1))) >= 0:
        texts["dominant class"] = class_name(dominant, evaluation.metadata.get("class_names"))
    return texts


_WORDS = {  # name in words and format, by column of the evaluation
    "score": ("score", ".3f"),
    "lift": ("lift", ".3f"),
    "n_eff": ("effective rows", ",.1f"),
    "density": ("share of rows active", ".2%"),
    "purity_binary": ("purity", ".3f"),
    "purity_weighted": ("weighted purity", ".3f"),
}
