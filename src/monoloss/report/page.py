"""The report: a folder with pages that open from the disk, and all they show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from monoloss import terminal
from monoloss.checks import check_number
from monoloss.data.images.row_images import Pictures, pictures_of
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.charts.overview import OverviewFigure, TrainingCurve, overview_figures
from monoloss.evaluation.result import EVALUATION_FILE, LATENTS, Evaluation
from monoloss.files.atomic import atomic_folder, check_new_folder
from monoloss.functional.histogram import histogram_edges
from monoloss.report.latent_data import BLOCK, columns_of, shown_rows, write_latents
from monoloss.report.overview import page_files
from monoloss.report.runs import ReportRun, report_runs
from monoloss.report.script_files import script_text, short, short_all, write_script
from monoloss.report.sprites import COLUMNS, PER_SHEET, sheet_suffix, write_sheets
from monoloss.report.terms import TERMS

PAGE = "index.html"
_OF_A_REPORT = {PAGE, "latents.html", "assets", "data", "images"}
_LARGEST_IMAGE = 256
_BLOCK_LABELS = 2**24  # of a multi-label store, unpacked at a time


def write_report(  # noqa: PLR0913 - each is an option
    evaluations: Sequence[Evaluation],
    out: str | Path,
    *,
    stores: Sequence[FeatureStore] = (),
    curves: Sequence[TrainingCurve] = (),
    images: str | Path | None = None,
    baseline: str | None = None,
    title: str | None = None,
    image_size: int = 64,
    progress: bool = False,
) -> Path:
    """Write evaluations as pages that a browser opens from the disk, without a network: an overview and an explorer.

    Nothing is computed anew but the comparison of decoders; rows are read for their images, ids and labels alone.

    Args:
        evaluations: what is shown, each under a name of its own.
        out: the folder; it appears whole, and replaces an earlier report there.
        stores: what the evaluations were made on, known by their contents. Without its store an evaluation is shown
            without images, ids and labels of rows.
        curves: what the training has logged.
        images: the folder that the stores' paths are relative to; by default their thumbnails, or the image root that
            they name.
        baseline: name of the evaluation that the others of its group are compared with; by default the one that was
            trained without MonoLoss.
        title: of the pages.
        image_size: side of the images in pixels, from 8 to 256.
        progress: show a progress bar.

    Returns:
        The page to open, ``out/index.html``.

    Raises:
        InputError: no evaluation, two of one name, a baseline that is none of them; ``images`` that no store can use,
            or without a single image; a folder that holds something else, or lies in that of an evaluation.

    Example:
        >>> import tempfile, torch
        >>> from monoloss import SparseAutoencoder, TopKConfig, evaluate
        >>> sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(folder + "/store", torch.randn(64, 8))
        ...     page = write_report([evaluate(store, {"mine": sae})["mine"]], folder + "/report", stores=[store])
        ...     sorted(file.name for file in page.parent.iterdir())
        ['assets', 'data', 'index.html', 'latents.html']
    """
    check_number("image_size", image_size, at_least=8, below=_LARGEST_IMAGE + 1, integer=True)
    out = Path(out)
    _check_out(out)
    runs = report_runs(evaluations, stores, baseline)
    groups: dict[str, list[Evaluation]] = {}
    for run in sorted(runs, key=lambda run: not run.is_baseline):
        groups.setdefault(run.group, []).append(run.evaluation)
    groups = {group: groups[group] for group in dict.fromkeys(run.group for run in runs)}
    figures = overview_figures(groups, curves)
    shown = _shown_stores(runs, None if images is None else Path(images))
    with atomic_folder(out, replace=True) as folder:
        metadata, notes = {}, []
        for key, one in shown.items():
            missing: list[int] = []
            if one.pictures is not None:
                with terminal.progress("writing", len(one.rows), "images", shown=progress) as advance:
                    missing = write_sheets(folder / "images" / key, one.pictures, one.rows, image_size, advance)
            _write_items(folder / "data" / key, key, one)
            metadata[key] = _store_metadata(one, image_size) | {"missing": missing}
            if missing:
                images_of = f"{len(missing):,} of {len(one.rows):,} images of {one.metadata.get('store', key)}"
                notes.append(f"{images_of} cannot be read: their ids are shown.")
        _write_pages(folder, runs, figures, title, notes)
        n_latents = sum(len(run.evaluation.examples.rows) for run in runs)
        with terminal.progress("writing", n_latents, "latents", shown=progress) as advance:
            for run in runs:
                write_latents(folder / "data" / run.key, run, runs, shown[run.store_key].rows, advance)
        script = folder / "data" / "runs.js"
        write_script(script, "runs", [_run_data(run, shown[run.store_key]) for run in runs])
        with script.open("a", encoding="ascii", newline="\n") as file:
            for place, value in (
                ("stores", metadata),
                ("histogram_edges", short_all(histogram_edges().tolist())),
                ("terms", {key: term._asdict() for key, term in TERMS.items()}),
            ):
                file.write(script_text(place, value))
    return out / PAGE


class _ShownStore(NamedTuple):
    """A store as far as the report shows it.

    Attributes:
        metadata: of an evaluation that was made on it.
        store: it itself; None where it is gone.
        rows: numbers of the rows that some latent shows, ascending; their places here are the items of the report.
        pictures: where their images come from; None where there are none.
    """

    metadata: dict[str, Any]
    store: FeatureStore | None
    rows: Int[Tensor, " items"]
    pictures: Pictures | None


def _shown_stores(runs: Sequence[ReportRun], images: Path | None) -> dict[str, _ShownStore]:
    by_key: dict[str, list[ReportRun]] = {}
    for run in runs:
        by_key.setdefault(run.store_key, []).append(run)
    shown = {}
    for key, of_store in by_key.items():
        store = of_store[0].store
        pictures = None if store is None else pictures_of(store, images)
        rows = shown_rows([run.evaluation for run in of_store])
        if store is not None and pictures is not None and pictures.root is not None and len(rows):
            pictures = _if_there(store, rows, pictures, asked=pictures.root == images)
        shown[key] = _ShownStore(dict(of_store[0].evaluation.metadata), store, rows, pictures)
    if images is not None and all(one.pictures is None or one.pictures.root != images for one in shown.values()):
        expected = "stores that know the paths of their rows; without images their thumbnails are shown"
        raise InputError("images", f"{images} for stores without paths", expected)
    return shown


def _if_there(store: FeatureStore, rows: Tensor, pictures: Pictures, *, asked: bool) -> Pictures | None:
    """None where not one of the images that are to be shown is a file; refused where the user asked for them."""
    paths, root = store.paths, Path(str(pictures.root))
    if any((path := paths[row]) is not None and (root / path).is_file() for row in rows.tolist()):
        return pictures
    if asked:
        raise InputError("images", f"{root}, without an image of this report", "the folder the store's paths are below")
    return None


def _write_pages(
    folder: Path,
    runs: Sequence[ReportRun],
    figures: Sequence[OverviewFigure],
    title: str | None,
    notes: Sequence[str],
) -> None:
    """The pages and what they load but the data of latents."""
    from plotly.offline import get_plotlyjs

    files = page_files(
        runs, [(figure.id, figure.title, figure.caption) for figure in figures], title=title, notes=notes
    )
    for name, text in (files | {"assets/plotly.min.js": get_plotlyjs()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace", newline="\n")  # names of undecodable files
    charts = [
        {"id": chart.id, "title": chart.title, "caption": chart.caption, "figure": json.loads(chart.figure.to_json())}
        for chart in figures
    ]
    write_script(folder / "data" / "figures.js", "figures", charts)


def _write_items(folder: Path, key: str, one: _ShownStore) -> None:
    """Id, labels and row number of each item, in files of 256."""
    store, rows = one.store, one.rows
    ids = None if store is None else store.ids
    labels = _labels(store, rows)
    for number, part in enumerate(rows.split(PER_SHEET) if len(rows) else ()):
        items = [
            [f"row {row}" if ids is None else ids[row], labels[number * PER_SHEET + place], row]
            for place, row in enumerate(part.tolist())
        ]
        write_script(folder / f"items-{number:04d}.js", "items", items, key=f"{key}/{number}")


def _labels(store: FeatureStore | None, rows: Tensor) -> list[list[int]]:
    """The classes of each row."""
    if store is None or not store.has_labels:
        return [[] for _ in rows]
    if not store.multi_label:
        return [[label] for label in store.labels()[rows].tolist()]
    found: list[list[int]] = []
    n_rows = max(1, _BLOCK_LABELS // max(1, store.n_classes))
    for start in range(0, store.n_rows, n_rows):
        stop = min(start + n_rows, store.n_rows)
        here = rows[(rows >= start) & (rows < stop)]
        if len(here):
            found += [row.nonzero()[:, 0].tolist() for row in store.labels(start, stop)[here - start]]
    return found


def _store_metadata(one: _ShownStore, cell: int) -> dict[str, object]:
    names = one.metadata.get("class_names") if one.store is None else one.store.class_names
    return {
        "name": one.metadata.get("store"),
        "n_items": len(one.rows),
        "n_rows": one.metadata.get("n_rows"),
        "per_sheet": PER_SHEET,
        "sheet_columns": COLUMNS,
        "sheet_suffix": sheet_suffix(),
        "cell": None if one.pictures is None else cell,
        "class_names": names,
        "multi_label": one.store is not None and one.store.multi_label,
    }


def _run_data(run: ReportRun, one: _ShownStore) -> dict[str, object]:
    evaluation = run.evaluation
    return {
        "key": run.key,
        "name": run.name,
        "group": run.group,
        "baseline": run.is_baseline,
        "store": run.store_key,
        "n_latents": len(evaluation.examples.rows),
        "n_alive": int((~evaluation.latents["score"].isnan()).sum()),
        "chance": short(evaluation.summary.get("chance", math.nan)),
        "columns": columns_of(evaluation),
        "block": BLOCK,
        "has_decoder": evaluation.decoder_directions is not None,
        "has_labels": "dominant_class" in evaluation.latents,
        "multi_label": one.store is not None and one.store.multi_label,
        "facts": run.metadata,
    }


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something else than a report, or that would make an evaluation's hold one."""
    found = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if found and not (found <= _OF_A_REPORT and (out / "data" / "runs.js").is_file()):
        raise InputError("out", f"{out}, which holds something else", "a new folder, or an earlier report's")
    if any((folder / EVALUATION_FILE).is_file() and (folder / LATENTS).is_file() for folder in out.resolve().parents):
        raise InputError("out", f"{out}, within an evaluation", "a folder elsewhere")
    check_new_folder(out, allow_full=True)
