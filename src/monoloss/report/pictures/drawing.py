"""The house style of every picture: size, colours, a headline, text that is safe and fits, and saving.

Nothing here goes through pyplot: no backend is chosen, and settings of the user neither change nor shine through.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from monoloss.errors import InputError
from monoloss.evaluation.charts.names import variant_of
from monoloss.evaluation.charts.style import COLORS
from monoloss.evaluation.result import Evaluation
from monoloss.files.atomic import atomic_file

WIDTH = 7.5  # inches; at DPI twice the ~900 pixels of a README, so that it stays sharp there
DPI = 240
MARGIN = 0.12  # inches, left and right
INK, QUIET, FAINT = "#1a1a1a", "#5f5f5f", "#cfcfcf"
PLAIN_SIZE, SMALL_SIZE, TITLE_SIZE = 10.0, 9.0, 12.5  # points

_FONT = "DejaVu Sans"  # comes with matplotlib
_STYLE: dict[Any, Any] = {
    "font.family": [_FONT],
    "font.size": PLAIN_SIZE,
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's own defaults with ours on top, for as long as the block runs."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


@contextmanager
def picture(title: str, note: str, height: float) -> Iterator[Figure]:
    """A figure with a headline and a quiet note under it; `height` inches below them are free for the block.

    The figure is drawn once when the block ends, so that every text of it is made in the house style.
    """
    text_width = WIDTH - 2 * MARGIN
    title = fit(title, text_width, TITLE_SIZE, bold=True, n_lines=2)
    note = fit(note, text_width, SMALL_SIZE, n_lines=4) if note else ""
    title_height, note_height = text_height(title, TITLE_SIZE), text_height(note, SMALL_SIZE)
    total = height + 0.1 + title_height + 0.06 + note_height + 0.12
    with house_style():
        figure = Figure(figsize=(WIDTH, total), dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        top: dict[str, Any] = {"x": MARGIN / WIDTH, "ha": "left", "va": "top", "linespacing": 1.25}
        figure.text(y=1 - 0.1 / total, s=title, size=TITLE_SIZE, weight="bold", **top)
        figure.text(y=1 - (0.16 + title_height) / total, s=note, size=SMALL_SIZE, color=QUIET, **top)
        yield figure
        canvas.draw()  # type: ignore[no-untyped-call]


def place_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the lower left corner of the figure."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def inch_axes(figure: Figure, height: float) -> Axes:
    """Invisible axes over the whole width, in which a unit is an inch, from the upper left corner of the free space."""
    axes = place_axes(figure, 0.0, 0.0, WIDTH, height)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return axes


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG file, 1800 pixels wide in the usual width, whole or not at all.

    Figures made here belong to nobody but who holds them (no pyplot), so there is nothing to close afterwards.

    Args:
        figure: what to write.
        path: a name that ends in .png; missing folders are made, an older file is replaced.

    Returns:
        The path.

    Raises:
        InputError: `path` has another ending, or is a folder.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError("path", f"'{path}'", "a name that ends in .png")
    with atomic_file(path) as temporary, house_style():
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return path


def check_groups(
    argument: str, groups: Mapping[str, Sequence[Evaluation]], key: str | None = None, expected: str = ""
) -> None:
    """Refuse groups without an evaluation, or without one that has the figure `key`."""
    evaluations = [evaluation for group in groups.values() for evaluation in group]
    if not evaluations:
        raise InputError(argument, "no evaluations", "at least one")
    if key is not None and not any(key in evaluation.summary for evaluation in evaluations):
        raise InputError(argument, f"evaluations without {key}", expected)


def variant_colors(groups: Mapping[str, Sequence[Evaluation]]) -> dict[str, str]:
    """A colour for the name of each evaluation, the same for the same loss variant in every group.

    What to hand to every figure of one report as `colors`, so that a variant keeps its colour. Variants take the
    colours in the order in which they first appear (the first, usually the baseline, is grey); after seven they repeat.

    Args:
        groups: evaluations by the name of their group; a group's name in front of a model's name is left out when
            variants are compared: "topk-memory" in "TopK" and "batch_topk-memory" in "BatchTopK" are both "memory".

    Returns:
        Colours like ``#2b83c6`` by ``Evaluation.name``.
    """
    variants: dict[str, str] = {}
    colors: dict[str, str] = {}
    for group, evaluations in groups.items():
        for evaluation in evaluations:
            color = COLORS[len(variants) % len(COLORS)]
            colors.setdefault(evaluation.name, variants.setdefault(variant_of(evaluation.name, group), color))
    return colors


def plain(text: str) -> str:
    r"""Text that can be drawn: one line, no control characters, a box for each character that the font lacks.

    Example:
        >>> plain("a\tb")
        'a b'
    """
    known = _characters()
    kept = []
    for letter in text:
        if letter.isspace():
            kept.append(" ")
        elif unicodedata.category(letter) not in ("Cc", "Cf"):  # such as marks that turn the direction of what follows
            kept.append(letter if ord(letter) in known else "□")
    return " ".join("".join(kept).split())


def fit(text: str, inches: float, size: float, *, bold: bool = False, n_lines: int = 1) -> str:
    """Plain text, wrapped into at most `n_lines` lines of a width; what is too long loses its middle.

    Names that differ at the end only stay apart that way.
    """
    text = plain(text)
    for keep in range(min(len(text), 120 * n_lines), 0, -1):
        front, back = keep - keep // 2, keep // 2
        cut = text[:front].rstrip() + "…" + text[len(text) - back :].lstrip()
        lines = _wrap(text if keep == len(text) else cut, inches, size, bold)
        if len(lines) <= n_lines:
            return "\n".join(lines)
    return text[:1]


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Inches that one line of plain text takes: the sum of its letters, right to about 2 %."""
    return float(sum(_letter_width(letter, bold) for letter in text) * size / 72)


def text_height(text: str, size: float) -> float:
    """Inches that wrapped text takes."""
    return len(text.splitlines()) * size * 1.25 * 1.17 / 72


def number(value: Any, digits: int = 2) -> str:
    """A figure as it is printed: rounded, "undefined" for NaN.

    Example:
        >>> number(0.716), number(float("nan"))
        ('0.72', 'undefined')
    """
    value = float(value)
    return f"{value:.{digits}f}" if not math.isnan(value) else "undefined"


def _wrap(text: str, inches: float, size: float, bold: bool) -> list[str]:
    """Lines of at most a width, broken after spaces and the marks that names are made of; within a word if need be."""
    lines, used, room = [""], 0.0, inches * 72 / size
    for piece in re.findall(r"[^\s_/,-]*[\s_/,-]?", text):
        whole = sum(_letter_width(letter, bold) for letter in piece.rstrip())
        for i, letter in enumerate(piece):
            width = _letter_width(letter, bold)
            if lines[-1] and used + (whole if i == 0 else 0.0 if letter == " " else width) > room:
                lines.append("")
                used = 0.0
            lines[-1] += letter
            used += width
    return [line.strip() for line in lines if line.strip()]


@cache
def _font_file(bold: bool) -> str:
    return findfont(FontProperties(family=_FONT, weight="bold" if bold else "normal"))


@cache
def _letter_width(letter: str, bold: bool) -> float:
    """As a part of the size of the font."""
    font = get_font(_font_file(bold))
    font.set_size(1000, 72)
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 1000


@cache
def _characters() -> frozenset[int]:
    """What both weights of the font can draw."""
    return frozenset(get_font(_font_file(False)).get_charmap()) & frozenset(get_font(_font_file(True)).get_charmap())
