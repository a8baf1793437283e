"""HTML of a report's two pages: tables, metadata and glossary of the overview, and the frame of the explorer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined

from monoloss.evaluation.result import Evaluation
from monoloss.report.published import MEASURES as PUBLISHED_MEASURES
from monoloss.report.published import PUBLISHED, SOURCE, VARIANTS, Pair, published_beside
from monoloss.report.runs import ReportRun, baseline_of
from monoloss.report.terms import TERMS

ASSETS = ("report.css", "terms.js", "charts.js", "explorer.js", "latent_data.js", "latent_table.js", "latent_view.js")
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
Summaries: TypeAlias = Mapping[str, Mapping[str, float]]  # summary of a run by the run's key


class Measure(NamedTuple):
    """A measure of a summary: name, key of its term, format, and 1 if more is better, -1 if less is, 0 if neither."""

    key: str
    term: str
    form: str
    better: int


_SUMMARY = (
    Measure("score_mean", "score", ".3f", 1),
    Measure("score_mean_zero_filled", "score_all", ".3f", 1),
    Measure("score_median", "score_median", ".3f", 1),
    Measure("score_p90", "score_p90", ".3f", 1),
    Measure("chance", "chance", ".3f", 0),
    Measure("lift_mean", "lift", ".3f", 1),
    Measure("n_eff_median", "n_eff", ".1f", 0),
    Measure("purity_binary", "purity_binary", ".3f", 1),
    Measure("purity_weighted", "purity_weighted", ".3f", 1),
    Measure("purity_binary_by_mass", "purity_binary_by_mass", ".3f", 1),
    Measure("purity_weighted_by_mass", "purity_weighted_by_mass", ".3f", 1),
    Measure("explained_variance", "explained_variance", ".3f", 1),
    Measure("r2", "r2", ".3f", 1),
    Measure("nmse", "nmse", ".4f", -1),
    Measure("mse", "mse", ".3g", -1),
    Measure("l0", "l0", ".1f", 0),
    Measure("n_latents", "n_latents", ".0f", 0),
    Measure("n_alive", "alive", ".0f", 1),
    Measure("n_undefined", "undefined", ".0f", 0),
    Measure("n_dead", "dead", ".0f", -1),
)
_BY_KEY = {measure.key: measure for measure in _SUMMARY}
_MAIN = (
    "score_mean", "score_mean_zero_filled", "lift_mean", "purity_binary", "purity_weighted", "explained_variance",
    "r2", "l0", "n_alive", "n_undefined", "n_dead",
)  # fmt: skip
_LEADING = ("score_mean", "purity_weighted", "lift_mean", "explained_variance", "n_alive")


class Cell(NamedTuple):
    """A measure of a run in a table."""

    key: str
    value: str
    """All digits; empty if undefined."""
    text: str
    """Rounded; a dash if undefined."""
    difference: str
    """Signed difference to the baseline; may be empty."""
    sense: str
    """Whether the difference is "better", "worse" or the "same"; empty without one."""


@dataclass(frozen=True)
class TableRow:
    """A run in a table, or the paper's published values (``published``), which have no key."""

    key: str
    name: str
    loss: str
    is_baseline: bool
    cells: Sequence[Cell]
    published: bool = False


class Group(NamedTuple):
    """Runs under one heading."""

    name: str
    rows: Sequence[TableRow]


class Change(NamedTuple):
    """The best run of a group beside its baseline."""

    group: str
    key: str
    name: str
    baseline: str
    n_latents: str
    cells: Sequence[tuple[Measure, str, Cell]]
    """Of each leading measure the baseline's value as text, and the cell of the run."""


