"""Reports: folders with an overview page, an explorer of latents, and all that the two pages load."""

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
_REPORT_NAMES = {PAGE, "latents.html", "assets", "data", "images"}  # in the folder of a report
_LARGEST_IMAGE = 256
_BLOCK_LABELS = 2**24  # labels of a multi-label store that are unpacked at a time


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
    """Write a report of evaluations: an overview and an explorer of latents that a browser opens without a network.

    Only the cosines between decoder directions are computed; rows are read for their images, ids and labels.

    Args:
        evaluations: the evaluations to show; their names must differ.
        out: folder of the report, written as a whole; an earlier report in this place is replaced.
        stores: stores that the evaluations were made on, recognised by their fingerprints. An evaluation whose store is
            missing is shown without images, ids and labels of its rows.
        curves: measures logged during training.
        images: root folder of the image paths in the stores; by default the stores' thumbnails are shown, else the
            images below the root that a store names.
        baseline: name of the evaluation that the others of its group are compared with; by default the one that was
            trained without MonoLoss.
        title: title of the pages; by default "MonoLoss report".
        image_size: side of the images in pixels, from 8 to 256.
        progress: show a progress bar.

    Returns:
        The page to open, ``out/index.html``.

    Raises:
        InputError: no evaluation, two with the same name, or no evaluation named ``baseline``; ``images`` given for
            stores without paths, or none of the images exists; ``out`` holds other files, or is inside an evaluation.

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
        for key, store in shown.items():
            missing: list[int] = []
            if store.pictures is not None:
                with terminal.progress("writing", len(store.rows), "images", shown=progress) as advance:
                    missing = write_sheets(folder / "images" / key, store.pictures, store.rows, image_size, advance)
            _write_items(folder / "data" / key, key, store)
            metadata[key] = _store_metadata(store, image_size) | {"missing": missing}
            if missing:
                images_of = f"{len(missing):,} of {len(store.rows):,} images of {store.metadata.get('store', key)}"
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
    """The part of a store that the report shows."""

    metadata: dict[str, Any]
    """Metadata of an evaluation that was made on the store."""
    store: FeatureStore | None
    """None where the store no longer exists."""
    rows: Int[Tensor, " items"]
    """Rows that are an example of some latent, ascending. Item i of the report is row ``rows[i]``."""
    pictures: Pictures | None
    """Source of the images; None where the store has none."""


def _shown_stores(runs: Sequence[ReportRun], images: Path | None) -> dict[str, _ShownStore]:
    """Return the stores that runs were evaluated on, by key; check that `images` is the root of one of them."""
    runs_of_store: dict[str, list[ReportRun]] = {}
    for run in runs:
        runs_of_store.setdefault(run.store_key, []).append(run)
    shown = {}
    for key, store_runs in runs_of_store.items():
        store = store_runs[0].store
        pictures = None if store is None else pictures_of(store, images)
        rows = shown_rows([run.evaluation for run in store_runs])
        if store is not None and pictures is not None and pictures.root is not None and len(rows):
            pictures = _existing_pictures(store, rows, pictures, is_required=pictures.root == images)
        shown[key] = _ShownStore(dict(store_runs[0].evaluation.metadata), store, rows, pictures)
    if images is not None and all(store.pictures is None or store.pictures.root != images for store in shown.values()):
        expected = "stores that know the paths of their rows; without images their thumbnails are shown"
        raise InputError("images", f"{images} for stores without paths", expected)
    return shown


def _existing_pictures(store: FeatureStore, rows: Tensor, pictures: Pictures, *, is_required: bool) -> Pictures | None:
    """Return `pictures` if the image file of at least one row exists; else None, or an error if it is required."""
    paths, root = store.paths, Path(str(pictures.root))
    if any((path := paths[row]) is not None and (root / path).is_file() for row in rows.tolist()):
        return pictures
    if is_required:
        raise InputError("images", f"{root}, without an image of this report", "the folder the store's paths are below")
    return None


def _write_pages(
    folder: Path,
    runs: Sequence[ReportRun],
    figures: Sequence[OverviewFigure],
    title: str | None,
    notes: Sequence[str],
) -> None:
    """Write the pages, their style sheet, scripts and charts."""
    from plotly.offline import get_plotlyjs

    files = page_files(
        runs, [(figure.id, figure.title, figure.caption) for figure in figures], title=title, notes=notes
    )
    for name, text in (files | {"assets/plotly.min.js": get_plotlyjs()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files may hold what UTF-8 cannot encode: replace it
        path.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    charts = [
        {"id": chart.id, "title": chart.title, "caption": chart.caption, "figure": json.loads(chart.figure.to_json())}
        for chart in figures
    ]
    write_script(folder / "data" / "figures.js", "figures", charts)


def _write_items(folder: Path, key: str, shown: _ShownStore) -> None:
    """Write id, labels and row number of each item of a store, in files of 256."""
    store, rows = shown.store, shown.rows
    ids = None if store is None else store.ids
    labels = _labels(store, rows)
    for number, part in enumerate(rows.split(PER_SHEET) if len(rows) else ()):
        items = [
            [f"row {row}" if ids is None else ids[row], labels[number * PER_SHEET + place], row]
            for place, row in enumerate(part.tolist())
        ]
        write_script(folder / f"items-{number:04d}.js", "items", items, key=f"{key}/{number}")


def _labels(store: FeatureStore | None, rows: Tensor) -> list[list[int]]:
    """Return the classes of each row; none where the store has no labels or no longer exists."""
    if store is None or not store.has_labels:
        return [[] for _ in rows]
    if not store.multi_label:
        return [[label] for label in store.labels()[rows].tolist()]
    classes: list[list[int]] = []
    n_rows = max(1, _BLOCK_LABELS // max(1, store.n_classes))
    for start in range(0, store.n_rows, n_rows):
        stop = min(start + n_rows, store.n_rows)
        block_rows = rows[(rows >= start) & (rows < stop)]
        if len(block_rows):
            classes += [row.nonzero()[:, 0].tolist() for row in store.labels(start, stop)[block_rows - start]]
    return classes


def _store_metadata(shown: _ShownStore, cell: int) -> dict[str, object]:
    """Return the entry of a store in ``data/runs.js``; `cell` is the side of an image in pixels."""
    names = shown.metadata.get("class_names") if shown.store is None else shown.store.class_names
    return {
        "name": shown.metadata.get("store"),
        "n_items": len(shown.rows),
        "n_rows": shown.metadata.get("n_rows"),
        "per_sheet": PER_SHEET,
        "sheet_columns": COLUMNS,
        "sheet_suffix": sheet_suffix(),
        "cell": None if shown.pictures is None else cell,
        "class_names": names,
        "multi_label": shown.store is not None and shown.store.multi_label,
    }


def _run_data(run: ReportRun, shown: _ShownStore) -> dict[str, object]:
    """Return the entry of a run in ``data/runs.js``."""
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
        "multi_label": shown.store is not None and shown.store.multi_label,
        "facts": run.metadata,
    }


def _check_out(out: Path) -> None:
    """Check that a folder is new, empty or an earlier report, and not inside an evaluation's folder."""
    names = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if names and not (names <= _REPORT_NAMES and (out / "data" / "runs.js").is_file()):
        raise InputError("out", f"{out}, which holds something else", "a new folder, or an earlier report's")
    if any((folder / EVALUATION_FILE).is_file() and (folder / LATENTS).is_file() for folder in out.resolve().parents):
        raise InputError("out", f"{out}, within an evaluation", "a folder elsewhere")
    check_new_folder(out, allow_full=True)
