"""``monoloss demo``: what it hands to the demo; ``tests/test_cli.py`` and ``tests/test_demo.py`` run it."""

from __future__ import annotations

import pytest

import monoloss.demo
from monoloss.cli import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"seed": 0, "out": "demo-output", "progress": True}),
        (["--seed", "3", "--out", "o", "--progress", "false"], {"seed": 3, "out": "o", "progress": False}),
    ],
)
def test_options_reach_the_demo(words, expected, monkeypatch):
    calls = []
    monkeypatch.setattr(monoloss.demo, "run_demo", lambda **options: calls.append(options))
    assert main(["demo", *words]) == 0
    assert calls == [expected]


def test_help_names_options_and_defaults(capsys):
    assert main(["demo", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("--seed", "--out", "--progress", "default: demo-output", "seed of the split"):
        assert words in text
