"""The options of a command, from the arguments and the docstring of a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from monoloss.commands.options import read_options


def paint(
    picture: str,
    *,
    out: str,
    colours: list[str] | None = None,
    size: int = 3,
    glow: float | None = None,
    style: Literal["oil", "ink"] = "oil",
    progress: bool = True,
    verify: bool = False,
    settings: Sequence[tuple[str, str]] = (),
) -> None:
    """Paint a picture.

    With every colour.

    Args:
        picture: what to paint
        out: file to write
        colours: names of colours
        size: side in metres
        glow: how bright it is
        style: kind of paint
        progress: show a progress bar
        verify: look at it again
        settings: not an option
    """


DEFAULTS = {
    "picture": "boat",
    "out": "o",
    "colours": None,
    "size": 3,
    "glow": None,
    "style": "oil",
    "progress": True,
    "verify": False,
}


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ([], {}),
        (["--size", "4", "--glow=0.5"], {"size": 4, "glow": 0.5}),
        (["--colours", "red", "blue"], {"colours": ["red", "blue"]}),
        (["--progress", "false", "--style", "ink"], {"progress": False, "style": "ink"}),
        (["--verify"], {"verify": True}),
    ],
)
def test_options_become_typed_arguments(words, changed):
    assert read_options("monoloss paint", paint, ["boat", "--out", "o", *words]) == DEFAULTS | changed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "o"], "picture"),
        (["boat"], "out"),
        (["boat", "--out", "o", "--size", "wide"], "size"),
        (["boat", "--out", "o", "--style", "chalk"], "style"),
        (["boat", "--out", "o", "--siz", "4"], "--siz"),
        (["boat", "--out", "o", "--settings", "x"], "--settings"),
    ],
)
def test_words_that_cannot_be_parsed(words, named, capsys):
    with pytest.raises(SystemExit) as caught:
        read_options("monoloss paint", paint, words)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


def test_the_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as caught:
        read_options("monoloss paint", paint, ["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: monoloss paint ")
    for words in ("Paint a picture. With every colour.", "what to paint", "--out", "side in metres", "default: 3"):
        assert words in text
    assert "Args:" not in text
    assert "--settings" not in text
