"""Glossary of a report: each term explained in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Term(NamedTuple):
    """A term as headings write it, and its explanation."""

    label: str
    explanation: str


TERMS: Mapping[str, Term] = {
    "latent": Term("latent", "One of the directions that a sparse autoencoder writes its inputs with."),
    "score": Term(
        "score",
        "MonoScore: mean cosine of all pairs of rows, weighted by how active the latent is on both; 1 means that all"
        " its rows are alike; undefined with fewer than two active rows.",
    ),
    "score_all": Term("score, all", "The mean score where a latent without a score counts as 0, as the paper counts."),
    "score_median": Term("median score", "Half of the defined latents score more than this."),
    "score_p90": Term("90th percentile", "A tenth of the defined latents score more than this."),
    "chance": Term("chance", "The mean cosine of all pairs of rows: what a latent scores that is active at random."),
    "lift": Term("lift", "How far a score is above chance: 0 at chance, 1 at best, below 0 worse than chance."),
    "n_eff": Term(
        "n_eff",
        "The effective number of rows behind a latent; scores that rest on a few rows are mostly noise.",
    ),
    "density": Term("density", "The share of all rows that the latent is active on."),
    "purity_binary": Term("purity", "The share of a latent's active rows that belong to its most frequent class."),
    "purity_weighted": Term("weighted purity", "Purity where each active row counts as much as its activation."),
    "purity_binary_by_mass": Term(
        "purity by mass", "Mean purity where each latent counts as much as the sum of its activations."
    ),
    "purity_weighted_by_mass": Term(
        "weighted purity by mass",
        "Mean weighted purity where each latent counts as much as the sum of its activations.",
    ),
    "dominant_class": Term("class", "The most frequent class among the rows that the latent is active on."),
    "alive": Term("alive", "Latents with a defined score: at least two active rows among those evaluated."),
    "undefined": Term("undefined", "Latents that are active on some row and yet have no score: too few rows."),
    "dead": Term("dead", "Latents that are active on no evaluated row."),
    "explained_variance": Term(
        "expl. variance",
        "The share of the inputs' variance that the reconstruction keeps, over all dimensions together.",
    ),
    "r2": Term(
        "R2",
        "The share of variance that is kept, averaged over dimensions as in the paper; one that hardly varies can pull"
        " it far below 0.",
    ),
    "nmse": Term(
        "NMSE", "Squared error of the reconstruction divided by the squared length of the row, mean over rows."
    ),
    "mse": Term("MSE", "Squared error of the reconstruction, mean over rows and dimensions."),
    "l0": Term("L0", "How many latents are active on a row, on average."),
    "n_latents": Term("latents", "How many latents the model has."),
    "baseline": Term(
        "baseline",
        "The run that others of its group are compared with: the same model without MonoLoss, where there is one.",
    ),
    "similar": Term("similar latents", "Latents of the same model whose decoder directions have the largest cosine."),
    "match": Term("closest match", "The latent of the other model whose decoder direction has the largest cosine."),
    "histogram": Term("activations", "How many active rows there are at each height of activation, on a log scale."),
    "top": Term("highest", "The rows that the latent is most active on, the highest first."),
    "middle": Term("middle", "Rows around the median of the latent's activations, the highest first."),
    "bottom": Term("lowest", "The rows that the latent is just active on, the lowest first."),
}
