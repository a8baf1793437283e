"""The command ``monoloss demo``."""

from __future__ import annotations


def demo(seed: int = 0, out: str = "demo-output", progress: bool = True) -> None:
    """Show MonoLoss on real images: train six small SAEs on scikit-learn's digits and evaluate them.

    Trains TopK and BatchTopK SAEs together, each without MonoLoss, with the paper's MonoLoss, and with memory and
    centring. Prints a table of held-out measures; writes charts, evaluation files and a report (pages that show each
    latent) to a folder.

    Args:
        seed: seed of the split, the initial weights and the order of the rows; from 0 to 4294967295
        out: folder for the results; those of an earlier demo in it are replaced
        progress: show progress bars
    """
    from monoloss.demo import run_demo

    run_demo(seed=seed, out=out, progress=progress)
