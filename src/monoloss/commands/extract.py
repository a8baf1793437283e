"""``monoloss extract``."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

from monoloss.commands.settings import device_of_process


def extract_features(  # noqa: PLR0913 - each is an option
    *,
    encoder: str,
    images: str,
    out: str,
    split: str | None = None,
    output: str | None = None,
    checkpoint: str | None = None,
    pretrained: bool = True,
    image_size: int | None = None,
    crop: Literal["center", "squash", "border"] | None = None,
    encoder_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    patches: bool = False,
    dtype: Literal["float32", "float16", "bfloat16", "uint8"] = "float32",
    scale: float | None = None,
    thumbnails: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    rows_per_shard: int | None = None,
    device: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    streaming: bool = False,
    subset: str | None = None,
    labels_path: str | None = None,
    classes_path: str | None = None,
    progress: bool = True,
) -> None:
    """Write the embeddings of images as a feature store: any model of timm, any folder or dataset of images.

    What it takes is estimated first. Files that cannot be decoded are skipped and listed. Killed at any moment, the
    same command goes on at the first missing shard. Started by torchrun, each process writes its own shards.

    Args:
        encoder: clip-vit-l14, siglip2-so400m, vit-l16, dinov2-l, resnet-50, clip-vit-b32, a name in timm,
            hf-hub:USER/NAME, or a local folder with config.json and model.safetensors
        images: imagefolder:PATH, dataset:PATH, hf-hub:USER/NAME, openimages:PATH, cifar10:PATH or cifar100:PATH
        out: folder for the store; it does not exist yet, is empty, or was begun by the same command
        split: of a folder PATH/split/class, of a dataset, or of OpenImages
        output: embedding, pooled, class_token, layer:NAME or layer:NAME:class; by default what suits the model
        checkpoint: local file of weights for the model, instead of its own
        pretrained: false for random weights, recorded as such
        image_size: height and width of the model's input; by default its own
        crop: how an image becomes a square; by default the model's own way
        encoder_dtype: type of the model's products; half types run under autocast
        patches: keep a row for each patch instead of one for each image
        dtype: stored type
        scale: for uint8, where value = scale * byte; for outputs that are never below 0
        thumbnails: side of a square picture of each image that is kept in the store; by default none
        batch_size: images that the model gets at a time
        workers: processes that decode images; by default one for each processor, up to 8, fewer for a model on the CPU
        rows_per_shard: images of a shard, the most that a kill costs; by default 4096, less for wide patches and
            large thumbnails
        device: cpu, cuda, ...; "auto" takes a GPU where there is one
        image_column: of a dataset; by default its only column of images
        label_column: of a dataset; "" leaves labels out, also those of a folder
        id_column: of a dataset; by default the row numbers are the ids
        streaming: read a dataset from front to back, without a copy on the disk
        subset: configuration of a dataset on the Hub
        labels_path: CSV of OpenImages' labels; by default the official one in PATH
        classes_path: CSV of OpenImages' class names; by default the official one in PATH
        progress: show the estimate, a progress bar and the figures of the run
    """
    from monoloss.data.encoders import load_encoder
    from monoloss.data.extraction.run import Extraction
    from monoloss.data.images import open_images

    named = {
        "split": split,
        "image_column": image_column,
        "label_column": label_column,
        "id_column": id_column,
        "streaming": streaming,
        "subset": subset,
        "labels_path": labels_path,
        "classes_path": classes_path,
    }
    options: dict[str, Any] = {name: value for name, value in named.items() if value not in (None, False)}
    source = open_images(images, **options)
    model = load_encoder(
        encoder,
        output=output,
        checkpoint=checkpoint,
        pretrained=pretrained,
        image_size=image_size,
        crop=crop,
        dtype=encoder_dtype,
        patches=patches,
        device=device_of_process(device),
    )
    extraction = Extraction(
        source,
        model,
        out,
        dtype=dtype,
        scale=scale,
        thumbnails=thumbnails,
        batch_size=batch_size,
        workers=workers,
        rows_per_shard=rows_per_shard,
        origin=", ".join([images, *(f"{name} {value}" for name, value in options.items())]),
        progress=progress,
    )
    try:
        store = extraction.run()
    except BaseException as stop:
        if not isinstance(stop, Exception) and extraction.timing.n_images:  # Ctrl-C or SIGTERM
            sys.stderr.write(f"monoloss: the same command goes on with {out}\n")
        raise
    if _rank() == 0:
        from rich.console import Console

        from monoloss.commands.info import store_table

        Console().print(store_table(store))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
