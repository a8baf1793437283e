"""What the files of a SAE checkpoint hold; `checkpoint` puts them into a folder and takes them from there.

- `model.safetensors`: every parameter and buffer under its name in the model; floating-point ones in float32.
- `config.json`: `format_version`, `library`, `library_version`, `d_in`, `sae` (the configuration, every field), and of
  the `Provenance` `encoder`, `store_fingerprint` and `training`, each null where unknown.
- `README.md`: the model card, for people; nothing reads it back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from monoloss.checks import check_type
from monoloss.errors import InputError
from monoloss.files import check_new_folder, read_json, write_json
from monoloss.plain_values import check_known, plain, read_value
from monoloss.sae.config import SaeConfig
from monoloss.tensor_files import save_tensors
from monoloss.version import __version__

FORMAT_VERSION = 1
TENSORS, FACTS, CARD = "model.safetensors", "config.json", "README.md"
LIBRARY = "monoloss"
_NOT_NEGATIVE = ("activation.threshold", "samples_since_active")  # codes are never below 0, nor are counts
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Provenance:
    """Where a SAE comes from: what its checkpoint says besides what the model is. All of it may be unknown.

    Attributes:
        encoder: name, weights and preprocessing of the image model whose embeddings it was trained on.
        store_fingerprint: ``fingerprint`` of the :class:`monoloss.FeatureStore` it was trained on.
        training: how it was trained, nested as one likes.

    Raises:
        InputError: a value that JSON cannot hold; the error names it with its dotted path.

    Example:
        >>> Provenance(training={"lr": 1e-4, "betas": (0.9, 0.999)}).training
        {'lr': 0.0001, 'betas': [0.9, 0.999]}
    """

    encoder: Mapping[str, Any] | None = None
    store_fingerprint: str | None = None
    training: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_type("store_fingerprint", self.store_fingerprint, str | None, "a text or None")
        for name in ("encoder", "training"):
            check_type(name, getattr(self, name), Mapping | None, "a mapping or None")
            object.__setattr__(self, name, _plain(getattr(self, name), name))  # as it will be read back


def check_replaceable(folder: Path) -> None:
    """Refuse a folder to save in unless it is new, empty, or holds a SAE checkpoint and nothing else."""
    check_new_folder(folder, allow_full=True)
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if names and not (names <= {TENSORS, FACTS, CARD} and _is_ours(folder / FACTS)):
        raise InputError(str(folder), "a folder with other files", "a new folder, or one with a SAE checkpoint only")


def write_facts(path: Path, d_in: int, config: SaeConfig, provenance: Provenance) -> None:
    """Write `config.json`."""
    library = {"library": LIBRARY, "library_version": __version__}
    content = {**library, "d_in": d_in, "sae": plain(config), **asdict(provenance)}
    write_json(path, content, format_version=FORMAT_VERSION)


def read_facts(path: Path) -> tuple[int, SaeConfig, Provenance]:
    """Read `config.json`: width of the inputs, configuration, provenance; whatever is wrong with it, `InputError`."""
    content = read_json(path, format_version=FORMAT_VERSION)
    if content.get("library") != LIBRARY:
        raise InputError(str(path), "a file of another library", "the config.json of a SAE checkpoint of monoloss")
    described = [field.name for field in fields(Provenance)]
    keys = ["library", "library_version", "d_in", "sae", *described]
    check_known(content, keys, f"{path}: ")
    for key in keys:
        if key not in content:
            raise InputError(f"{path}: {key}", "nothing", "a value for this key")
    read_value(str, content["library_version"], f"{path}: library_version")
    d_in = read_value(int, content["d_in"], f"{path}: d_in")
    config: SaeConfig = read_value(SaeConfig, content["sae"], f"{path}: sae", complete=True)
    try:
        return d_in, config, Provenance(**{name: content[name] for name in described})
    except InputError as error:
        raise InputError(f"{path}: {error.argument}", error.came, error.needed) from None


def check_savable(model: nn.Module) -> None:
    """Refuse a model that a checkpoint could not give back as it is, or that could not encode."""
    buffers = dict(model.named_buffers())
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float64:
            raise InputError(name, f"dtype {tensor.dtype}", "at most torch.float32: .float() rounds a model")
        if not torch.isfinite(tensor).all():
            uncalibrated = name.endswith("threshold") and name in buffers
            needed = "calibrate_ on training rows before saving" if uncalibrated else "finite numbers"
            raise InputError(name, "no calibrated value" if uncalibrated else "NaN or infinity", needed)


def write_tensors(path: Path, model: nn.Module) -> None:
    """Write `model.safetensors`; the model has passed `check_savable`."""
    tensors = {
        name: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_tensors(tensors, path, {"format": "pt"})


@contextmanager
def opened_tensors(path: Path, d_in: int, n_latents: int) -> Iterator[Any]:
    """`model.safetensors`, opened, once its encoder has the size that `config.json` says.

    Until then nothing of that size is made: a wrong figure in `config.json` cannot fill the memory.
    """
    if not path.is_file():
        pickles = sorted(file.name for file in path.parent.iterdir() if file.suffix in _PICKLES)
        if pickles:
            needed = f"{TENSORS}: a pickle file can run code when it is read"
            raise InputError(str(path.parent / pickles[0]), "a pickle file", needed)
        raise InputError(str(path), "no such file", "the file as it was written")
    try:
        with safe_open(path, framework="pt") as file:
            if "encoder_weight" in file.keys():  # noqa: SIM118 (it is no mapping)
                _check_shape(path, "encoder_weight", file.get_slice("encoder_weight").get_shape(), (d_in, n_latents))
                yield file
            else:
                raise InputError(str(path), "no tensor 'encoder_weight'", "the tensors that config.json describes")
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"an unreadable file ({error})", "the file as it was written") from error


def read_tensors(file: Any, path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of an opened file, which must be those of ``expected``: names, shapes, types; and finite."""
    names = set(file.keys())
    for wrong, came in ((expected.keys() - names, "no tensor"), (names - expected.keys(), "a tensor")):
        if wrong:
            raise InputError(str(path), f"{came} {min(wrong)!r}", "the tensors that config.json describes")
    tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        _check_shape(path, name, tensor.shape, expected[name].shape)
        if tensor.dtype != expected[name].dtype:
            raise InputError(str(path), f"{name} of dtype {tensor.dtype}", str(expected[name].dtype))
        if not torch.isfinite(tensor).all():
            raise InputError(str(path), f"{name} with NaN or infinity", "finite numbers")
        if name in _NOT_NEGATIVE and bool((tensor < 0).any()):
            raise InputError(str(path), f"{name} below 0", "numbers of at least 0")
    return tensors


def _check_shape(path: Path, name: str, came: Any, needed: Any) -> None:
    if tuple(came) != tuple(needed):
        raise InputError(str(path), f"{name} of shape {tuple(came)}", f"shape {tuple(needed)}, as config.json says")


def _is_ours(path: Path) -> bool:
    """Whether a file is the `config.json` of a SAE checkpoint, of whatever version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("library") == LIBRARY


def _plain(value: Any, where: str) -> Any:
    """A copy in what JSON can hold: dicts with text keys, lists, texts, finite numbers, True, False, None."""
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
