"""Image models of timm with weights from the Hub, from a local folder or file, or random."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from timm.models import get_pretrained_cfg, load_state_dict

from monoloss.data.encoders.outputs import ImageModel
from monoloss.errors import InputError, first_line, some_names
from monoloss.files.atomic import sha256
from monoloss.files.hub import HUB

Weights: TypeAlias = str | dict[str, str | int]

FOLDER = "local-dir:"
_LOCAL = "a local folder with config.json and model.safetensors, or a local file of weights (checkpoint)"
_FILE_NAMES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Parts of the names of weights whose head is a projection to a space shared with text.
_PROJECTED = ("clip", "pe_core", "mci", "vitamin")
_QUOTED = re.compile(r'"([^"]+)"')
# The base of the Hub's error is that of its HTTP library, which differs between versions.
_NO_CONNECTION: tuple[type[Exception], ...] = (OSError, HfHubHTTPError, *HfHubHTTPError.__bases__)


class ModelRequest(NamedTuple):
    """A model of timm and the source of its weights."""

    name: str  # as timm writes it: a registered name, `hf-hub:USER/NAME` or `local-dir:PATH`
    checkpoint: Path | None  # a local weights file, read instead of the weights that belong to `name`
    pretrained: bool  # False for random weights
    image_size: int | None  # height and width in pixels; None for the model's own
    seed: int  # of random weights

    @property
    def weights_file(self) -> Path | None:
        """The local weights file; None for random weights and for weights from the Hub."""
        if not self.pretrained:
            return None
        if self.checkpoint is not None:
            return self.checkpoint
        return _folder_weights(Path(self.name.removeprefix(FOLDER))) if self.name.startswith(FOLDER) else None


def request_model(
    name: str,
    *,
    checkpoint: str | None,
    pretrained: bool,
    image_size: int | None,
    seed: int,
    presets: Iterable[str] = (),
) -> ModelRequest:
    """Return the request for a model, after a check of its name and of local files; nothing is downloaded.

    The arguments are those of `load_encoder`; `presets` are further names that an error may suggest.

    Raises:
        InputError: an unknown name (the error lists similar ones), or a folder or file that does not exist, or a folder
            without weights.
    """
    timm_name = _timm_name(name, presets)
    if checkpoint is not None and not pretrained:
        raise InputError("checkpoint", repr(checkpoint), "no checkpoint where pretrained is off, or pretrained on")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise InputError("checkpoint", f"{checkpoint!r}, no file", "a .safetensors, .pt, .pth or .bin file of weights")
    request = ModelRequest(timm_name, Path(checkpoint) if checkpoint else None, pretrained, image_size, seed)
    _ = request.weights_file  # refuses a folder without weights
    return request


def build_empty(request: ModelRequest) -> ImageModel:
    """Build the model on the meta device: no memory, no weights, but layers, shapes and preprocessing."""
    with torch.device("meta"), _readable_errors(request):
        model: ImageModel = timm.create_model(request.name, pretrained=False)
        if request.image_size is not None and model.pretrained_cfg.get("fixed_input_size"):
            model = timm.create_model(request.name, pretrained=False, img_size=request.image_size)
    return model.eval()


def build_model(request: ModelRequest, empty: ImageModel, *, head_used: bool) -> tuple[ImageModel, Weights]:
    """Build the model with its weights; also return the metadata of the weights (a name, or file and hash, or seed).

    Args:
        request: the model and the source of its weights.
        empty: the same model from `build_empty`.
        head_used: whether the output depends on the head. If not, a weights file may have another head, or none.
    """
    sizes: dict[str, Any] = {}
    if request.image_size is not None and empty.pretrained_cfg.get("fixed_input_size"):
        sizes["img_size"] = request.image_size
    if not request.pretrained:
        with _readable_errors(request), torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            return timm.create_model(request.name, pretrained=False, **sizes).eval(), {"random": request.seed}
    file = request.weights_file
    if file is not None:
        loaded = _from_file(request, file, empty, sizes, head_used)
        return loaded.eval(), {"file": file.name, "sha256": sha256(file)}
    with _readable_errors(request):
        model: ImageModel = timm.create_model(request.name, pretrained=True, **sizes)
    tag = model.pretrained_cfg.get("tag")
    return model.eval(), request.name if request.name.startswith(HUB) or not tag else tag


def has_projection(model: ImageModel) -> bool:
    """Return whether the head is a projection, not a classifier: timm lists such weights with a head as wide."""
    names = timm.list_models(model.pretrained_cfg["architecture"], include_tags=True)
    projected = [name for name in names if any(part in name for part in _PROJECTED) and "_ft_" not in name]
    configs = [get_pretrained_cfg(name) for name in projected]
    n_outputs = getattr(model, "num_classes", 0)
    return n_outputs > 0 and any(config is not None and config.num_classes == n_outputs for config in configs)


def _timm_name(name: str, presets: Iterable[str]) -> str:
    """Return the name of a model as timm writes it; `InputError` for an unknown model, tag or folder."""
    if name.startswith(HUB):
        return name
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    if name.startswith(FOLDER) or (name and folder.is_dir()):
        if not (folder / "config.json").is_file():
            raise InputError("encoder", f"{str(folder)!r}, no folder with a config.json", "a folder as timm saves it")
        return f"{FOLDER}{folder}"
    if re.search(r"[/\\:]", name):
        raise InputError("encoder", f"{name!r}, no local folder", f"a folder, or {HUB}USER/NAME for a model on the Hub")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        names = [*presets, *timm.list_models(), *timm.list_pretrained()]
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        hint = f" such as {', '.join(near)}" if near else ""
        raise InputError("encoder", f"{name!r}, unknown to timm", f"a preset, a timm model{hint}, or a local folder")
    tags = timm.list_models(architecture, include_tags=True)
    if tag and name not in tags:
        raise InputError("encoder", f"{name!r}, no weights of {architecture}", f"one of {', '.join(tags)}")
    return name


def _folder_weights(folder: Path) -> Path:
    """Return the weights file in a folder that timm saved."""
    for name in _FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise InputError("encoder", f"{str(folder)!r} without weights", f"one of {', '.join(_FILE_NAMES)} in it")


@contextmanager
def _readable_errors(request: ModelRequest) -> Iterator[None]:
    """Turn errors of timm and the Hub about names, files and connections into `InputError`."""
    name = request.name
    try:
        yield
    except InputError:
        raise
    except (HFValidationError, RepositoryNotFoundError, GatedRepoError) as error:
        gated = isinstance(error, GatedRepoError)
        why = "for which the Hub wants an access token" if gated else "which the Hub does not have, or not for you"
        raise InputError("encoder", f"{name!r}, {why}", f"a public model, or {_LOCAL}") from error
    except _NO_CONNECTION as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no connection, or no such file"
        where = _weights_place(name)
        got = f"{name!r}: {where} is neither in the local cache nor can it be fetched ({offline})"
        raise InputError("encoder", got, f"a connection the first time, {_LOCAL}, or random weights") from error
    except (KeyError, TypeError, ValueError) as error:  # a config.json of another library, or an unfit image_size
        if request.image_size is not None and not isinstance(error, KeyError):
            raise InputError("image_size", f"{request.image_size} ({error})", f"a size that {name} takes") from error
        expected = "a config.json as timm writes it, with an architecture that this version of timm knows"
        raise InputError("encoder", f"{name!r}, whose configuration cannot be used ({error})", expected) from error
    except RuntimeError as error:
        raise InputError("encoder", f"{name!r} ({first_line(error)})", f"weights that exist, or {_LOCAL}") from error


def _weights_place(name: str) -> str:
    """Return the place of a model's weights, for an error text."""
    config = None if name.startswith((HUB, FOLDER)) else get_pretrained_cfg(name)
    hub_id = name.removeprefix(HUB) if config is None else config.hf_hub_id
    return f"{hub_id} on the Hugging Face Hub" if hub_id else f"the file of its weights ({config and config.url})"


