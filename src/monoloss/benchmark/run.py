"""``monoloss benchmark``: time to score rows through a SAE, for monoloss and three opponents, by number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from monoloss import terminal
from monoloss.benchmark.dense import DenseSae, TwoPassSums, two_pass_score, two_pass_score_of_sae
from monoloss.benchmark.machine import write_measured
from monoloss.benchmark.measure import Timing, quadratic_fit, random_rows, time_in_turn
from monoloss.benchmark.pairwise import pairwise_score, pairwise_score_as_product
from monoloss.checks import check_number
from monoloss.errors import InputError
from monoloss.files.atomic import atomic_folder
from monoloss.functional.score import n_eff
from monoloss.metrics import MonoScore
from monoloss.report.pictures.drawing import save_figure
from monoloss.report.pictures.speed import SpeedLine, duration, speed_figure
from monoloss.sae.config import TopKConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import SparseActivations

RESULT, PICTURE = "benchmark.json", "benchmark.png"  # a folder with RESULT is an earlier benchmark's and replaceable
PAIRWISE, PRODUCT, TWO_PASS, OURS = "pairwise", "pairwise as product", "two dense passes", "monoloss"
OVER_PAIRS = (PAIRWISE, PRODUCT)
TOLERANCE = 1e-4  # largest allowed difference of two float32 scores
MIN_N_EFF = 1.1  # scores of fewer effective rows are mostly rounding error and not compared


@dataclass(frozen=True)
class Sizes:
    """Sizes of a benchmark.

    Attributes:
        width: width of the rows, d.
        n_latents: latents of the SAE, m.
        k: active latents of each row.
        batch_size: rows of a batch.
        max_rows: largest number of rows that is measured, or extrapolated to for the pairwise scores.
        pairwise_rows: largest number of rows for which the pairwise scores are measured.
        rounds: timed runs of each opponent at each number of rows.
        seed: seed of rows and weights.
    """

    width: int = 768
    n_latents: int = 8192
    k: int = 64
    batch_size: int = 2048
    max_rows: int = 16384
    pairwise_rows: int = 2048
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"width": 2, "n_latents": 2, "k": 1, "batch_size": 1, "pairwise_rows": 16, "rounds": 1, "seed": 0}
        for name, value in least.items():
            check_number(name, getattr(self, name), at_least=value, integer=True)
        check_number("max_rows", self.max_rows, at_least=self.pairwise_rows, integer=True)
        check_number("seed", self.seed, below=2**32)
        if self.k > self.n_latents:
            raise InputError("k", self.k, f"at most n_latents, {self.n_latents}")

    @property
    def pairwise(self) -> tuple[int, ...]:
        """Numbers of rows for which the pairwise scores are measured."""
        return (self.pairwise_rows // 4, self.pairwise_rows // 2, self.pairwise_rows)

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of ``pairwise``, then each twice the last while below ``max_rows``, and ``max_rows`` itself."""
        numbers = list(self.pairwise)
        while 2 * numbers[-1] <= self.max_rows:
            numbers.append(2 * numbers[-1])
        return tuple(numbers if numbers[-1] == self.max_rows else [*numbers, self.max_rows])


class BenchmarkResult(NamedTuple):
    """Result of a benchmark."""

    lines: list[SpeedLine]
    """Median times of each way, and extrapolated times."""
    difference: float
    """Largest difference between the scores of two ways."""
    folder: Path
    """Folder of the files."""


