"""``monoloss benchmark``."""

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
    """How fast rows are scored through a SAE: over all pairs, in two dense passes, and as monoloss does it.

    All ways are compared on the same codes first. Then a table of times and ratios in the terminal, and in a folder
    benchmark.json and a picture of the time over the number of rows. Two or three minutes on two cores.

    Args:
        width: of the random rows
        n_latents: of the random TopK SAE
        k: active latents a row
        batch_size: rows at a time
        max_rows: the most rows that are scored; from pairwise_rows on their number doubles up to it
        pairwise_rows: the most rows whose pairs are measured, a half and a quarter of them too; beyond, the time over
            pairs is extrapolated by a quadratic and marked so
        rounds: timed runs of each way at each number of rows, in turn; the median counts
        seed: of the rows and the weights
        out: folder for the results; an earlier benchmark's there is replaced
        progress: show a progress bar
    """
    from monoloss.benchmark.run import Sizes, run_benchmark

    sizes = Sizes(width, n_latents, k, batch_size, max_rows, pairwise_rows, rounds, seed)
    run_benchmark(sizes, out, progress=progress)
