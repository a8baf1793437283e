"""Evaluations to draw, and what can be read off a figure."""

from __future__ import annotations

import dataclasses
import math

import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from monoloss.report.pictures.examples_grid import top_examples_grid
from monoloss.report.pictures.trade_off import trade_off

NAN = math.nan


HOSTILE = [
    "$x_1$ \\frac{1}",
    "_hidden",
    "<script>alert(1)</script>",
    "emoji 😀 👩‍👩‍👧",
    "שלום العربية",
    "\u202ereversed \x00\ttab\nline",
    "undecodable \udcff",
    "中文",
    "%s {} %",
    "W" * 300,
    "a very long name of a run with-batch_topk-8192-latents-and-memory-0.9-seed-42",
    "$",
    "",
]


def evaluation(name: str, scores: list[float], *, shift: float = 0.0, labels: bool = True) -> Evaluation:
    """Figures that look like those of an evaluation; latent j has its examples in rows j, j + 1 and so on."""
    score = torch.tensor(scores, dtype=torch.float64)
    defined, m = score[~score.isnan()], len(scores)
    summary = {
        "score_mean": float(defined.mean()),
        "chance": 0.31,
        "explained_variance": 0.8 + shift,
        "purity_weighted": 0.625 + shift,
        "purity_binary": 0.5 + shift,
    }
    latents = {
        "score": score,
        "lift": score - 0.25,
        "purity_binary": score.abs(),
        "dominant_class": torch.arange(m) % 3,
    }
    if not labels:
        summary = {key: value for key, value in summary.items() if "purity" not in key}
        latents = {key: value for key, value in latents.items() if key in ("score", "lift")}
    rows = torch.arange(m)[:, None] + torch.arange(4)
    return Evaluation(name, {"class_names": ["cat", "dog", "bird"]}, summary, latents, Examples(rows, rows.double()))


def dead(name: str = "dead") -> Evaluation:
    one = evaluation(name, [NAN] * 5)
    return dataclasses.replace(one, summary=dict.fromkeys(one.summary, NAN))


def groups() -> dict[str, list[Evaluation]]:
    return {
        "TopK": [evaluation("TopK, baseline", [0.4, 0.5]), evaluation("TopK, memory", [0.6, 0.7], shift=0.013)],
        "BatchTopK": [
            evaluation("batch_topk-baseline", [0.3, 0.5], shift=-0.05),
            evaluation("batch_topk-paper", [0.45, 0.5], shift=-0.04),
            evaluation("batch_topk-memory", [0.6, 0.65], shift=-0.06),
        ],
    }


def thumbnails(rows: torch.Tensor) -> torch.Tensor:
    """Images whose grey is the number of their row."""
    return rows.to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 1)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def with_gid(figure: Figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def tiles(figure: Figure) -> list[tuple[float, float, int | None]]:
    """Place and grey of each tile, row by row; None where it is blank."""
    found = []
    for image in figure.findobj(AxesImage):
        left, _, _, top = image.get_extent()
        found.append((round(top, 3), round(left, 3), int(image.get_array()[0, 0])))
    blank = (box for box in figure.axes[0].patches if isinstance(box, Rectangle))
    found += [(round(box.get_y(), 3), round(box.get_x(), 3), None) for box in blank]
    return sorted(found, key=lambda tile: tile[:2])


def every_figure(names: list[str]) -> list[Figure]:
    evaluations = [evaluation(name, [0.2, 0.5, 0.4], shift=0.01 * i) for i, name in enumerate(names)]
    named = [dataclasses.replace(e, metadata={"class_names": (3 * names)[:3]}) for e in evaluations]
    by_group = {name: evaluations[i:] for i, name in enumerate(names)}
    return [
        trade_off(by_group, title=" ".join(names)),
        top_examples_grid(named[0], named[-1], thumbnails, thumbnails, [0, 1, 2], [2, 1, 0], 2),
    ]
