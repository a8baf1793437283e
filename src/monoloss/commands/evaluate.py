"""``monoloss evaluate``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from monoloss.commands.settings import device_of_process
from monoloss.errors import InputError, needs_extra

if TYPE_CHECKING:
    from torch import device as Device

    from monoloss.data.store import FeatureStore
    from monoloss.evaluation.result import Evaluation
    from monoloss.finetune.evaluation import ImageActivations

VARIANTS = {"topk": "TopK", "batch_topk": "BatchTopK", "jump_relu": "JumpReLU", "vanilla": "Vanilla"}
_GROUPS = {"activations": "activations", "finetuned": "fine-tuned"}


def evaluate_saes(  # noqa: PLR0913 - each is an option
    *,
    store: str,
    saes: list[str] | None = None,
    activations: list[str] | None = None,
    finetuned: list[str] | None = None,
    images: str | None = None,
    split: str | None = None,
    join_on: Literal["id", "name"] | None = None,
    image_batch_size: int = 64,
    workers: int = 0,
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
    """Judge SAEs, activations in files, or fine-tuned models on a feature store: all of them on one pass over its rows.

    Prints a table and writes evaluation.json and latents.safetensors for each: MonoScore, chance, lift, class purity,
    reconstruction, L0, and what a report shows of each latent.

    Args:
        store: folder of the feature store
        saes: SAE folders, run folders (all SAEs in them) or hf-hub:USER/NAME; NAME=PATH gives one another name
        activations: files of activations (rows, latents), row by row those of the store: .npy, .npz, .safetensors, .pt
        finetuned: folders of fine-tuned models, or of runs that made them: their layer's activations on the images that
            belong to the rows of the store; NAME=PATH gives one another name
        images: those images: imagefolder:PATH, dataset:PATH, hf-hub:USER/NAME, cifar10:PATH or cifar100:PATH; by
            default the held-out images of each model's run
        split: of the images
        join_on: how a row finds its image: "id", or "name", the file name alone; by default as in the run, or "id"
        image_batch_size: images that a fine-tuned model gets at a time
        workers: processes that decode images
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
    if key is not None and not activations:
        raise InputError("--key", repr(key), "files of activations to make use of it")
    for option, value in {"images": images, "join_on": join_on}.items():
        if value is not None and not finetuned:
            raise InputError(f"--{option}", repr(value), "fine-tuned models to make use of it")
    if split is not None and images is None:
        raise InputError("--split", repr(split), "images to make use of it")
    import torch
    from rich.console import Console
    from rich.markup import escape

    from monoloss.commands.sources import evaluation_folders, find_sources
    from monoloss.data.store import FeatureStore
    from monoloss.evaluation.run import evaluate
    from monoloss.report.table import chance_line, evaluation_table

    rows = FeatureStore(store)
    where = torch.device(device_of_process(device))
    sources = {source.name: source for source in find_sources(saes or [], activations or [], finetuned or [])}
    folders = evaluation_folders(
        list(sources.values()), out, {"store_fingerprint": rows.fingerprint, "centred": center}
    )
    on_images = _OnImages(images, split, join_on, image_batch_size, workers)
    models: dict[str, Any] = {
        name: on_images.load(source.path, rows, where) if source.kind == "finetuned" else source.load(where, key)
        for name, source in sources.items()
    }
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
        metadata = {**evaluation.metadata, "source": sources[name].path}
        replace(evaluation, name=folders[name].name, metadata=metadata).save(folders[name])
        group = _GROUPS.get(sources[name].kind) or VARIANTS[models[name].config.variant]
        groups.setdefault(group, []).append(evaluation)
    console = Console()
    title = f"{rows.n_rows} rows of {rows.folder.resolve().name}" + ", centred" * center
    console.print(evaluation_table(groups, escape(title)))
    console.print(chance_line(evaluations), soft_wrap=True)
    for name, evaluation in evaluations.items():
        if "top1" in evaluation.summary:
            top1, top5 = evaluation.summary["top1"], evaluation.summary["top5"]
            line = f"{name} is right in {top1:.2%} of the images (top 5: {top5:.2%})."
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    for parent in dict.fromkeys(folder.parent for folder in folders.values()):
        names = ", ".join(folder.name for folder in folders.values() if folder.parent == parent)
        console.print(f"Evaluations in {parent.resolve()}: {names}", soft_wrap=True, markup=False, highlight=False)


class _OnImages(NamedTuple):
    """How fine-tuned models get their images."""

    images: str | None
    split: str | None
    join_on: Literal["id", "name"] | None
    batch_size: int
    workers: int

    def load(self, path: str, store: FeatureStore, device: Device) -> ImageActivations:
        """What the model of a folder makes of the images of a store."""
        with needs_extra("finetune"):
            from monoloss.data.images import open_images
            from monoloss.finetune.evaluation import ImageActivations, images_of_run
            from monoloss.finetune.images.labelled import LabelledImages
            from monoloss.finetune.model.folder import load_finetuned

        model = load_finetuned(path, device)
        if self.images is None:
            images, join_on = images_of_run(model, self.join_on)
        else:
            images = LabelledImages(open_images(self.images, split=self.split))
            join_on = self.join_on or "id"
        return ImageActivations(model, images, store, join_on=join_on, batch_size=self.batch_size, workers=self.workers)
