"""The command ``monoloss report``."""

from __future__ import annotations


def report(
    runs: list[str],
    *,
    out: str,
    store: list[str] | None = None,
    images: str | None = None,
    baseline: str | None = None,
    title: str | None = None,
    image_size: int = 64,
    progress: bool = True,
) -> None:
    """Write evaluations as HTML pages: tables and charts of each run, and an explorer of their latents.

    OUT/index.html opens in a browser without a network. Images are the thumbnails in the feature store, else the image
    files that it was made from.

    Args:
        runs: run folders, folders with evaluations, or evaluations; models are compared with the one trained without
            MonoLoss, of the same kind of SAE or of the same backbone on the same images
        out: folder for the pages; an earlier report in it is replaced
        store: feature stores of the evaluations, if they have moved
        images: folder of the image files, to which the paths in the stores are relative, if it has moved
        baseline: name of the evaluation to compare the others with
        title: title of the pages
        image_size: side of the images in pixels, from 8 to 256
        progress: show a progress bar
    """
    from rich.console import Console

    from monoloss.report.discovery import find_evaluations, find_stores, training_curves
    from monoloss.report.page import write_report

    located = find_evaluations(runs)
    stores = find_stores(located, store or ())
    page = write_report(
        [item.evaluation for item in located],
        out,
        stores=stores,
        curves=[curve for item in located for curve in training_curves(item)],
        images=images,
        baseline=baseline,
        title=title,
        image_size=image_size,
        progress=progress,
    )
    console = Console()
    fingerprints = {opened.fingerprint for opened in stores}
    missing_stores = {
        str(item.evaluation.metadata.get("store") or f"of {item.evaluation.name}"): None
        for item in located
        if item.evaluation.metadata.get("store_fingerprint") not in fingerprints
    }
    for name in missing_stores:
        text = (
            f"The store {name} is not at its recorded path: its rows have no images; --store FOLDER gives another path."
        )
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(f"Open {page.resolve()}", soft_wrap=True, markup=False, highlight=False)
