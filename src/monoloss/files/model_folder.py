"""The files that the folder of every saved model holds: writing them whole and reading them strictly.

- `model.safetensors`: every parameter and buffer under its name in the model; floating-point ones in float32.
- `config.json`: `format_version`, `library`, `library_version`, a description of the model, and the fields of its
  `Provenance`, each null where unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from monoloss.checks import check_type
from monoloss.errors import InputError
from monoloss.files.atomic import check_new_folder
from monoloss.files.dataclasses import check_known, read_field
from monoloss.files.json import write_json
from monoloss.files.tensors import save_tensors
from monoloss.version import __version__

TENSORS, CONFIG, LIBRARY = "model.safetensors", "config.json", "monoloss"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Provenance:
    """The data and the training that a saved model comes from; None where unknown.

    Raises:
        InputError: a value that JSON cannot hold; the error names its dotted path.
    """

    encoder: Mapping[str, Any] | None = None
    """Name, weights and preprocessing of the image model whose embeddings the model was trained on."""

    store_fingerprint: str | None = None
    """``fingerprint`` of the :class:`monoloss.FeatureStore` that the model was trained on."""

    training: Mapping[str, Any] | None = None
    """Settings of the training, nested in any way."""

    def __post_init__(self) -> None:
        check_type("store_fingerprint", self.store_fingerprint, str | None, "a text or None")
        for name in ("encoder", "training"):
            check_type(name, getattr(self, name), Mapping | None, "a mapping or None")
            object.__setattr__(self, name, _plain(getattr(self, name), name))  # as JSON gives it back


def check_replaceable(folder: Path, names: Collection[str], *, is_ours: bool, kind: str) -> None:
    """Refuse a folder to save in unless it is new, empty, or holds a model and nothing else.

    Args:
        folder: where to save.
        names: names of the files in the folder of such a model.
        is_ours: whether the ``config.json`` in ``folder`` describes such a model.
        kind: name of such a model in the error.
    """
    check_new_folder(folder, allow_full=True)
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if present and not (present <= set(names) and is_ours):
        raise InputError(str(folder), "a folder with other files", f"a new folder, or one with a {kind} only")


def peek_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of any version and kind; return {} where the file is missing or no JSON object."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_model_config(
    path: Path, described: Mapping[str, Any], provenance: Provenance, *, format_version: int
) -> None:
    """Write ``config.json``: the library, the description of the model, and its provenance."""
    write_json(path, model_config(described, provenance), format_version=format_version)


def model_config(described: Mapping[str, Any], provenance: Provenance) -> dict[str, Any]:
    """Return the content of ``config.json``, without its format version."""
    return {"library": LIBRARY, "library_version": __version__, **described, **asdict(provenance)}


def read_provenance(where: str, content: Mapping[str, Any], keys: Sequence[str]) -> Provenance:
    """Return the provenance in the content of a ``config.json``, after a check of all its keys.

    ``keys`` are the keys that describe the model; ``where`` names the file in errors.

    Raises:
        InputError: a key is unknown or missing, or its value has a wrong type.
    """
    described = [field.name for field in fields(Provenance)]
    expected_keys = ["library", "library_version", *keys, *described]
    check_known(content, expected_keys, f"{where}: ")
    for key in expected_keys:
        if key not in content:
            raise InputError(f"{where}: {key}", "nothing", "a value for this key")
    for key in ("library", "library_version"):
        read_field(str, content[key], f"{where}: {key}")
    try:
        return Provenance(**{name: content[name] for name in described})
    except InputError as error:
        raise InputError(f"{where}: {error.argument}", error.got, error.expected) from None


def check_savable(model: nn.Module) -> None:
    """Refuse a model with float64 tensors, which a model folder would round, or with NaN or infinite values."""
    buffers = dict(model.named_buffers())
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float64:
            raise InputError(name, f"dtype {tensor.dtype}", "at most torch.float32: .float() rounds a model")
        if not torch.isfinite(tensor).all():
            uncalibrated = name.endswith("threshold") and name in buffers
            expected = "calibrate_ on training rows before saving" if uncalibrated else "finite numbers"
            raise InputError(name, "no calibrated value" if uncalibrated else "NaN or infinity", expected)


def write_tensors(path: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of a model that has passed `check_savable`, floating-point ones in float32."""
    tensors = {
        name: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_tensors(tensors, path, {"format": "pt"})


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """Open `model.safetensors` for a block, without reading a tensor yet.

    Raises:
        InputError: no such file, a pickle file instead, or an error while the block reads it.
    """
    if not path.is_file():
        pickles = sorted(file.name for file in path.parent.iterdir() if file.suffix in _PICKLES)
        if pickles:
            expected = f"{TENSORS}: a pickle file can run code when it is read"
            raise InputError(str(path.parent / pickles[0]), "a pickle file", expected)
        raise InputError(str(path), "no such file", "a saved model folder")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"an unreadable file ({error})", "the file as it was written") from error


def read_tensors(
    file: Any, path: Path, expected: Mapping[str, Tensor], not_negative: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Read all tensors of an opened file by name; their names, shapes and dtypes must be those of ``expected``.

    Raises:
        InputError: other names, shapes or dtypes; NaN or infinity; a number below 0 in a tensor of ``not_negative``.
    """
    names = set(file.keys())
    for wrong, got in ((expected.keys() - names, "no tensor"), (names - expected.keys(), "a tensor")):
        if wrong:
            raise InputError(str(path), f"{got} {min(wrong)!r}", "the tensors that config.json describes")
    tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        check_shape(path, name, tensor.shape, expected[name].shape)
        if tensor.dtype != expected[name].dtype:
            raise InputError(str(path), f"{name} of dtype {tensor.dtype}", str(expected[name].dtype))
        if not torch.isfinite(tensor).all():
            raise InputError(str(path), f"{name} with NaN or infinity", "finite numbers")
        if name in not_negative and bool((tensor < 0).any()):
            raise InputError(str(path), f"{name} below 0", "numbers of at least 0")
    return tensors


def check_shape(path: Path, name: str, got: Any, expected: Any) -> None:
    """Refuse a tensor of a file whose shape is not the one that config.json implies."""
    if tuple(got) != tuple(expected):
        raise InputError(str(path), f"{name} of shape {tuple(got)}", f"shape {tuple(expected)}, as config.json says")


def _plain(value: Any, where: str) -> Any:
    """Copy nested values that JSON can hold (tuples become lists); refuse others by their dotted path ``where``."""
    if isinstance(value, Mapping):
        for key in value:
            check_type(f"{where}: the key {key!r}", key, str, "a text")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(where, str(value), "a finite number")
    if value is not None and type(value) not in (bool, int, float, str):
        raise InputError(where, f"a {type(value).__name__}", "a text, a number, True, False, None, a list or a mapping")
    return value