def run_benchmark(
    sizes: Sizes, out: str | Path = "benchmark-output", *, progress: bool = True, console: Console | None = None
) -> BenchmarkResult:
    """Time four ways to score random rows through a TopK SAE; print a table and write a picture and a JSON file.

    First all ways are compared on the same codes. A time is that from rows to scores, including the SAE's pass; the
    sums are allocated before.

    Args:
        sizes: sizes of model and data, and number of rounds.
        out: folder of the results, written as a whole; an earlier benchmark in this place is replaced.
        progress: show a progress bar.
        console: console that prints the table; by default the terminal.

    Raises:
        InputError: `out` holds other files.
        RuntimeError: the scores of two ways differ, which is a fault of the library.
    """
    out, console = Path(out), console or Console()
    if out.exists() and not (out / RESULT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("out", f"{out}, which holds something else", "a new folder, or an earlier benchmark's")
    with atomic_folder(out, replace=True) as folder, torch.no_grad():
        rows = random_rows(sizes.max_rows, sizes.width, sizes.seed)
        ways = Ways(sizes)
        difference = ways.check(rows[: min(sizes.pairwise)])
        timings = measure(ways, rows, sizes, progress)
        lines, fits = _lines(timings, sizes)
        write_measured(folder / RESULT, _result(sizes, timings, lines, fits, difference))
        save_figure(_figure(lines, sizes), folder / PICTURE)
    console.print(_table(lines, sizes))
    console.print(f"The largest difference between two ways' scores is {difference:.0e}.", soft_wrap=True)
    console.print(f"Picture and numbers: {out.resolve()}", soft_wrap=True, markup=False, highlight=False)
    return BenchmarkResult(lines, difference, out)


class Ways:
    """Four ways from rows to the scores of a SAE's latents, with sums that are allocated once.

    Args:
        sizes: sizes of the SAE and its batches.
    """

    def __init__(self, sizes: Sizes) -> None:
        config = TopKConfig("topk", sizes.n_latents, sizes.k)
        self.batch_size = sizes.batch_size
        self.sae = SparseAutoencoder(sizes.width, config, seed=sizes.seed).eval()
        self.dense = DenseSae(self.sae)
        self.metric = MonoScore(sizes.width, sizes.n_latents)
        self.sums = TwoPassSums(sizes.width, sizes.n_latents)

    def runs(self, rows: Tensor) -> dict[str, Callable[[], Tensor]]:
        """Return a function for each way, by name, that scores `rows`."""
        return {
            PAIRWISE: lambda: pairwise_score(rows, self._dense_codes(rows)),
            PRODUCT: lambda: pairwise_score_as_product(rows, self._dense_codes(rows)),
            TWO_PASS: lambda: two_pass_score_of_sae(self.dense, rows.split(self.batch_size), self.sums),
            OURS: lambda: self._ours(rows),
        }

    def check(self, rows: Tensor) -> float:
        """Return the largest difference between two ways' scores of the same codes.

        Raises:
            RuntimeError: it is above ``TOLERANCE``, or more than 0.1 % of the codes differ.
        """
        codes = self.sae.encode(rows)
        dense = codes.to_dense()
        share = float(((self._dense_codes(rows) - dense).abs() > TOLERANCE).sum()) / codes.values.numel()
        if share > 1e-3:  # of nearly equal activations another one may be selected
            raise RuntimeError(f"{share:.1%} of the entries of dense and sparse codes differ")
        expected = self._scored([rows], [codes])
        is_compared = n_eff(self.metric.sums) >= MIN_N_EFF
        batches, parts = rows.split(self.batch_size), dense.split(self.batch_size)
        others = [pairwise_score(rows, dense), pairwise_score_as_product(rows, dense)]
        others.append(two_pass_score(batches, lambda i: parts[i], self.sums))
        difference = max(_difference(scores, expected, is_compared) for scores in others)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"scores differ by {difference:.1e}")
        return difference

    def _dense_codes(self, rows: Tensor) -> Tensor:
        return torch.cat([self.dense(batch).codes for batch in rows.split(self.batch_size)])

    def _ours(self, rows: Tensor) -> Tensor:
        """Score rows by the library: encode and add up batch by batch."""
        self.metric.reset()
        for batch in rows.split(self.batch_size):
            self.metric.update(batch, self.sae.encode(batch))
        scores: Tensor = self.metric.compute()
        return scores

    def _scored(self, batches: list[Tensor], codes: list[SparseActivations]) -> Tensor:
        """Score codes by the library."""
        self.metric.reset()
        for batch, part in zip(batches, codes, strict=True):
            self.metric.update(batch, part)
        scores: Tensor = self.metric.compute()
        return scores


def _difference(scores: Tensor, expected: Tensor, is_compared: Tensor) -> float:
    """Return the largest difference of the compared latents' scores; infinite if only one of two is defined."""
    scores, expected = scores.double()[is_compared], expected.double()[is_compared]
    if not torch.equal(scores.isnan(), expected.isnan()):
        return torch.inf
    return float((scores - expected).nan_to_num().abs().max()) if is_compared.any() else 0.0


