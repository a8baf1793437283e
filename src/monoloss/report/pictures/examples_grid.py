"""Pictures of the images that activate latents most, two models side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from monoloss.checks import check_number
from monoloss.errors import InputError
from monoloss.evaluation.result import Evaluation
from monoloss.report.pictures.drawing import (
    FAINT,
    MARGIN,
    PLAIN_SIZE,
    QUIET,
    SMALL_SIZE,
    WIDTH,
    fit,
    inch_axes,
    number,
    picture,
    text_width,
)

_BETWEEN, _GAP, _CAPTION, _HEADING = 0.3, 0.04, 0.19, 0.58  # inches: between sides, between images, caption, heading
_LARGEST_IMAGE, _IMAGES_A_LINE = 0.9, 8
_CAPTION_SIZE = 8.0  # points


def spread_latents(evaluation: Evaluation, n: int) -> list[int]:
    """Choose latents at evenly spaced ranks of the score, highest first, so that nobody picks them by eye.

    The ``D`` latents with a score are sorted by it (of equal scores the lower number first) and those of rank
    ``floor((i + 1/2) D / n)`` for ``i = 0 .. n - 1`` are taken: the middle of each of ``n`` equal parts, so neither
    the best nor the worst.

    Args:
        evaluation: evaluation of the latents.
        n: number of latents, at least 1.

    Returns:
        Numbers of latents; all with a score if they are fewer than `n`.

    Raises:
        InputError: `n` is not an integer of at least 1.
    """
    check_number("n", n, at_least=1, integer=True)
    scores = evaluation.latents["score"].detach().double().cpu()
    order = scores.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True).tolist()
    n_defined = int((~scores.isnan()).sum())
    n = min(n, n_defined)
    return [order[(2 * i + 1) * n_defined // (2 * n)] for i in range(n)]


def top_examples_grid(
    left: Evaluation,
    right: Evaluation,
    thumbnails_left: Callable[[Tensor], Tensor],
    thumbnails_right: Callable[[Tensor], Tensor],
    latents_left: Sequence[int],
    latents_right: Sequence[int],
    n: int = 6,
    *,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the images that activate some latents of two models most, a latent in each row.

    Where a latent is active on fewer than `n` images, the remaining tiles are blank.

    Args:
        left: evaluation of the model on the left, such as the baseline.
        right: evaluation of the model on the right.
        thumbnails_left: function from row numbers ``(r,)`` of the store that `left` was evaluated on to their images,
            uint8 ``(r, h, w, c)`` with c = 1 (grey), 3 (RGB) or 4 (RGBA), such as ``store.thumbnails``.
        thumbnails_right: the same for `right`.
        latents_left: latents of `left`, from the top down, such as ``spread_latents(left, 6)``; may be empty.
        latents_right: latents of `right`, chosen by the same rule.
        n: images of a latent, from 1 to the number of examples of a latent in both evaluations.
        colors: colour by name of the evaluation, as from :func:`monoloss.report.pictures.drawing.variant_colors`.

    Returns:
        A figure. Its note says how the latents were chosen if they are those of :func:`spread_latents` on both sides.

    Raises:
        InputError: a latent or `n` is out of range, or a thumbnail function returns anything but images.
    """
    check_number("n", n, at_least=1, integer=True)
    latents_left, latents_right = ([int(latent) for latent in latents] for latents in (latents_left, latents_right))
    sides = (("left", left, thumbnails_left, latents_left), ("right", right, thumbnails_right, latents_right))
    for side, evaluation, _, latents in sides:
        _check_side(side, evaluation, latents, n)
    images = [_images(f"thumbnails_{side}", get, e, latents, n) for side, e, get, latents in sides]

    n_lines = math.ceil(n / _IMAGES_A_LINE)
    n_across = math.ceil(n / n_lines)
    half = (WIDTH - 2 * MARGIN - _BETWEEN) / 2
    size = min((half + _GAP) / n_across - _GAP, _LARGEST_IMAGE)
    row_height = _CAPTION + n_lines * (size + _GAP) + 0.06
    height = _HEADING + row_height * max(len(latents_left), len(latents_right), 1) + 0.04
    title = "A row is a latent: do the images that activate it most show one thing?"
    with picture(title, _note(left, right, latents_left, latents_right), height) as figure:
        axes = inch_axes(figure, height)
        for i, (_, evaluation, _, latents) in enumerate(sides):
            x = MARGIN + i * (half + _BETWEEN)
            _write_heading(axes, x, half, evaluation, (colors or {}).get(evaluation.name, FAINT))
            if not latents:
                axes.text(x, _HEADING + _CAPTION, "no latent to show", size=SMALL_SIZE, color=QUIET)
            for row, latent in enumerate(latents):
                y = _HEADING + row * row_height
                _write_caption(axes, x, y + _CAPTION - 0.05, half, evaluation, latent)
                for place, image in enumerate(images[i][latent]):
                    down, across = divmod(place, n_across)
                    corner = x + across * (size + _GAP), y + _CAPTION + down * (size + _GAP)
                    _draw_tile(axes, image, corner, size)
    return figure


