"""Texts of sizes and times, and the progress bar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from monoloss.terminal import progress, size_text, time_text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 1024**2, "3.0 MiB"),
        (5 * 1024**3 // 2, "2.5 GiB"),
        (2000 * 1024**4, "2000.0 TiB"),
    ],
)
def test_sizes(n_bytes, text):
    assert size_text(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (75.0, "1 min 15 s"),
        (3599.6, "1 h 0 min"),
        (5400.0, "1 h 30 min"),
        (47.5 * 3600, "47 h 30 min"),
        (300_000.0, "3 days 11 h"),
    ],
)
def test_times(seconds, text):
    assert time_text(seconds) == text


def test_the_bar_advances_and_changes_its_unit():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with progress("reading", 20, "rows", done=5, console=console) as advance:
        advance(3)
        advance(2, "[rows], shard 1")
    last = screen.getvalue().split("reading")[-1]
    assert "10/20" in last
    assert "[rows], shard 1" in last


def test_a_hidden_bar_prints_nothing(capsys):
    with progress("reading", None, "rows", shown=False) as advance:
        advance(3)
        advance(3, "rows")
    assert capsys.readouterr() == ("", "")