def measure(ways: Ways, rows: Tensor, sizes: Sizes, progress: bool) -> dict[int, dict[str, Timing]]:
    """Time the ways at each number of rows, the pairwise ones only up to ``pairwise_rows``.

    A round that is not timed comes first, at the smallest number of rows only.
    """
    runs = {
        n: {name: run for name, run in ways.runs(rows[:n]).items() if n in sizes.pairwise or name not in OVER_PAIRS}
        for n in sizes.rows
    }
    n_runs = sum(len(each) for each in runs.values()) * sizes.rounds + len(runs[sizes.rows[0]])
    with terminal.progress("measuring", n_runs, "runs", shown=progress) as advance:
        return {
            n: time_in_turn(each, sizes.rounds, warm=n == sizes.rows[0], advance=partial(_advance_by_run, advance, n))
            for n, each in runs.items()
        }


def _advance_by_run(advance: Callable[..., None], n: int, name: str) -> None:
    """Advance the progress bar by one run, and show the name of the way that ran and its number of rows."""
    advance(1, f"runs; last: {n} rows, {name}")


def _lines(timings: dict[int, dict[str, Timing]], sizes: Sizes) -> tuple[list[SpeedLine], dict[str, Any]]:
    """Return each way's medians, extrapolated for the pairwise ways by quadratic fits, and the fits by name."""
    lines, fits = [], {}
    for name in (*OVER_PAIRS, TWO_PASS, OURS):
        measured = {n: each[name].median for n, each in timings.items() if name in each}
        extrapolated = {}
        if name in OVER_PAIRS:
            curve = quadratic_fit(list(measured), list(measured.values()))
            extrapolated = {n: curve(n) for n in sizes.rows if n not in measured}
            fits[name] = curve._asdict()
        lines.append(SpeedLine(name, measured, extrapolated))
    return lines, fits


def _result(
    sizes: Sizes,
    timings: dict[int, dict[str, Timing]],
    lines: list[SpeedLine],
    fits: dict[str, Any],
    difference: float,
) -> dict[str, Any]:
    """Return the content of the result file: sizes, machine, measured and extrapolated times, fits."""
    ways = {
        line.name: {
            "measured": {str(n): timings[n][line.name].as_dict() for n in line.measured},
            "extrapolated": {str(n): {"seconds": seconds} for n, seconds in line.extrapolated.items()},
        }
        for line in lines
    }
    return {"sizes": asdict(sizes), "largest_difference": difference, "ways": ways, "quadratic_fits": fits}


def _table(lines: list[SpeedLine], sizes: Sizes) -> Table:
    """Build a table of the times by number of rows, also as multiples of monoloss's; ~ marks extrapolated times."""
    title = f"{sizes.n_latents} latents, width {sizes.width}, k = {sizes.k}, {torch.get_num_threads()} threads"
    caption = "x: times the time of monoloss"
    if any(line.extrapolated for line in lines):
        caption += "; ~ not measured: a quadratic through the times of fewer rows"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    for heading in ("rows", *(line.name for line in lines)):
        table.add_column(heading, justify="right", no_wrap=True)
    ours = lines[-1].measured
    for n in sizes.rows:
        cells = []
        for line in lines[:-1]:
            seconds = line.extrapolated.get(n) or line.measured[n]
            times = seconds / ours[n]
            cells.append(
                f"{'~' * (n in line.extrapolated)}{duration(seconds)}  x {times:{'.0f' if times > 20 else '.1f'}}"
            )
        table.add_row(str(n), *cells, duration(ours[n]))
    return table


def _figure(lines: list[SpeedLine], sizes: Sizes) -> Any:
    """Draw the times over the number of rows, with the ratio at the most rows as the title."""
    last = sizes.rows[-1]
    two_pass, ours = (line.measured[last] for line in lines[-2:])
    title = f"{last:,} rows scored in {duration(ours)}, {two_pass / ours:.1f} times as fast as in two dense passes"
    note = (
        f"Time from rows to the scores of a TopK SAE: {sizes.n_latents} latents, width {sizes.width}, k = {sizes.k}, "
        f"batches of {sizes.batch_size}, {torch.get_num_threads()} threads."
    )
    if any(line.extrapolated for line in lines):
        note += " Dashed and hollow: not measured, a quadratic through the times of fewer rows."
    return speed_figure(lines, title, note)
