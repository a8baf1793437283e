"""``monoloss demo``."""

from __future__ import annotations


def demo(seed: int = 0, out: str = "demo-output", progress: bool = True) -> None:
    """MonoLoss at work on real images: trains six small SAEs on scikit-learn's digits and judges them.

    TopK and BatchTopK, each without MonoLoss, with the paper's and with memory and centring, on one pass over the
    training digits; then a table of held-out figures in the terminal, and in a folder pictures, evaluation files and a
    report: pages to look at, latent by latent.

    Args:
        seed: of the split, the initial weights and the order of the rows; from 0 to 4294967295
        out: folder for the results; an earlier demo's there is replaced
        progress: show progress bars
    """
    from monoloss.demo import run_demo

    run_demo(seed=seed, out=out, progress=progress)
