"""Model folders of fine-tuned models: written whole, read strictly.

- `model.safetensors`: the weights; low-rank updates are merged, so that the backbone's weights have timm's names.
- `config.json`: `kind`, `class_names`, `width` (of the new layer), `top_k`, `backbone` (its recipe), `preprocessing`
  (of evaluation), and the model's `Provenance`, with encoder and store of the embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monoloss.checks import check_choice, check_number, check_type
from monoloss.errors import InputError
from monoloss.files.atomic import atomic_folder
from monoloss.files.dataclasses import check_known, to_plain
from monoloss.files.json import read_json
from monoloss.files.model_folder import (
    CONFIG,
    TENSORS,
    Provenance,
    check_replaceable,
    check_savable,
    model_config,
    opened_tensors,
    peek_config,
    read_provenance,
    read_tensors,
    write_model_config,
    write_tensors,
)
from monoloss.finetune.model.backbone import Backbone, rebuild_backbone
from monoloss.finetune.model.model import FineTuneModel, merged

FORMAT_VERSION = 1
KIND = "fine-tuned model"
_KEYS = {
    "kind": str,
    "class_names": list,
    "width": int,
    "top_k": int | None,
    "backbone": Mapping,
    "preprocessing": Mapping,
}
_BACKBONE: Mapping[str, Any] = {"architecture": str, "pretrained_cfg": Mapping, "args": Mapping}
_PREPROCESSING: Mapping[str, Any] = {
    "input_size": list,
    "interpolation": str,
    "mean": list,
    "std": list,
    "crop_pct": int | float,
    "crop_mode": str,
}
_CROP_MODES = ("center", "squash", "border")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # those of PIL


def save_finetuned(model: FineTuneModel, folder: str | os.PathLike[str]) -> Path:
    """Write a model folder for :func:`load_finetuned`, in one atomic step, and return its path.

    Args:
        model: the model, saved with its ``preprocessing`` and ``provenance``; low-rank updates are merged into the
            weights of the file, not of the model.
        folder: a new or empty folder, or one that holds nothing but a fine-tuned model, which is replaced.

    Raises:
        InputError: the folder holds other files; a tensor in float64, or with NaN or infinity. Nothing is written.
    """
    check_type("model", model, FineTuneModel, "a FineTuneModel")
    folder = Path(folder)
    merged_model = merged(model)
    check_savable(merged_model)
    check_replaceable(folder, (TENSORS, CONFIG), is_ours=is_finetuned(folder), kind=KIND)
    content = {
        "kind": KIND,
        "class_names": list(model.class_names),
        "width": model.width,
        "top_k": model.top_k,
        "backbone": to_plain(model.recipe),
        "preprocessing": to_plain(model.preprocessing),
    }
    _read_config(CONFIG, model_config(content, model.provenance))  # refuses now what could not be read later
    with atomic_folder(folder, replace=True) as temporary:
        write_tensors(temporary / TENSORS, merged_model)
        write_model_config(temporary / CONFIG, content, model.provenance, format_version=FORMAT_VERSION)
    return folder


def load_finetuned(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> FineTuneModel:
    """Load a fine-tuned model from its model folder, in ``eval()`` mode.

    Args:
        folder: a folder that :func:`save_finetuned` or a finished run has written.
        device: device of the model.

    Raises:
        InputError: no such folder; a file that is missing, torn, of another version or of another kind of model; a key
            or tensor that is missing, unknown, or of a wrong type or shape; NaN or infinity. The error names the file.
        MissingExtraError: timm is not installed.

    Example:
        >>> load_finetuned("nowhere")
        Traceback (most recent call last):
        monoloss.errors.InputError: nowhere: got no such folder; expected the folder of a fine-tuned model
    """
    check_type("folder", folder, str | os.PathLike, "a path")
    folder = Path(folder)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise InputError(str(folder), got, "the folder of a fine-tuned model")
    path = folder / CONFIG
    content = read_json(path, format_version=FORMAT_VERSION)
    provenance = _read_config(str(path), content)
    try:
        with torch.device("meta"):
            empty = _build(content)  # without memory: a wrong size in config.json must not fill it
        with opened_tensors(folder / TENSORS) as file:
            tensors = read_tensors(file, folder / TENSORS, empty.state_dict())
        model = _build(content)
        model.load_state_dict(tensors)
    except InputError as error:
        if error.argument.startswith(str(folder)):
            raise
        raise InputError(f"{path}: {error.argument}", error.got, error.expected) from error
    model.provenance = provenance
    return model.to(device).eval()


def is_finetuned(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder's ``config.json`` says that it holds a fine-tuned model, of any version."""
    return peek_config(Path(folder)).get("kind") == KIND


def _build(content: Mapping[str, Any]) -> FineTuneModel:
    """Build the model that a config.json describes, with arbitrary weights, on torch's default device."""
    backbone = Backbone(
        rebuild_backbone(content["backbone"]), content["width"], content["backbone"], content["preprocessing"]
    )
    return FineTuneModel(backbone, content["class_names"], top_k=content["top_k"])


def _read_config(where: str, content: Mapping[str, Any]) -> Provenance:
    """Check the content of a config.json, which errors call `where`, and return its provenance."""
    if content.get("kind") != KIND:
        raise InputError(where, f"a file of kind {content.get('kind')!r}", f"the config.json of a {KIND} of monoloss")
    provenance = read_provenance(where, content, tuple(_KEYS))
    _check_kinds(where, content, _KEYS)
    check_number(f"{where}: width", content["width"], at_least=1, below=2**20, integer=True)
    for key, kinds in {"backbone": _BACKBONE, "preprocessing": _PREPROCESSING}.items():
        check_known(content[key], tuple(kinds), f"{where}: {key}: ")
        _check_kinds(f"{where}: {key}", content[key], kinds)
    _check_preprocessing(f"{where}: preprocessing", content["preprocessing"])
    return provenance


def _check_kinds(where: str, content: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Refuse keys that are missing, and values of another type than `kinds` gives their key."""
    for key, kind in kinds.items():
        if key not in content:
            raise InputError(f"{where}: {key}", "nothing", "a value for this key")
        check_type(f"{where}: {key}", content[key], kind, _word(kind))


def _check_preprocessing(where: str, content: Mapping[str, Any]) -> None:
    """Refuse values of the preprocessing that are out of range."""
    if len(content["input_size"]) != 3 or content["input_size"][0] != 3:
        raise InputError(f"{where}: input_size", content["input_size"], "[3, height, width]")
    for side in content["input_size"]:
        check_number(f"{where}: input_size", side, at_least=1, integer=True)
    for key in ("mean", "std"):
        if len(content[key]) != 3:
            raise InputError(f"{where}: {key}", content[key], "three numbers")
        for value in content[key]:
            check_number(f"{where}: {key}", value, above=0 if key == "std" else None)
    check_number(f"{where}: crop_pct", content["crop_pct"], above=0)
    check_choice(f"{where}: crop_mode", content["crop_mode"], _CROP_MODES)
    check_choice(f"{where}: interpolation", content["interpolation"], _INTERPOLATIONS)


def _word(kind: Any) -> str:
    """Return the name of a type in errors."""
    return {Mapping: "keys and values", list: "a list", str: "text", int: "an integer"}.get(kind, "another value")
