"""What the explorer shows of each latent, as script files: measures as columns, the rest in blocks of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.similar import SimilarLatents, closest_matches, similar_latents
from monoloss.report.runs import ReportRun
from monoloss.report.script_files import short, short_all, write_script

BLOCK = 256  # latents in one file
COLUMNS = ("score", "lift", "n_eff", "density", "purity_binary", "purity_weighted", "dominant_class")
N_SIMILAR, N_MATCHES = 8, 8
Pairs = list[list[list[float | int | None]]]  # for each latent some pairs


def columns_of(evaluation: Evaluation) -> list[str]:
    """The measures that an evaluation has of its latents, in the order of the explorer's table."""
    return [name for name in COLUMNS if name in evaluation.latents]


def shown_rows(evaluations: Sequence[Evaluation]) -> Int[Tensor, " items"]:
    """The rows of a store that some latent of some evaluation shows, in stored order."""
    parts = [
        examples.rows.flatten()
        for evaluation in evaluations
        for examples in (evaluation.examples, evaluation.middle_examples, evaluation.bottom_examples)
        if examples is not None
    ]
    rows: Tensor = torch.cat(parts).unique()
    return rows[rows >= 0]


def matched_runs(runs: Sequence[ReportRun], run: ReportRun) -> list[ReportRun]:
    """The runs that a run's latents are matched with: on the same rows, those of its group first, at most eight."""
    others = [other for other in runs if other is not run and _comparable(other, run)]
    others.sort(key=lambda other: (other.group != run.group, not other.is_baseline))  # stable: else as they come
    return others[:N_MATCHES]


def write_latents(
    folder: Path,
    run: ReportRun,
    runs: Sequence[ReportRun],
    items: Int[Tensor, " items"],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Write ``columns.js`` and ``latents-0000.js``, ... of a run.

    Cost O(m^2 d) for the comparison with its own and each other run's decoder, O(m) for the rest.

    Args:
        folder: for the files.
        run: whose latents.
        runs: of the report.
        items: row numbers of the items of its store, ascending.
        advance: called with a number of latents whenever so many are written.
    """
    evaluation = run.evaluation
    columns = {name: _column(name, evaluation.latents[name]) for name in columns_of(evaluation)}
    write_script(folder / "columns.js", "columns", columns, key=run.key)
    similar = None if evaluation.decoder_directions is None else similar_latents(evaluation, N_SIMILAR)
    matches = {other.key: closest_matches(evaluation, other.evaluation) for other in matched_runs(runs, run)}
    for number, first in enumerate(range(0, len(evaluation.examples.rows), BLOCK)):
        part = slice(first, first + BLOCK)
        block = _block(evaluation, part, items, similar, matches)
        write_script(folder / f"latents-{number:04d}.js", "blocks", block, key=f"{run.key}/{number}")
        advance(len(block))


def _comparable(one: ReportRun, other: ReportRun) -> bool:
    left, right = one.evaluation.decoder_directions, other.evaluation.decoder_directions
    if left is None or right is None or one.store_key != other.store_key:
        return False
    return left.shape[1] == right.shape[1]


def _column(name: str, values: Tensor) -> list[Any]:
    if name == "dominant_class":
        return [value if value >= 0 else None for value in values.tolist()]
    return short_all(values.double().tolist())


def _block(
    evaluation: Evaluation,
    part: slice,
    items: Tensor,
    similar: SimilarLatents | None,
    matches: Mapping[str, SimilarLatents],
) -> list[dict[str, object]]:
    """What is shown of some latents, one after the other."""
    columns: dict[str, Sequence[object]] = {
        "top": _examples(evaluation.examples, part, items),
        "middle": _examples(evaluation.middle_examples, part, items),
        "bottom": _examples(evaluation.bottom_examples, part, items),
        "histogram": _histogram(evaluation.histogram, part),
        "classes": _classes(evaluation.top_classes, part),
        "similar": _similar(similar, part),
    }
    of_others = {key: _pairs(found.latents[part], found.cosines[part]) for key, found in matches.items()}
    n_latents = len(evaluation.examples.rows[part])
    columns = {name: values or [None] * n_latents for name, values in columns.items()}
    return [
        {name: values[latent] for name, values in columns.items()}
        | {"matches": {key: pairs[latent] for key, pairs in of_others.items() if pairs[latent] is not None}}
        for latent in range(n_latents)
    ]


def _examples(examples: Examples | None, part: slice, items: Tensor) -> Pairs:
    if examples is None:
        return []
    rows = examples.rows[part]
    places = torch.searchsorted(items, rows.clamp(min=0))
    return _of_each(rows >= 0, places, examples.values[part])


def _histogram(counts: Tensor | None, part: slice) -> Pairs:
    if counts is None:
        return []
    bins = torch.arange(counts.shape[1]).expand(len(counts[part]), -1)
    return _of_each(counts[part] > 0, bins, counts[part])


def _classes(found: TopClasses | None, part: slice) -> Pairs:
    if found is None:
        return []
    return _of_each(found.classes[part] >= 0, found.classes[part], found.counts[part])


def _similar(found: SimilarLatents | None, part: slice) -> Pairs:
    if found is None:
        return []
    return _of_each(found.latents[part] >= 0, found.latents[part], found.cosines[part])


def _of_each(there: Tensor, first: Tensor, second: Tensor) -> Pairs:
    """For each latent the pairs of numbers of its row, where there are any."""
    numbers = first[there].tolist()
    values = short_all(second[there].double().tolist()) if second.is_floating_point() else second[there].tolist()
    pairs = [[number, value] for number, value in zip(numbers, values, strict=True)]
    split, start = [], 0
    for count in there.sum(1).tolist():
        split.append(pairs[start : start + count])
        start += count
    return split


def _pairs(latents: Tensor, cosines: Tensor) -> list[list[float | int | None] | None]:
    return [
        None if latent < 0 else [latent, short(cosine)]
        for latent, cosine in zip(latents.tolist(), cosines.tolist(), strict=True)
    ]