def _from_file(
    request: ModelRequest, file: Path, empty: ImageModel, sizes: dict[str, Any], head_used: bool
) -> ImageModel:
    """Build the model with the weights of a file, which must fit exactly, but for a head that is not used."""
    shapes, config = _shapes(file), empty.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = [f"{head}.weight" for head in ((heads,) if isinstance(heads, str) else heads)]
    head_sizes = [shapes[head][0] for head in heads if head in shapes]
    expected = config.get("num_classes", 0)
    overlays: list[dict[str, Any]] = [{}]
    if not head_used and head_sizes and head_sizes[0] not in {expected, expected + (config.get("label_offset") or 0)}:
        overlays = [{"num_classes": head_sizes[0], "label_offset": None}]
    elif not head_used and not head_sizes and expected > 0:
        overlays.append({"num_classes": 0, "label_offset": None})
    failure: Exception | None = None
    for overlay in overlays:
        try:
            source = {"file": str(file), "source": "", **overlay}
            head = {"num_classes": overlay["num_classes"]} if overlay else {}
            return timm.create_model(request.name, pretrained=True, pretrained_cfg_overlay=source, **sizes, **head)
        except Exception as error:  # timm converts the names of other libraries, which can raise anything
            failure = failure or error
    raise InputError(str(file), _misfit(failure, config["architecture"]), "weights of this model") from failure


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a weights file; refuse a pickle of more than tensors and plain values."""
    expected = "a .safetensors file, or a file of torch.save with tensors and plain values only"
    try:
        state = load_state_dict(str(file), weights_only=True)
        tensors = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}
    except OSError as error:
        raise InputError(str(file), error.strerror or "an unreadable file", expected) from error
    except Exception as error:  # a broken file can raise anything
        refused = re.search(r"Unsupported globals: ([\w., ]+?)\.(?: [A-Z]|$)", str(error))
        got = f"a pickle with {refused[1]} in it; nothing of it was executed" if refused else "an unreadable file"
        raise InputError(str(file), got, expected) from error
    if not tensors:
        raise InputError(str(file), "a file without tensors", expected)
    return tensors


def _misfit(error: Exception | None, architecture: str) -> str:
    """Return the tensors that did not fit in a strict load, from its error, in a few words."""
    text = str(error)
    lists = re.findall(r"(Missing|Unexpected) key\(s\) in state_dict: (.*?)\.\s*(?:\n|$)", text)
    faults = [f"{word.lower()} {some_names(_QUOTED.findall(names), 3)}" for word, names in lists]
    sizes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)", text)
    if sizes:
        shapes = [f"{name} {got} for {expected}" for name, got, expected in sizes]
        faults.append(f"of another shape {some_names(shapes, 3)}")
    reason = "; ".join(faults) or (first_line(error) if error else "")
    return f"weights that do not fit {architecture} ({reason})"
