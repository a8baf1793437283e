"""What the bars of a latent's charts stand for: its activations, and its classes."""

from __future__ import annotations

import math
from typing import NamedTuple

from monoloss.checks import check_number
from monoloss.evaluation.charts.names import class_name
from monoloss.evaluation.record import EvaluationRecord
from monoloss.functional.histogram import histogram_edges


class ActivationBar(NamedTuple):
    """Active rows with an activation in ``[low, high)``; the lowest and highest possible bin are open."""

    low: float
    high: float
    n_rows: int

    @property
    def range_text(self) -> str:
        """Such as "0.71 to 1"."""
        return f"{self.low:.2g} to {self.high:.2g}"


class ClassBar(NamedTuple):
    """Active rows that carry a class."""

    name: str
    n_rows: int


def check_latent(evaluation: EvaluationRecord, latent: int) -> int:
    """The number of a latent, refused where there is none of that number."""
    check_number("latent", latent, at_least=0, below=len(evaluation.latents["score"]), integer=True)
    return int(latent)


def activation_bars(evaluation: EvaluationRecord, latent: int) -> list[ActivationBar] | None:
    """The bins from the first to the last that is not empty; None where the evaluation has no histogram."""
    latent = check_latent(evaluation, latent)
    if evaluation.histogram is None:
        return None
    counts, edges = evaluation.histogram[latent].tolist(), histogram_edges().tolist()
    filled = [number for number, count in enumerate(counts) if count]
    shown = range(filled[0], filled[-1] + 1) if filled else range(0)
    return [ActivationBar(edges[number], edges[number + 1], counts[number]) for number in shown]


def class_bars(evaluation: EvaluationRecord, latent: int) -> list[ClassBar] | None:
    """The most frequent classes of a latent's active rows; None where purity was not judged."""
    latent = check_latent(evaluation, latent)
    top = evaluation.top_classes
    if top is None:
        return None
    names = evaluation.metadata.get("class_names")
    pairs = zip(top.classes[latent].tolist(), top.counts[latent].tolist(), strict=True)
    return [ClassBar(class_name(number, names), count) for number, count in pairs if number >= 0]


def latent_measures(evaluation: EvaluationRecord, latent: int) -> dict[str, str]:
    """The measures of a latent as text, by what they are called; "undefined" where one is."""
    latent = check_latent(evaluation, latent)
    columns = {key: column[latent].item() for key, column in evaluation.latents.items()}
    found: dict[str, str] = {}
    for key, (word, form) in _WORDS.items():
        if key in columns:
            found[word] = format(columns[key], form) if math.isfinite(columns[key]) else "undefined"
    if (dominant := int(columns.get("dominant_class", -1))) >= 0:
        found["dominant class"] = class_name(dominant, evaluation.metadata.get("class_names"))
    return found


_WORDS = {
    "score": ("score", ".3f"),
    "lift": ("lift", ".3f"),
    "n_eff": ("effective rows", ",.1f"),
    "density": ("share of rows active", ".2%"),
    "purity_binary": ("purity", ".3f"),
    "purity_weighted": ("weighted purity", ".3f"),
}
