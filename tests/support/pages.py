"""A report for the tests with a browser, and what its pages show as a user reads it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from monoloss.evaluation.result import Evaluation
from monoloss.report.page import write_report
from support.reports import M, grey_thumbnails, some_evaluations, some_store

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def report_of_two_runs(folder: Path) -> tuple[Path, dict[str, Evaluation]]:
    """Write a report of a baseline and a MonoLoss run, with images and labels, some latents dead; save both too."""
    store = some_store(folder / "store", thumbnails=grey_thumbnails())
    evaluations = [with_dead_latents(evaluation) for evaluation in some_evaluations(store)]
    page = write_report(evaluations, folder / "report", stores=[store], image_size=16)
    for evaluation in evaluations:
        evaluation.save(folder / evaluation.name)
    return page.parent, {evaluation.name: evaluation for evaluation in evaluations}


def with_dead_latents(evaluation):
    """Make latents 3 and 4 dead, and latent 5 active without a score."""
    latents = {name: column.clone() for name, column in evaluation.latents.items()}
    for name in ("score", "lift", "n_eff"):
        latents[name][3:6] = math.nan
    latents["density"][3:5] = 0
    for name in ("purity_binary", "purity_weighted"):
        latents[name][3:5] = math.nan
    latents["dominant_class"][3:5] = -1
    return replace(evaluation, latents=latents)


def states(evaluation):
    """Return the dead latents, and the active ones without a score."""
    score, density = evaluation.latents["score"], evaluation.latents["density"]
    dead = {j for j in range(M) if density[j] == 0}
    return dead, {j for j in range(M) if math.isnan(score[j])} - dead


def as_on_the_page(column):
    """Round a column to 6 digits, as in the files of a report."""
    return [float(f"{value:.6g}") for value in column.tolist()]


def written(value, digits):
    return DASH if math.isnan(value) else f"{value:z.{digits}f}".replace("-", MINUS)


def shown(page):
    """Return the numbers of the latents in the table, from the top."""
    rows = page.locator("#rows [role=row]")
    places = rows.evaluate_all("rows => rows.map(row => [Number(row.ariaRowIndex), Number(row.dataset.latent)])")
    return [latent for _, latent in sorted(places)]


def opened(page):
    """Return the number of the open latent, None without one."""
    titles = page.locator("[data-side=opened] h2")
    return int(titles.first.inner_text().split()[-1]) if titles.count() else None


def wait_for(page, latent):
    page.wait_for_function(
        "latent => document.querySelector('[data-side=opened] h2')?.textContent === `Latent ${latent}`", arg=latent
    )
