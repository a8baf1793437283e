"""``monoloss report``."""

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
    """Evaluations as pages to look at: tables and charts of each run, and an explorer of their latents.

    The folder opens from the disk, without a network: OUT/index.html. Images come from the store's thumbnails, else
    from the image files that it was made of.

    Args:
        runs: run folders, folders with evaluations, or evaluations; a run trained without MonoLoss is what the others
            of the same kind of SAE, or of the same backbone fine-tuned on the same images, are compared with
        out: folder for the pages; an earlier report there is replaced
        store: feature stores that were evaluated, where they have moved
        images: folder that the stores' paths are relative to, where images are to come from there
        baseline: name of the evaluation that others are compared with
        title: of the pages
        image_size: side of the images in pixels, from 8 to 256
        progress: show a progress bar
    """
    from rich.console import Console

    from monoloss.report.discovery import find_evaluations, find_stores, training_curves
    from monoloss.report.page import write_report

    found = find_evaluations(runs)
    stores = find_stores(found, store or ())
    page = write_report(
        [one.evaluation for one in found],
        out,
        stores=stores,
        curves=[curve for one in found for curve in training_curves(one)],
        images=images,
        baseline=baseline,
        title=title,
        image_size=image_size,
        progress=progress,
    )
    console = Console()
    there = {one.fingerprint for one in stores}
    gone = {
        str(one.evaluation.metadata.get("store") or f"of {one.evaluation.name}"): None
        for one in found
        if one.evaluation.metadata.get("store_fingerprint") not in there
    }
    for name in gone:
        text = f"The store {name} is not where it was: its rows are shown without images; --store FOLDER names it."
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(f"Open {page.resolve()}", soft_wrap=True, markup=False, highlight=False)
