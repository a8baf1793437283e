"""``monoloss benchmark``: the time to score rows through a SAE, ours and three opponents', over the number of rows."""

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

RESULT, PICTURE = "benchmark.json", "benchmark.png"  # a folder with the first is known as an earlier benchmark's
PAIRWISE, PRODUCT, TWO_PASS, OURS = "pairwise", "pairwise as product", "two dense passes", "monoloss"
OVER_PAIRS = (PAIRWISE, PRODUCT)
TOLERANCE = 1e-4  # of scores in float32
MIN_N_EFF = 1.1  # below it rounding decides


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        width: of the rows, d.
        n_latents: of the SAE, m.
        k: active latents a row.
        batch_size: rows at a time.
        max_rows: the most rows that are measured, and extrapolated to.
        pairwise_rows: the most rows for which pairs are measured.
        rounds: timed runs of each opponent at each number of rows.
        seed: of rows and weights.
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
        """Numbers of rows for which pairs are measured."""
        return (self.pairwise_rows // 4, self.pairwise_rows // 2, self.pairwise_rows)

    @property
    def rows(self) -> tuple[int, ...]:
        """All numbers of rows: each twice the one before, the last is max_rows."""
        found = list(self.pairwise)
        while 2 * found[-1] <= self.max_rows:
            found.append(2 * found[-1])
        return tuple(found if found[-1] == self.max_rows else [*found, self.max_rows])


class BenchmarkResult(NamedTuple):
    """What was measured.

    Attributes:
        lines: each way with its median times, and what was extrapolated.
        difference: the largest between two ways' scores.
        folder: where it is written.
    """

    lines: list[SpeedLine]
    difference: float
    folder: Path


def run_benchmark(
    sizes: Sizes, out: str | Path = "benchmark-output", *, progress: bool = True, console: Console | None = None
) -> BenchmarkResult:
    """Score random rows through a TopK SAE in four ways; a table, a picture and a file.

    First all ways are compared on the same codes. Every time goes from rows to scores, the SAE's pass included; the
    sums are allocated before it begins.

    Args:
        sizes: what is measured.
        out: folder for the results; it appears whole, and replaces an earlier benchmark's.
        progress: show a progress bar.
        console: where the table goes; the terminal by default.

    Raises:
        InputError: a folder that holds something else.
        RuntimeError: the ways do not agree: a fault of the library.
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
    console.print(f"Picture and figures: {out.resolve()}", soft_wrap=True, markup=False, highlight=False)
    return BenchmarkResult(lines, difference, out)


class Ways:
    """The four ways from rows to the scores of a SAE's latents; sums are allocated here, once.

    Args:
        sizes: of the SAE and its batches.
    """

    def __init__(self, sizes: Sizes) -> None:
        config = TopKConfig("topk", sizes.n_latents, sizes.k)
        self.batch_size = sizes.batch_size
        self.sae = SparseAutoencoder(sizes.width, config, seed=sizes.seed).eval()
        self.dense = DenseSae(self.sae)
        self.metric = MonoScore(sizes.width, sizes.n_latents)
        self.sums = TwoPassSums(sizes.width, sizes.n_latents)

    def runs(self, rows: Tensor) -> dict[str, Callable[[], Tensor]]:
        """Each way on some rows, by name."""
        return {
            PAIRWISE: lambda: pairwise_score(rows, self._dense_codes(rows)),
            PRODUCT: lambda: pairwise_score_as_product(rows, self._dense_codes(rows)),
            TWO_PASS: lambda: two_pass_score_of_sae(self.dense, rows.split(self.batch_size), self.sums),
            OURS: lambda: self._ours(rows),
        }

    def check(self, rows: Tensor) -> float:
        """Refuse ways that disagree, on the same codes; returns the largest difference of two scores."""
        codes = self.sae.encode(rows)
        dense = codes.to_dense()
        share = float(((self._dense_codes(rows) - dense).abs() > TOLERANCE).sum()) / codes.values.numel()
        if share > 1e-3:  # near-equal entries may be chosen otherwise
            raise RuntimeError(f"{share:.1%} of the entries of dense and sparse codes differ")
        expected = self._scored([rows], [codes])
        judged = n_eff(self.metric.sums) >= MIN_N_EFF
        batches, parts = rows.split(self.batch_size), dense.split(self.batch_size)
        found = [pairwise_score(rows, dense), pairwise_score_as_product(rows, dense)]
        found.append(two_pass_score(batches, lambda i: parts[i], self.sums))
        difference = max(_difference(scores, expected, judged) for scores in found)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"scores differ by {difference:.1e}")
        return difference

    def _dense_codes(self, rows: Tensor) -> Tensor:
        return torch.cat([self.dense(batch).codes for batch in rows.split(self.batch_size)])

    def _ours(self, rows: Tensor) -> Tensor:
        self.metric.reset()
        for batch in rows.split(self.batch_size):
            self.metric.update(batch, self.sae.encode(batch))
        scores: Tensor = self.metric.compute()
        return scores

    def _scored(self, batches: list[Tensor], codes: list[SparseActivations]) -> Tensor:
        self.metric.reset()
        for batch, part in zip(batches, codes, strict=True):
            self.metric.update(batch, part)
        scores: Tensor = self.metric.compute()
        return scores


def _difference(scores: Tensor, expected: Tensor, judged: Tensor) -> float:
    """The largest difference over some latents; infinite where only one of the two is defined."""
    both = scores.double()[judged], expected.double()[judged]
    if not torch.equal(both[0].isnan(), both[1].isnan()):
        return torch.inf
    return float((both[0] - both[1]).nan_to_num().abs().max()) if judged.any() else 0.0


def measure(ways: Ways, rows: Tensor, sizes: Sizes, progress: bool) -> dict[int, dict[str, Timing]]:
    """Times of each way at each number of rows: pairs only while they are few. The first number warms up."""
    runs = {
        n: {name: run for name, run in ways.runs(rows[:n]).items() if n in sizes.pairwise or name not in OVER_PAIRS}
        for n in sizes.rows
    }
    n_runs = sum(len(each) for each in runs.values()) * sizes.rounds + len(runs[sizes.rows[0]])
    with terminal.progress("measuring", n_runs, "runs", shown=progress) as advance:
        return {
            n: time_in_turn(each, sizes.rounds, warm=n == sizes.rows[0], advance=partial(_say, advance, n))
            for n, each in runs.items()
        }


def _say(advance: Callable[..., None], n: int, name: str) -> None:
    advance(1, f"runs; last: {n} rows, {name}")


def _lines(timings: dict[int, dict[str, Timing]], sizes: Sizes) -> tuple[list[SpeedLine], dict[str, Any]]:
    """Medians, and for pairs the quadratic through them at the larger numbers of rows."""
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
    found = {
        line.name: {
            "measured": {str(n): timings[n][line.name].as_dict() for n in line.measured},
            "extrapolated": {str(n): {"seconds": seconds} for n, seconds in line.extrapolated.items()},
        }
        for line in lines
    }
    return {"sizes": asdict(sizes), "largest_difference": difference, "ways": found, "quadratic_fits": fits}


def _table(lines: list[SpeedLine], sizes: Sizes) -> Table:
    """A row for each number of rows: times, and how many times monoloss's; a ~ where a time was extrapolated."""
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
