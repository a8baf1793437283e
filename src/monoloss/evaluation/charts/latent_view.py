"""A latent as HTML, for a notebook or a file; the HTML runs no script and loads nothing."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from monoloss.checks import check_type
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.charts.bars import activation_bars, check_latent, class_bars, latent_measures
from monoloss.evaluation.charts.names import class_name, plain_text
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.record import EvaluationRecord
from monoloss.evaluation.similar import similar_latents
from monoloss.files.atomic import atomic_file

_CELL, _N_SIMILAR, _N_LABELS = 64, 8, 5  # pixels of an image; similar latents; class names of a row
_STYLE = """<style>
.monoloss-latent{font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:75rem}
.monoloss-latent h3{font-size:1.15em;margin:0 0 .3em;overflow-wrap:anywhere}
.monoloss-latent h4{font-size:1em;margin:1em 0 .3em}
.monoloss-latent dl{display:flex;flex-wrap:wrap;gap:.2em 1.4em;margin:0}
.monoloss-latent dl div{display:flex;gap:.4em}
.monoloss-latent dt,.monoloss-latent .quiet{opacity:.75}
.monoloss-latent dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.monoloss-latent ol{display:flex;flex-wrap:wrap;gap:4px;list-style:none;margin:0;padding:0}
.monoloss-latent li{font-size:12px;text-align:center;min-width:64px;max-width:14em;overflow-wrap:anywhere;margin:0}
.monoloss-latent li.name{border:1px solid rgba(128,128,128,.5);border-radius:4px;padding:3px 6px}
.monoloss-latent img{display:block;width:64px;height:64px;object-fit:cover;margin:0 auto}
.monoloss-latent img.small{image-rendering:pixelated}
.monoloss-latent li,.monoloss-latent dd,.monoloss-latent .bar span{unicode-bidi:isolate}
.monoloss-latent .charts{display:flex;flex-wrap:wrap;gap:0 3em}
.monoloss-latent .charts>div{flex:1 1 18em;max-width:34em}
.monoloss-latent .columns{display:flex;align-items:flex-end;gap:2px;height:110px;border-bottom:1px solid}
.monoloss-latent .columns i{flex:1;background:#2b83c6}
.monoloss-latent .ends{display:flex;justify-content:space-between;font-size:12px}
.monoloss-latent .bar{display:grid;grid-template-columns:10em 1fr 4em;gap:.6em;align-items:center}
.monoloss-latent .bar span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.monoloss-latent .bar i{height:.8em;background:#2b83c6}
</style>"""


class ShownImage(NamedTuple):
    """An image as a ``data:`` address; the pixels of a small one are enlarged as squares."""

    address: str
    is_small: bool


class ShownRow(NamedTuple):
    """A row that a latent is active on."""

    row: int
    """Number of the row in the store."""
    value: float
    """The activation."""
    name: str
    """The row's id, or "row 3" without a store."""
    labels: Sequence[str]
    """Names of the row's classes; empty if unknown."""
    image: ShownImage | None


class LatentView:
    """One latent of an evaluation as HTML, the result of :meth:`monoloss.Evaluation.latent`.

    A notebook shows the latent's measures, the rows that activate it most, around the median and least, the histogram
    of its activations, its classes, and the latents with the most similar decoder directions. The arguments and errors
    are those of :meth:`monoloss.Evaluation.latent`.

    Attributes:
        rows: the shown rows by their heading.
    """

    def __init__(
        self,
        evaluation: EvaluationRecord,
        latent: int,
        store: FeatureStore | str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
    ) -> None:
        check_type("evaluation", evaluation, EvaluationRecord, "an Evaluation")
        self.evaluation, self.latent = evaluation, check_latent(evaluation, latent)
        self._store = store if store is None or isinstance(store, FeatureStore) else FeatureStore(store)
        if self._store is None and images is not None:
            raise InputError("images", str(images), "the store too: it says which image belongs to a row")
        fingerprint = evaluation.metadata.get("store_fingerprint")
        if self._store is not None and fingerprint not in (None, self._store.fingerprint):
            raise InputError("store", f"{self._store.folder}, another store", "the store that was evaluated")
        self.rows = _shown_rows(evaluation, latent, self._store, None if images is None else Path(images))

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        title = f"Latent {self.latent} of {plain_text(self.evaluation.name)}"
        measures = "".join(
            f"<div><dt>{_escaped(word)}</dt><dd>{_escaped(value)}</dd></div>"
            for word, value in latent_measures(self.evaluation, self.latent).items()
        )
        parts = [f"<h3>{_escaped(title)}</h3><dl>{measures}</dl>"]
        parts += [f"<h4>{_escaped(heading)}</h4>{_rows_html(rows)}" for heading, rows in self.rows.items()]
        parts.append(f'<div class="charts">{self._histogram_html()}{self._classes_html()}</div>')
        parts.append(self._similar_html())
        return f'{_STYLE}<div class="monoloss-latent">{"".join(parts)}</div>'

    def __repr__(self) -> str:
        measures = latent_measures(self.evaluation, self.latent)
        text = ", ".join(f"{word} {value}" for word, value in measures.items())
        return f"<latent {self.latent} of {self.evaluation.name!r}: {text}>"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the view as an HTML page, whole or not at all, and return its path; an older file is replaced.

        Raises:
            InputError: `path` is a folder.
        """
        title = _escaped(f"Latent {self.latent} of {plain_text(self.evaluation.name)}")
        head = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        head += '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        page = f"{head}<title>{title}</title></head><body>{self._repr_html_()}</body></html>\n"
        with atomic_file(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return Path(path)

    def _histogram_html(self) -> str:
        """Return the histogram of the latent's activations as HTML; empty without one."""
        bars = activation_bars(self.evaluation, self.latent)
        if not bars:
            return ""
        highest = max(bar.n_rows for bar in bars)
        columns = "".join(
            f'<i style="height:{100 * bar.n_rows / highest:.4g}%" title="{bar.range_text}: {bar.n_rows:,} rows"></i>'
            for bar in bars
        )
        ends = f"<span>{bars[0].low:.2g}</span><span>activation</span><span>{bars[-1].high:.2g}</span>"
        return (
            f"<div><h4>Active rows by activation</h4>"
            f'<div class="columns" role="img" aria-label="histogram, at most {highest:,} rows">{columns}</div>'
            f'<div class="ends">{ends}</div></div>'
        )

    def _classes_html(self) -> str:
        """Return bars of the latent's active rows by class as HTML; empty without classes."""
        bars = class_bars(self.evaluation, self.latent)
        if not bars:
            return ""
        highest = max(bar.n_rows for bar in bars)
        lines = "".join(
            f'<div class="bar"><span title="{_escaped(bar.name)}">{_escaped(bar.name)}</span>'
            f'<i style="width:{100 * bar.n_rows / highest:.4g}%"></i><span>{bar.n_rows:,}</span></div>'
            for bar in bars
        )
        return f"<div><h4>Active rows by class</h4>{lines}</div>"

    def _similar_html(self) -> str:
        """Return the latents with the most similar decoder directions as HTML; empty without a decoder."""
        if self.evaluation.decoder_directions is None:
            return ""
        similar = similar_latents(self.evaluation, _N_SIMILAR, torch.tensor([self.latent]))
        pairs = zip(similar.latents[0].tolist(), similar.cosines[0].tolist(), strict=True)
        text = ", ".join(f"{latent} ({cosine:.2f})" for latent, cosine in pairs if latent >= 0)
        return f"<h4>Most similar latents (cosine of the decoders)</h4><div>{text or 'none'}</div>"


def _shown_rows(
    evaluation: EvaluationRecord, latent: int, store: FeatureStore | None, images: Path | None
) -> dict[str, list[ShownRow]]:
    """Return the example rows of a latent by their heading; kinds that the evaluation lacks are left out."""
    kinds = {
        "Most active": evaluation.examples,
        "Around the median": evaluation.middle_examples,
        "Least active": evaluation.bottom_examples,
    }
    pairs = {heading: _row_values(examples, latent) for heading, examples in kinds.items() if examples is not None}
    rows = sorted({row for row_values in pairs.values() for row, _ in row_values})
    image_of_row = _images_of(store, rows, images)
    return {
        heading: [
            ShownRow(
                row,
                value,
                f"row {row}" if store is None else plain_text(str(store.ids[row])),
                [] if store is None else _labels(store, row),
                image_of_row.get(row),
            )
            for row, value in row_values
        ]
        for heading, row_values in pairs.items()
    }


def _row_values(examples: Examples, latent: int) -> list[tuple[int, float]]:
    """Return the row numbers of a latent's examples with their activations."""
    rows, values = examples.rows[latent].tolist(), examples.values[latent].tolist()
    return [(row, value) for row, value in zip(rows, values, strict=True) if row >= 0]


def _labels(store: FeatureStore, row: int) -> list[str]:
    """Return the names of a row's classes."""
    if not store.has_labels:
        return []
    label = store.labels(row, row + 1)[0]
    numbers = label.nonzero().flatten().tolist() if store.multi_label else [int(label)]
    return [class_name(number, store.class_names) for number in numbers if number >= 0]


def _images_of(store: FeatureStore | None, rows: Sequence[int], images: Path | None) -> dict[int, ShownImage]:
    """Return the images of rows by row number; rows without an image are left out."""
    if store is None or not rows:
        return {}
    from PIL import Image  # of the extra "report"

    from monoloss.data.images.row_images import fitted, pictures_of

    pictures = pictures_of(store, images)
    if pictures is None:
        return {}
    shown_images = {}
    for row, picture in zip(rows, pictures.read(torch.tensor(rows), _CELL), strict=True):
        if picture is None:
            continue
        cell = picture if max(picture.shape[:2]) <= _CELL else fitted(picture, _CELL)
        file = io.BytesIO()
        Image.fromarray(cell[:, :, 0] if cell.shape[2] == 1 else cell).save(file, "png")
        address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        shown_images[row] = ShownImage(address, max(cell.shape[:2]) <= _CELL // 2)
    return shown_images


def _rows_html(rows: Sequence[ShownRow]) -> str:
    return f"<ol>{''.join(map(_row_html, rows))}</ol>" if rows else '<div class="quiet">active on no row</div>'


def _row_html(row: ShownRow) -> str:
    """Return a list item for an example row: image or name, labels, activation."""
    classes = ", ".join([*row.labels[:_N_LABELS], *(["…"] if len(row.labels) > _N_LABELS else [])])
    words = _escaped(", ".join(part for part in (row.name, classes) if part))
    value = f'<span class="quiet">{row.value:.3g}</span>'
    if row.image is None:
        return f'<li class="name" title="{words}">{words}<br>{value}</li>'
    kind = ' class="small"' if row.image.is_small else ""
    return f'<li title="{words}"><img{kind} src="{row.image.address}" alt="{words}">{value}</li>'


def _escaped(text: str) -> str:
    return html.escape(text)
