"""``monoloss evaluate``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from monoloss.errors import InputError

if TYPE_CHECKING:
    from torch import device as Device

    from monoloss.evaluation.result import Evaluation

VARIANTS = {"topk": "TopK", "batch_topk": "BatchTopK", "jump_relu": "JumpReLU", "vanilla": "Vanilla"}


def evaluate_saes(  # noqa: PLR0913 - each is an option
    store: str,
    saes: list[str] | None = None,
    activations: list[str] | None = None,
    *,
    out: str | None = None,
    center: bool = False,
    purity: bool | None = None,
    n_examples: int = 15,
    batch_size: int = 2048,
    latents_per_pass: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    key: str | None = None,
    progress: bool = True,
) -> None:
    """Judge SAEs, or activations in files, on a feature store: all of them on one pass over its rows.

    Prints a table and writes evaluation.json and latents.safetensors for each: MonoScore, chance, lift, class purity,
    reconstruction, L0, and what a report shows of each latent.

    Args:
        store: folder of the feature store
        saes: SAE folders, run folders (all SAEs in them) or hf-hub:USER/NAME; NAME=PATH gives one another name
        activations: files of activations (rows, latents), row by row those of the store: .npy, .npz, .safetensors, .pt
        out: folder for the evaluations, one folder each; by default that of the run, else "evaluations"
        center: take the store's mean vector off the unit embeddings that the score compares
        purity: judge class purity; by default where the store has labels
        n_examples: rows kept for each latent, of the most active, the least active and those around the median
        batch_size: rows at a time; the results do not depend on it
        latents_per_pass: where the sums of all latents do not fit the memory: so many at a time, with one pass over the
            rows for each such block; the results do not depend on it
        device: where the models run; "auto" is CUDA where there is one
        key: name of the array in files of activations that hold several
        progress: show a progress bar
    """
    from rich.console import Console
    from rich.markup import escape

    from monoloss.data.store import FeatureStore
    from monoloss.evaluation.run import evaluate
    from monoloss.evaluation.sources import evaluation_folders, find_sources
    from monoloss.evaluation.table import chance_line, evaluation_table

    if key is not None and not activations:
        raise InputError("--key", repr(key), "files of activations to make use of it")
    rows = FeatureStore(store)
    where = _device(device)
    sources = {source.name: source for source in find_sources(saes or [], activations or [])}
    folders = evaluation_folders(
        list(sources.values()), out, {"store_fingerprint": rows.fingerprint, "centred": center}
    )
    models = {name: source.load(where, key) for name, source in sources.items()}
    evaluations = evaluate(
        rows,
        models,
        purity=purity,
        center=rows.mean if center else None,
        n_examples=n_examples,
        batch_size=batch_size,
        latents_per_pass=latents_per_pass,
        progress=progress,
    )
    groups: dict[str, list[Evaluation]] = {}
    for name, evaluation in evaluations.items():
        facts = {**evaluation.facts, "source": sources[name].path}
        replace(evaluation, name=folders[name].name, facts=facts).save(folders[name])
        config = getattr(models[name], "config", None)
        group = "activations" if config is None else VARIANTS[config.variant]
        groups.setdefault(group, []).append(evaluation)
    console = Console()
    title = f"{rows.n_rows} rows of {rows.folder.resolve().name}" + ", centred" * center
    console.print(evaluation_table(groups, escape(title)))
    console.print(chance_line(evaluations), soft_wrap=True)
    for parent in dict.fromkeys(folder.parent for folder in folders.values()):
        names = ", ".join(folder.name for folder in folders.values() if folder.parent == parent)
        console.print(f"Evaluations in {parent.resolve()}: {names}", soft_wrap=True, markup=False, highlight=False)


def _device(name: str) -> Device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "'cuda' on a machine without it", "'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
