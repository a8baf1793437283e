"""Evaluations as a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from monoloss.evaluation.result import Evaluation


class Column(NamedTuple):
    """A figure of ``Evaluation.summary`` under its heading, formatted."""

    key: str
    heading: str
    form: str


COLUMNS = (
    Column("score_mean", "score", ".3f"),
    Column("score_mean_zero_filled", "all", ".3f"),
    Column("lift_mean", "lift", ".3f"),
    Column("purity_binary", "purity", ".3f"),
    Column("purity_weighted", "weighted", ".3f"),
    Column("explained_variance", "expl.var", ".3f"),
    Column("l0", "L0", ".1f"),
    Column("n_alive", "alive", ".0f"),
)


def evaluation_table(groups: Mapping[str, Sequence[Evaluation]], title: str) -> Table:
    """One row for each evaluation, under the heading of its group; 80 characters wide with names of up to 17.

    The score is a mean over defined latents, beside it ("all") over all with undefined ones as 0; purity is binary,
    then weighted by activation. A dash is an undefined figure.
    """
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for group, evaluations in groups.items():
        table.add_row(f"[bold]{group}[/bold]")
        for evaluation in evaluations:
            table.add_row(f" {evaluation.name}", *cells(evaluation))
        table.add_section()
    return table


def chance_line(evaluations: Mapping[str, Evaluation]) -> str:
    """What to read below a table: the score of chance, which all models share that are judged on the same rows."""
    chance = next(iter(evaluations.values())).summary["chance"]
    return f"A latent that is active at random scores {chance:.3f} (chance); lift is 0 there and 1 at best."


def cells(evaluation: Evaluation) -> list[str]:
    """The figures of ``COLUMNS`` for one evaluation, a dash where one is undefined or missing."""
    measures = [(evaluation.summary.get(column.key, math.nan), column.form) for column in COLUMNS]
    return ["-" if math.isnan(value) else format(value, form) for value, form in measures]
