"""House style of all pictures: size, colours, headline, safe text that fits its space, and saving.

Pictures do not use pyplot: no backend is chosen, and the user's Matplotlib settings neither change nor have an effect.
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

WIDTH = 7.5  # inches; at DPI twice the ~900 pixels of a README, so that pictures stay sharp on dense screens
DPI = 240
MARGIN = 0.12  # inches, left and right
INK, QUIET, FAINT = "#1a1a1a", "#5f5f5f", "#cfcfcf"
PLAIN_SIZE, SMALL_SIZE, TITLE_SIZE = 10.0, 9.0, 12.5  # points

_FONT = "DejaVu Sans"  # comes with matplotlib
_STYLE: dict[Any, Any] = {
    "font.family": [_FONT],
    "font.size": PLAIN_SIZE,
    "text.parse_math": False,  # names may contain $
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
    """Set Matplotlib's defaults and the house style for the duration of the block, whatever the user's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


@contextmanager
def picture(title: str, note: str, height: float) -> Iterator[Figure]:
    """Yield a figure with a headline and a grey note below it; the block draws in the `height` inches below them.

    The figure is drawn once when the block ends, so that all its texts are laid out in the house style.
    """
    inner_width = WIDTH - 2 * MARGIN
    title = fit(title, inner_width, TITLE_SIZE, bold=True, n_lines=2)
    note = fit(note, inner_width, SMALL_SIZE, n_lines=4) if note else ""
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
    """Add axes to a figure; position and size are in inches from its lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def inch_axes(figure: Figure, height: float) -> Axes:
    """Add invisible axes over the lower `height` inches of a figure; units are inches from their upper left corner."""
    axes = place_axes(figure, 0.0, 0.0, WIDTH, height)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return axes


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG file, 1800 pixels wide if the figure is ``WIDTH`` wide; on error no file is left.

    pyplot does not know the figure, so it need not be closed.

    Args:
        figure: the figure.
        path: a name that ends in .png; missing folders are created, an older file is replaced.

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
    """Raise `InputError` if the groups hold no evaluation, or none with the measure `key` (then with `expected`)."""
    evaluations = [evaluation for group in groups.values() for evaluation in group]
    if not evaluations:
        raise InputError(argument, "no evaluations", "at least one")
    if key is not None and not any(key in evaluation.summary for evaluation in evaluations):
        raise InputError(argument, f"evaluations without {key}", expected)


def variant_colors(groups: Mapping[str, Sequence[Evaluation]]) -> dict[str, str]:
    """Choose a colour for each evaluation, the same for the same loss variant in every group.

    Pass the result as `colors` to all figures of a report, so that a variant has one colour. Variants get their colours
    in the order in which they first appear (the first, usually the baseline, is grey); after seven colours repeat.

    Args:
        groups: evaluations by the name of their group. The variant is the evaluation's name without the group's name:
            "topk-memory" in "TopK" and "batch_topk-memory" in "BatchTopK" are both "memory".

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
    """Make text drawable: one line, no control characters, a box for each character that the font lacks."""
    drawable = _drawable_characters()
    letters = []
    for letter in text:
        if letter.isspace():
            letters.append(" ")
        elif unicodedata.category(letter) not in ("Cc", "Cf"):  # Cf: among others marks that turn the text's direction
            letters.append(letter if ord(letter) in drawable else "□")
    return " ".join("".join(letters).split())


def fit(text: str, inches: float, size: float, *, bold: bool = False, n_lines: int = 1) -> str:
    """Wrap plain text into at most `n_lines` lines of a width in inches; from longer text the middle is left out.

    So names that differ only at their ends stay different.
    """
    text = plain(text)
    for n_letters in range(min(len(text), 120 * n_lines), 0, -1):
        front, back = n_letters - n_letters // 2, n_letters // 2
        cut = text[:front].rstrip() + "…" + text[len(text) - back :].lstrip()
        lines = _wrap(text if n_letters == len(text) else cut, inches, size, bold)
        if len(lines) <= n_lines:
            return "\n".join(lines)
    return text[:1]


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width in inches of one line of plain text in `size` points, from its letters; exact to about 2 %."""
    return float(sum(_letter_width(letter, bold) for letter in text) * size / 72)


def text_height(text: str, size: float) -> float:
    """Return the height in inches of wrapped text in `size` points."""
    return len(text.splitlines()) * size * 1.25 * 1.17 / 72


def number(value: Any, digits: int = 2) -> str:
    """Format a number with some digits after the point; "undefined" for NaN."""
    value = float(value)
    return f"{value:.{digits}f}" if not math.isnan(value) else "undefined"


def _wrap(text: str, inches: float, size: float, bold: bool) -> list[str]:
    """Break text into lines of at most a width: after spaces and `_ / , -`, within a word only if it is too long."""
    lines, used, room = [""], 0.0, inches * 72 / size
    for piece in re.findall(r"[^\s_/,-]*[\s_/,-]?", text):
        piece_width = sum(_letter_width(letter, bold) for letter in piece.rstrip())
        for i, letter in enumerate(piece):
            width = _letter_width(letter, bold)
            if lines[-1] and used + (piece_width if i == 0 else 0.0 if letter == " " else width) > room:
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
    """Return the width of a letter divided by the size of the font."""
    font = get_font(_font_file(bold))
    font.set_size(1000, 72)
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 1000


@cache
def _drawable_characters() -> frozenset[int]:
    """Return the code points that both weights of the font have."""
    return frozenset(get_font(_font_file(False)).get_charmap()) & frozenset(get_font(_font_file(True)).get_charmap())
