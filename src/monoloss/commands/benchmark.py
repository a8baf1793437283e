"""The command ``monoloss benchmark``."""

from __future__ import annotations


def benchmark(  # noqa: PLR0913 - each is an option
    *,
    width: int = 768,
    n_latents: int = 8192,
    k: int = 64,
    batch_size: int = 2048,
    max_rows: int = 16384,
    pairwise_rows: int = 2048,
    rounds: int = 3,
    seed: int = 0,
    out: str = "benchmark-output",
    progress: bool = True,
) -> None:
    """Time how fast rows are scored through a SAE: over all pairs, in two dense passes, and by monoloss.

    First checks that all methods give the same scores for the same codes. Prints a table of times and ratios, and
    writes benchmark.json and a chart of time over rows to a folder. Takes two or three minutes on two cores.

    Args:
        width: width of the random rows
        n_latents: latents of the random TopK SAE
        k: active latents of each row
        batch_size: rows of a batch
        max_rows: largest number of rows to score; the numbers double from pairwise_rows up to it
        pairwise_rows: largest number of rows to score over all pairs; a half and a quarter are measured too, larger
            numbers are extrapolated by a quadratic and marked as such
        rounds: timed runs of each method at each number of rows, in turn; the median is reported
        seed: seed of the rows and the weights
        out: folder for the results; those of an earlier benchmark in it are replaced
        progress: show a progress bar
    """
    from monoloss.benchmark.run import Sizes, run_benchmark

    sizes = Sizes(width, n_latents, k, batch_size, max_rows, pairwise_rows, rounds, seed)
    run_benchmark(sizes, out, progress=progress)