def _check_side(side: str, evaluation: Evaluation, latents: Sequence[int], n: int) -> None:
    """Refuse latents that an evaluation lacks, or more examples than it has; `side` is "left" or "right"."""
    m, n_examples = evaluation.examples.rows.shape
    if n > n_examples:
        expected = f"at most the {n_examples} examples of a latent in {side} ({evaluation.name!r})"
        raise InputError("n", str(n), expected)
    for latent in latents:
        if not 0 <= latent < m:
            raise InputError(f"latents_{side}", f"latent {latent}", f"numbers from 0 to {m - 1}")


def _images(
    argument: str, get: Callable[[Tensor], Tensor], evaluation: Evaluation, latents: Sequence[int], n: int
) -> dict[int, list[Tensor | None]]:
    """Return `n` images of each latent, strongest first, None in the place of missing ones; load each image once."""
    rows_of_latents = evaluation.examples.rows[list(latents), :n].cpu()
    rows = rows_of_latents[rows_of_latents >= 0].unique()
    images = get(rows).cpu() if len(rows) else torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
    right_shape = images.ndim == 4 and images.shape[0] == len(rows) and images.shape[3] in (1, 3, 4)
    if not right_shape or images.dtype != torch.uint8:
        got = f"{images.dtype} of shape {tuple(images.shape)} for {len(rows)} rows"
        raise InputError(argument, got, "torch.uint8 of shape (rows, height, width, 1, 3 or 4)")
    image_of_row = dict(zip(rows.tolist(), images, strict=True))
    return {
        latent: [image_of_row.get(row) for row in latent_rows]
        for latent, latent_rows in zip(latents, rows_of_latents.tolist(), strict=True)
    }


def _note(left: Evaluation, right: Evaluation, latents_left: Sequence[int], latents_right: Sequence[int]) -> str:
    """Return the note below the headline: the order of the images and how the latents were chosen."""
    images = "Strongest first; a blank tile: no further image activates the latent. "
    if any(
        latents and latents != spread_latents(evaluation, len(latents))
        for evaluation, latents in ((left, latents_left), (right, latents_right))
    ):
        return images + "Latents: as they were asked for."
    return images + (
        "Latents: not picked by eye, but at evenly spaced ranks of the score among the defined latents of each model, "
        "the highest at the top."
    )


def _write_heading(axes: Axes, x: float, width: float, evaluation: Evaluation, color: str) -> None:
    """Write name, mean score and number of undefined latents of a model above its side."""
    axes.text(x, 0.08, fit(evaluation.name, width, PLAIN_SIZE, bold=True), weight="bold", va="top")
    score, n = evaluation.latents["score"], len(evaluation.latents["score"])
    n_defined = n - int(score.isnan().sum())
    measures = f"mean score {number(evaluation.summary['score_mean'])}, {n - n_defined} of {n} latents undefined"
    axes.text(x, 0.27, fit(measures, width, SMALL_SIZE), size=SMALL_SIZE, color=QUIET, va="top")
    axes.plot([x, x + width], [0.47, 0.47], color=color, linewidth=2.5, solid_capstyle="butt")


def _write_caption(axes: Axes, x: float, y: float, width: float, evaluation: Evaluation, latent: int) -> None:
    """Write number, score, lift and purity of a latent, then as much of its most frequent class as fits."""
    columns = evaluation.latents
    measures = f"score {number(columns['score'][latent])}, lift {number(columns['lift'][latent])}"
    class_name = ""
    if "purity_binary" in columns and "dominant_class" in columns:
        measures += f", purity {number(columns['purity_binary'][latent])}"
        index, names = int(columns["dominant_class"][latent]), evaluation.metadata.get("class_names")
        if index >= 0:
            measures += ":"
            class_name = names[index] if names else f"class {index}"
    end = x + width
    for text, bold in ((f"latent {latent}", True), (measures, False), (class_name, False)):
        shown = fit(text, end - x, _CAPTION_SIZE, bold=bold)
        axes.text(x, y, shown, size=_CAPTION_SIZE, weight="bold" if bold else "normal")
        x += text_width(shown, _CAPTION_SIZE, bold=bold) + 0.1


def _draw_tile(axes: Axes, image: Tensor | None, corner: tuple[float, float], size: float) -> None:
    """Draw an image inside a square without distortion; a dotted outline if it is None."""
    x, y = corner
    if image is None:
        axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=FAINT, linewidth=0.6, linestyle=":"))
        return
    height, width = image.shape[0], image.shape[1]
    across, down = size * width / max(height, width), size * height / max(height, width)
    left, top = x + (size - across) / 2, y + (size - down) / 2
    pixels = image.squeeze(2) if image.shape[2] == 1 else image
    axes.imshow(
        pixels.numpy(), cmap="gray", vmin=0, vmax=255, extent=(left, left + across, top + down, top), aspect="auto"
    )
