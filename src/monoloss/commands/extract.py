"""The command ``monoloss extract``."""

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
    """Write the embeddings of images as a feature store, with any timm model and any folder or dataset of images.

    Time and disk space are estimated first. Files that cannot be decoded are skipped and listed. After an interruption
    the same command resumes at the first missing shard. Started by torchrun, the processes share the shards.

    Args:
        encoder: clip-vit-l14, siglip2-so400m, vit-l16, dinov2-l, resnet-50, clip-vit-b32, a name in timm,
            hf-hub:USER/NAME, or a local folder with config.json and model.safetensors
        images: imagefolder:PATH, dataset:PATH, hf-hub:USER/NAME, openimages:PATH, cifar10:PATH or cifar100:PATH
        out: folder for the store: new, empty, or begun by the same command
        split: split of a folder PATH/split/class, of a dataset, or of OpenImages
        output: embedding, pooled, class_token, layer:NAME or layer:NAME:class; by default what suits the model
        checkpoint: local weights file for the model, instead of its pretrained weights
        pretrained: false for random weights, which the store records
        image_size: height and width of the model's input in pixels; by default that of the model's configuration
        crop: how an image becomes a square; by default as in the model's configuration
        encoder_dtype: floating-point type in which the model computes; half types run under autocast
        patches: write a row for each patch instead of one for each image
        dtype: type of the stored numbers
        scale: step of uint8, value = scale * byte; for outputs that are never below 0
        thumbnails: side in pixels of a square thumbnail of each image in the store; by default none
        batch_size: images of a batch
        workers: processes that decode images; by default one for each processor, up to 8, fewer for a model on the CPU
        rows_per_shard: images of a shard, at most so many are lost by an interruption; by default 4096, less for wide
            patches and large thumbnails
        device: cpu, cuda, ...; "auto" is cuda if available, else cpu
        image_column: column of the images in a dataset; by default the only one of images
        label_column: column of the labels in a dataset; "" leaves labels out, also those of a folder
        id_column: column of the ids in a dataset; by default the row numbers are the ids
        streaming: read a dataset from front to back, without a copy on the disk
        subset: configuration of a dataset on the Hub
        labels_path: CSV file of OpenImages' labels; by default the official one in PATH
        classes_path: CSV file of OpenImages' class names; by default the official one in PATH
        progress: show the estimate, a progress bar and the speed of the run
    """
    from monoloss.data.encoders import load_encoder
    from monoloss.data.extraction.run import Extraction
    from monoloss.data.images import open_images

    image_options = {
        "split": split,
        "image_column": image_column,
        "label_column": label_column,
        "id_column": id_column,
        "streaming": streaming,
        "subset": subset,
        "labels_path": labels_path,
        "classes_path": classes_path,
    }
    options: dict[str, Any] = {name: value for name, value in image_options.items() if value not in (None, False)}
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
    except BaseException as error:
        if not isinstance(error, Exception) and extraction.timing.n_images:  # Ctrl-C or SIGTERM
            sys.stderr.write(f"monoloss: the same command resumes {out}\n")
        raise
    if _rank() == 0:
        from rich.console import Console

        from monoloss.commands.info import store_table

        Console().print(store_table(store))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
