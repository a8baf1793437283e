"""The command ``monoloss evaluate``."""

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
    """Evaluate SAEs, files of activations or fine-tuned models on a feature store, all in one pass over its rows.

    Prints a table of MonoScore, chance, lift, class purity, reconstruction and L0. Writes for each model
    evaluation.json with these measures and latents.safetensors with those of each latent, for a report.

    Args:
        store: folder of the feature store
        saes: folders of SAEs or runs (all their SAEs), or hf-hub:USER/NAME; NAME=PATH sets the name of a model
        activations: files of activations (rows, latents), rows as in the store: .npy, .npz, .safetensors, .pt
        finetuned: folders of fine-tuned models or their runs, whose layer is evaluated on the images of the store's
            rows; NAME=PATH sets the name of a model
        images: images for the fine-tuned models: imagefolder:PATH, dataset:PATH, hf-hub:USER/NAME, cifar10:PATH or
            cifar100:PATH; by default the held-out images of the model's run
        split: split of the images
        join_on: how images are matched to rows: by "id", or by file "name"; by default as in the run, or "id"
        image_batch_size: images of a batch of a fine-tuned model
        workers: processes that decode images
        out: folder for the evaluations, one folder each; by default "evaluations", in the model's run if it has one
        center: subtract the mean of the store's unit embeddings before the score compares them
        purity: measure class purity; by default if the store has labels
        n_examples: example rows of each latent: so many most active, least active and around the median
        batch_size: rows of a batch; does not change the results
        latents_per_pass: latents whose sums are in memory at a time, if those of all do not fit; each block of latents
            takes one pass over the rows; does not change the results
        device: device of the models; "auto" is cuda if available, else cpu
        key: name of the array, in files of activations with several arrays
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
    from monoloss.sae.config import VARIANT_TITLES

    rows = FeatureStore(store)
    model_device = torch.device(device_of_process(device))
    sources = {source.name: source for source in find_sources(saes or [], activations or [], finetuned or [])}
    folders = evaluation_folders(
        list(sources.values()), out, {"store_fingerprint": rows.fingerprint, "centred": center}
    )
    image_inputs = _ImageInputs(images, split, join_on, image_batch_size, workers)
    models: dict[str, Any] = {
        name: image_inputs.load(source.path, rows, model_device)
        if source.kind == "finetuned"
        else source.load(model_device, key)
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
        group = _GROUPS.get(sources[name].kind) or VARIANT_TITLES[models[name].config.variant]
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


class _ImageInputs(NamedTuple):
    """The options of the images that fine-tuned models are evaluated on."""

    images: str | None
    split: str | None
    join_on: Literal["id", "name"] | None
    batch_size: int
    workers: int

    def load(self, path: str, store: FeatureStore, device: Device) -> ImageActivations:
        """Load a fine-tuned model and pair it with the images of the rows of a store."""
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
