"""The table of evaluations in the terminal: measures, groups, dashes, and the line below it."""

from __future__ import annotations

import io
import math
from dataclasses import replace

from rich.console import Console

from monoloss.report.table import COLUMNS, cells, chance_line, evaluation_table
from support.reports import bare


def lines_of(table) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_cells_are_the_rounded_measures_with_dashes_for_undefined_ones():
    evaluation = bare()
    summary = {"score_mean": 0.12345, "lift_mean": math.nan, "l0": 3.96, "n_alive": 1018.0}
    texts = dict(zip((column.key for column in COLUMNS), cells(replace(evaluation, summary=summary)), strict=True))
    assert texts["score_mean"] == "0.123"
    assert texts["lift_mean"] == texts["purity_binary"] == "-"
    assert (texts["l0"], texts["n_alive"]) == ("4.0", "1018")


def test_rows_stand_below_the_names_of_their_groups():
    groups = {"TopK": [bare("plain"), bare("mono", score=0.75)], "Other": [bare("x")]}
    lines = lines_of(evaluation_table(groups, "Digits"))
    assert lines[0] == "Digits"
    assert lines[1].split() == [column.heading for column in COLUMNS]
    words = [line.split() for line in lines if "\u2500" not in line][2:]
    assert [line[0] for line in words] == ["TopK", "plain", "mono", "Other", "x"]
    assert words[2][1:3] == ["0.750", "0.250"]


def test_names_of_17_characters_fit_in_80():
    summary = dict.fromkeys((column.key for column in COLUMNS), 0.5) | {"l0": 100.5, "n_alive": 8192.0}
    evaluation = replace(bare("n" * 17), summary=summary)
    lines = lines_of(evaluation_table({"TopK": [evaluation]}, "Digits"))
    assert lines[-1].split() == ["n" * 17, *cells(evaluation)]
    assert max(map(len, lines)) <= 80


def test_chance_is_said_once():
    line = chance_line({"a": bare("a"), "b": bare("b")})
    assert line == "A latent that is active at random scores 0.100 (chance); lift is 0 there and 1 at best."
