"""Tables of evaluations for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from monoloss.evaluation.result import Evaluation


class Column(NamedTuple):
    """A measure of ``Evaluation.summary``, its heading and its format."""

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
    """Build a table with a row for each evaluation below the name of its group.

    "score" is the mean over latents with a defined score, "all" the mean over all latents with undefined ones as 0;
    "purity" is binary, "weighted" is weighted by activation. A dash stands for an undefined measure. 80 characters wide
    if no name is longer than 17.
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
    """Return the line below a table: the score of chance, equal for all models evaluated on the same rows."""
    chance = next(iter(evaluations.values())).summary["chance"]
    return f"A latent that is active at random scores {chance:.3f} (chance); lift is 0 there and 1 at best."


def cells(evaluation: Evaluation) -> list[str]:
    """Format the measures of ``COLUMNS`` of an evaluation; a dash where one is undefined or missing."""
    measures = [(evaluation.summary.get(column.key, math.nan), column.form) for column in COLUMNS]
    return ["-" if math.isnan(value) else format(value, form) for value, form in measures]