def page_files(
    runs: Sequence[ReportRun],
    figures: Sequence[tuple[str, str, str]],
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, str]:
    """Return the text of a report's pages, style sheet and scripts, by path below the folder of the report.

    Args:
        runs: the runs to show, at least one.
        figures: id, title and caption of each chart in ``data/figures.js``.
        title: title of both pages; by default "MonoLoss report".
        notes: sentences at the top of the overview.
    """
    environment = Environment(
        loader=PackageLoader("monoloss.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["link"] = _name_in_url
    context = {"title": title or "MonoLoss report", "terms": TERMS, "n_runs": len(runs), "notes": notes}
    pages = {
        "index.html": environment.get_template("index.html.jinja").render(context | _overview(runs, figures)),
        "latents.html": environment.get_template("latents.html.jinja").render(context),
    }
    assets = resources.files("monoloss.report") / "assets"
    return pages | {f"assets/{name}": (assets / name).read_text(encoding="utf-8") for name in ASSETS}


def figure_text(value: float, form: str) -> str:
    """Format a number by the spec `form`: a real minus sign, thousands in groups; a dash for NaN and infinity."""
    if not math.isfinite(value):
        return DASH
    text = format(value, form if form.endswith("g") else "z," + form)  # z: no minus before a rounded zero
    return text.replace("-", MINUS)


def summary_of(evaluation: Evaluation) -> dict[str, float]:
    """Return the summary of an evaluation with ``n_undefined`` (active latents without a score) and ``n_dead``."""
    score, density = (evaluation.latents[name] for name in ("score", "density"))
    dead = density == 0
    return {
        **evaluation.summary,
        "n_undefined": float((score.isnan() & ~dead).sum()),
        "n_dead": float(dead.sum()),
    }


def _overview(runs: Sequence[ReportRun], figures: Sequence[tuple[str, str, str]]) -> dict[str, object]:
    """Return the variables of the overview's template."""
    groups = _grouped(runs)
    summaries = {run.key: summary_of(run.evaluation) for run in runs}
    published = {run.key: published_beside(run.evaluation) for run in runs}
    measures = [measure for measure in _SUMMARY if any(measure.key in summary for summary in summaries.values())]
    published_keys = {key for pairs in published.values() for key in pairs}
    main = [m for m in measures if m.key in _MAIN and (m.key != "r2" or "r2" in published_keys)]
    everything = [_row(run, group, summaries, measures) for group in groups for run in group]
    shared, different = _metadata(runs)
    weights = [(run.is_baseline, run.settings.mono_weight) for group in groups if len(group) > 1 for run in group]
    return {
        "subtitle": _subtitle(runs),
        "by_mono_loss": all(weight is not None and (weight == 0) == is_baseline for is_baseline, weight in weights),
        "best_of_several": any(len(group) > 2 for group in groups),
        "changes": [change for group in groups if (change := _change(group, summaries, measures)) is not None],
        "main": main,
        "groups": [_group(group, summaries, published, main) for group in groups],
        "measures": measures,
        "everything": everything,
        "shared_metadata": shared,
        "metadata_headings": different,
        "metadata_rows": [(run.name, [dict(run.metadata).get(name, DASH) for name in different]) for run in runs],
        "figures": figures,
        "published": _published_table(),
        "published_source": SOURCE,
        "published_variants": list(VARIANTS.values()),
        "matches_published": bool(published_keys),
        "chances": sorted({figure_text(s["chance"], ".3f") for s in summaries.values() if "chance" in s}),
        "few_rows": [run.name for run in runs if summaries[run.key].get("n_eff_median", math.inf) < _FEW],
    }


_FEW = 5.0  # effective rows below which a score says little


def _subtitle(runs: Sequence[ReportRun]) -> list[str]:
    """Return the parts of the line below the title: numbers of evaluations, of rows by store, and of classes."""
    all_metadata = [run.evaluation.metadata for run in runs]
    stores = list(dict.fromkeys((metadata.get("store"), metadata.get("n_rows")) for metadata in all_metadata))
    parts = [f"{len(runs)} evaluation{'s' * (len(runs) > 1)}"]
    parts += [f"{n_rows:,} rows of {name}" if isinstance(n_rows, int) else str(name) for name, n_rows in stores[:3]]
    if len(stores) > 3:
        parts.append(f"{len(stores) - 3} more stores")
    n_classes = {len(names) for metadata in all_metadata if isinstance(names := metadata.get("class_names"), list)}
    if len(n_classes) == 1:
        parts.append(f"{n_classes.pop():,} classes")
    return [part for part in parts if part != "None"]


def _grouped(runs: Sequence[ReportRun]) -> list[list[ReportRun]]:
    """Return the runs by group, in the order of first appearance."""
    groups: dict[str, list[ReportRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return list(groups.values())


def _row(run: ReportRun, group: Sequence[ReportRun], summaries: Summaries, measures: Sequence[Measure]) -> TableRow:
    """Return the line of a run in a table of measures, with differences to its baseline."""
    baseline = baseline_of(group, run)
    base = None if baseline is None else summaries[baseline.key]
    cells = [_cell(measure, summaries[run.key], base) for measure in measures]
    return TableRow(run.key, run.name, run.settings.loss or "", run.is_baseline and len(group) > 1, cells)


def _cell(measure: Measure, summary: Mapping[str, float], base: Mapping[str, float] | None) -> Cell:
    """Return the cell of a measure; `base` is the summary of the baseline, None for no difference."""
    value = summary.get(measure.key, math.nan)
    text = figure_text(value, measure.form)
    difference = value - base.get(measure.key, math.nan) if base is not None else math.nan
    raw = repr(value) if math.isfinite(value) else ""
    if not math.isfinite(difference) or measure.key in ("chance", "n_latents"):
        return Cell(measure.key, raw, text, "", "")
    written = figure_text(difference, measure.form)
    is_zero = not any(digit in written for digit in "123456789")
    sense = "same" if is_zero or not measure.better else "better" if difference * measure.better > 0 else "worse"
    sign = "" if written.startswith(MINUS) else "+"
    return Cell(measure.key, raw, text, "\N{PLUS-MINUS SIGN}0" if is_zero else sign + written, sense)


def _change(group: Sequence[ReportRun], summaries: Summaries, measures: Sequence[Measure]) -> Change | None:
    """Compare the run of a group with the highest score to the baseline; None for a baseline alone."""
    others = [run for run in group if not run.is_baseline]
    if not others:
        return None

    def score(run: ReportRun) -> float:
        value = summaries[run.key].get("score_mean_zero_filled", math.nan)
        return value if math.isfinite(value) else -math.inf

    best = max(others, key=score)
    baseline = next(run for run in group if run.is_baseline)
    base = summaries[baseline.key]
    leading = [_BY_KEY[key] for key in _LEADING if _BY_KEY[key] in measures]
    return Change(
        best.group,
        best.key,
        best.name,
        baseline.name,
        figure_text(summaries[best.key].get("n_latents", math.nan), ".0f"),
        [(m, figure_text(base.get(m.key, math.nan), m.form), _cell(m, summaries[best.key], base)) for m in leading],
    )


def _group(
    runs: Sequence[ReportRun],
    summaries: Summaries,
    published: Mapping[str, Mapping[str, Pair]],
    measures: Sequence[Measure],
) -> Group:
    """Return the table rows of a group's runs, then those of the published values of the same settings."""
    rows = [_row(run, runs, summaries, measures) for run in runs]
    settings: list[Mapping[str, Pair]] = []
    for run in runs:
        if published[run.key] and published[run.key] not in settings:
            settings.append(published[run.key])
    for pairs in settings:
        for place, name in enumerate(("paper, without MonoLoss", "paper, with MonoLoss")):
            values = {key: pair[place] for key, pair in pairs.items()}
            cells = [_cell(measure, values, None) for measure in measures]
            rows.append(TableRow("", name, SOURCE, is_baseline=False, cells=cells, published=True))
    return Group(runs[0].group, rows)


def _metadata(runs: Sequence[ReportRun]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the metadata that all runs share, as headings with texts, and the headings of metadata that differ."""
    headings = list(dict.fromkeys(heading for run in runs for heading, _ in run.metadata))
    values = {heading: [dict(run.metadata).get(heading, DASH) for run in runs] for heading in headings}
    shared = [(heading, texts[0]) for heading, texts in values.items() if len(set(texts)) == 1]
    return shared, [heading for heading, texts in values.items() if len(set(texts)) > 1]


def _published_table() -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Return data, encoder, measure, and for each SAE variant the published value without and with MonoLoss."""
    rows = []
    for (data, encoder, measure), pairs in PUBLISHED.items():
        values = [(f"{pair.without:.3f}", f"{pair.with_loss:.3f}") for pair in pairs.values()]
        rows.append((data, encoder, PUBLISHED_MEASURES[measure], values))
    return rows


def _name_in_url(run: TableRow | Change) -> str:
    """Quote the name of a run for a URL; its key where the name cannot be encoded."""
    from urllib.parse import quote

    try:
        return quote(run.name, safe="")
    except UnicodeEncodeError:
        return quote(run.key, safe="")
