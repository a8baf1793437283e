"""Data of the explorer as script files: a column for each measure of the latents, all else in blocks of latents."""

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
Pairs = list[list[list[float | int | None]]]  # for each latent a list of [number, value]


def columns_of(evaluation: Evaluation) -> list[str]:
    """Return the names of the measures of latents in an evaluation, in the order of the explorer's table."""
    return [name for name in COLUMNS if name in evaluation.latents]


def shown_rows(evaluations: Sequence[Evaluation]) -> Int[Tensor, " items"]:
    """Return the store rows that are an example of some latent of some evaluation, ascending, each once."""
    example_rows = [
        examples.rows.flatten()
        for evaluation in evaluations
        for examples in (evaluation.examples, evaluation.middle_examples, evaluation.bottom_examples)
        if examples is not None
    ]
    rows: Tensor = torch.cat(example_rows).unique()
    return rows[rows >= 0]  # -1 fills the places without an example


def matched_runs(runs: Sequence[ReportRun], run: ReportRun) -> list[ReportRun]:
    """Return at most eight runs whose latents the latents of `run` are matched with.

    They have decoders of the same width and were evaluated on the same rows; runs of the same group come first, in each
    group its baseline, else in the order of `runs`.
    """
    others = [other for other in runs if other is not run and _comparable(other, run)]
    others.sort(key=lambda other: (other.group != run.group, not other.is_baseline))
    return others[:N_MATCHES]


def write_latents(
    folder: Path,
    run: ReportRun,
    runs: Sequence[ReportRun],
    items: Int[Tensor, " items"],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Write ``columns.js`` and ``latents-0000.js``, ... of a run.

    Costs O(m^2 d) to compare its decoder with itself and with each matched run's decoder, O(m) for the rest.

    Args:
        folder: folder for the files.
        run: the run whose latents are written.
        runs: all runs of the report.
        items: the rows of its store that the report shows, ascending; an example is written as a position in them.
        advance: called with the number of latents that have just been written.
    """
    evaluation = run.evaluation
    columns = {name: _column(name, evaluation.latents[name]) for name in columns_of(evaluation)}
    write_script(folder / "columns.js", "columns", columns, key=run.key)
    similar = None if evaluation.decoder_directions is None else similar_latents(evaluation, N_SIMILAR)
    matches = {other.key: closest_matches(evaluation, other.evaluation) for other in matched_runs(runs, run)}
    for number, first in enumerate(range(0, len(evaluation.examples.rows), BLOCK)):
        block = _block(evaluation, slice(first, first + BLOCK), items, similar, matches)
        write_script(folder / f"latents-{number:04d}.js", "blocks", block, key=f"{run.key}/{number}")
        advance(len(block))


def _comparable(run: ReportRun, other: ReportRun) -> bool:
    """Whether two runs have decoders of the same width and were evaluated on the same store."""
    left, right = run.evaluation.decoder_directions, other.evaluation.decoder_directions
    if left is None or right is None or run.store_key != other.store_key:
        return False
    return left.shape[1] == right.shape[1]


def _column(name: str, values: Tensor) -> list[Any]:
    """Return a measure of all latents as JSON values, None where it is undefined."""
    if name == "dominant_class":
        return [value if value >= 0 else None for value in values.tolist()]
    return short_all(values.double().tolist())


def _block(
    evaluation: Evaluation,
    block: slice,
    items: Tensor,
    similar: SimilarLatents | None,
    matches: Mapping[str, SimilarLatents],
) -> list[dict[str, object]]:
    """Return the entry of each latent of a block: its examples, histogram, classes, similar latents and matches.

    A value is None where the evaluation has no such data; ``matches`` holds the runs that have a match.
    """
    columns: dict[str, Sequence[object]] = {
        "top": _examples(evaluation.examples, block, items),
        "middle": _examples(evaluation.middle_examples, block, items),
        "bottom": _examples(evaluation.bottom_examples, block, items),
        "histogram": _histogram(evaluation.histogram, block),
        "classes": _classes(evaluation.top_classes, block),
        "similar": _similar(similar, block),
    }
    match_of_run = {key: _matches(match.latents[block], match.cosines[block]) for key, match in matches.items()}
    n_latents = len(evaluation.examples.rows[block])
    columns = {name: values or [None] * n_latents for name, values in columns.items()}
    return [
        {name: values[latent] for name, values in columns.items()}
        | {"matches": {key: pairs[latent] for key, pairs in match_of_run.items() if pairs[latent] is not None}}
        for latent in range(n_latents)
    ]


def _examples(examples: Examples | None, block: slice, items: Tensor) -> Pairs:
    """Return the example rows of a block of latents, as places in `items` with activations."""
    if examples is None:
        return []
    rows = examples.rows[block]
    positions = torch.searchsorted(items, rows.clamp(min=0))
    return _pairs_of_latents(rows >= 0, positions, examples.values[block])


def _histogram(counts: Tensor | None, block: slice) -> Pairs:
    """Return the non-empty bins of a block of latents, with their counts."""
    if counts is None:
        return []
    bins = torch.arange(counts.shape[1]).expand(len(counts[block]), -1)
    return _pairs_of_latents(counts[block] > 0, bins, counts[block])


def _classes(top: TopClasses | None, block: slice) -> Pairs:
    """Return the most frequent classes of a block of latents, with their counts."""
    if top is None:
        return []
    return _pairs_of_latents(top.classes[block] >= 0, top.classes[block], top.counts[block])


def _similar(similar: SimilarLatents | None, block: slice) -> Pairs:
    """Return the most similar latents of a block of latents, with their cosines."""
    if similar is None:
        return []
    return _pairs_of_latents(similar.latents[block] >= 0, similar.latents[block], similar.cosines[block])


def _pairs_of_latents(is_used: Tensor, numbers: Tensor, values: Tensor) -> Pairs:
    """Return for each latent, a row of the three matrices, the pairs [number, value] where `is_used` is true."""
    used = values[is_used]
    shortened = short_all(used.double().tolist()) if values.is_floating_point() else used.tolist()
    pairs = [[number, value] for number, value in zip(numbers[is_used].tolist(), shortened, strict=True)]
    split, start = [], 0
    for count in is_used.sum(1).tolist():
        split.append(pairs[start : start + count])
        start += count
    return split


def _matches(latents: Tensor, cosines: Tensor) -> list[list[float | int | None] | None]:
    """Return [latent, cosine] of each latent's closest match in another run; None where it has none."""
    return [
        None if latent < 0 else [latent, short(cosine)]
        for latent, cosine in zip(latents.tolist(), cosines.tolist(), strict=True)
    ]
