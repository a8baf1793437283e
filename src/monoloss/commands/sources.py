"""Sources of an evaluation as users name them: SAEs, runs, fine-tuned models, files of activations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from monoloss.errors import InputError
from monoloss.evaluation.result import EVALUATION_FILE, FORMAT_VERSION, check_evaluation_folder
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.files.hub import HUB
from monoloss.files.json import read_json
from monoloss.finetune.model.folder import is_finetuned
from monoloss.runs.layout import CONFIG_FILE, EVALUATIONS, MODEL, SAES
from monoloss.sae.model import SparseAutoencoder

_SAE_FILES = ("config.json", "model.safetensors")
_NAME = re.compile(r"[^\W.][\w.+-]*")  # allowed in file names and as a name in a training configuration
_EXPECTED = f"the folder of a SAE or of a run, or a name on the Hub written {HUB}USER/NAME"


@dataclass(frozen=True)
class Source:
    """A model to evaluate, not loaded yet."""

    name: str  # in the table and, by default, of the folder of its evaluation
    path: str  # a folder, a file, or ``hf-hub:user/name``
    run: Path | None = None  # folder of the run that the model is in, if any
    kind: Literal["sae", "activations", "finetuned"] = "sae"

    @property
    def folder(self) -> Path:
        """Default folder of its evaluation: in ``evaluations`` of its run if it has one, else of the working folder.

        In a run it is named after the SAE; for a fine-tuned model after the run.
        """
        if self.run is None:
            return Path(EVALUATIONS) / self.name
        name = _allowed(self.run.name) if self.kind == "finetuned" else Path(self.path).name
        return self.run / EVALUATIONS / name

    def load(self, device: torch.device, key: str | None = None) -> SparseAutoencoder | StoredActivations:
        """Load the SAE or the file of activations on a device; ``key`` is the name of the array in that file.

        Raises:
            InputError: the file or folder cannot be used; the error names it.
        """
        if self.kind == "activations":
            return StoredActivations(self.path, key=key, device=device)
        return SparseAutoencoder.from_pretrained(self.path, device=device)


def find_sources(saes: Sequence[str], activations: Sequence[str] = (), finetuned: Sequence[str] = ()) -> list[Source]:
    """Turn the values of the options into sources with unique names.

    Each value is ``PATH`` or ``NAME=PATH``. The default name is that of the folder or file, for a fine-tuned model in a
    run that of the run; equal default names get the name of the run or parent folder in front.

    Args:
        saes: folders of SAEs, ``hf-hub:user/name``, or folders of runs, which stand for all SAEs in them.
        activations: files of activations.
        finetuned: folders of fine-tuned models, or of their runs.

    Returns:
        One source for each SAE, file and model, in the order of the values; the SAEs of a run by name.

    Raises:
        InputError: a path that does not exist or cannot be evaluated; one name for two models; the same model twice
            under one name; no value at all.
    """
    sources: list[Source] = []
    fixed: set[int] = set()  # positions of the sources that the user named
    for text in saes:
        name, path = _name_and_path(text)
        saes_at_path = [replace(source, name=name or source.name) for source in _saes_at(path)]
        if name is not None and len(saes_at_path) > 1:
            saes_at_path = [replace(source, name=f"{name}-{Path(source.path).name}") for source in saes_at_path]
        fixed |= {len(sources) + position for position in range(len(saes_at_path)) if name is not None}
        sources += saes_at_path
    for text in activations:
        name, path = _name_and_path(text)
        fixed |= {len(sources)} if name is not None else set()
        sources.append(Source(name or _allowed(Path(path).stem), path, kind="activations"))
    for text in finetuned:
        name, path = _name_and_path(text)
        fixed |= {len(sources)} if name is not None else set()
        source = _finetuned_at(path)
        sources.append(replace(source, name=name or source.name))
    if not sources:
        raise InputError("saes", "none, and no activations", "something to evaluate")
    return _with_unique_names(sources, fixed)


def evaluation_folders(
    sources: Sequence[Source], out: str | Path | None = None, metadata: Mapping[str, object] | None = None
) -> dict[str, Path]:
    """Return the folder for the evaluation of each source, by name; an earlier evaluation in it may be replaced.

    Args:
        sources: sources with unique names.
        out: a folder, new or with evaluations only, for one folder each; None: the default folder of each source.
        metadata: metadata of the planned evaluation, such as "store_fingerprint". If ``out`` is None, an earlier
            evaluation with other metadata is an error.

    Raises:
        InputError: a folder with other files; one folder for two evaluations; an earlier evaluation to preserve.
    """
    if out is not None and Path(out).is_dir():
        for entry in Path(out).iterdir():
            if not (entry.is_dir() and (entry / EVALUATION_FILE).is_file()):
                raise InputError("out", f"{out}, which holds {entry.name}", "a new folder, or one with evaluations")
    folders = {source.name: source.folder if out is None else Path(out) / source.name for source in sources}
    for path, count in Counter(folder.resolve() for folder in folders.values()).items():
        if count > 1:
            raise InputError("saes", f"the SAE of {path} twice", "each once, or names of their own and an out folder")
    for folder in folders.values():
        check_evaluation_folder(folder)
        if out is None and metadata and (folder / EVALUATION_FILE).is_file():
            earlier = read_json(folder / EVALUATION_FILE, format_version=FORMAT_VERSION).get("facts")
            if not isinstance(earlier, dict) or any(earlier.get(key) != value for key, value in metadata.items()):
                expected = "--out with another folder for this one"
                raise InputError(str(folder), "an evaluation on another store, or centred otherwise", expected)
    return folders


def _name_and_path(text: str) -> tuple[str | None, str]:
    """Split ``NAME=PATH`` at the first ``=``; None and the text for a path, also for an existing one with ``=``."""
    name, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        return None, text
    if not _NAME.fullmatch(name):
        raise InputError(text, f"the name {name!r}", "a name of letters, digits and _ - . +, no dot first")
    return name, path


def _saes_at(path: str) -> list[Source]:
    """Return the SAE in a folder or on the Hub, or the SAEs of a run, by name."""
    if path.startswith(HUB):
        return [Source(_allowed(path.rpartition("/")[2]), path)]
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(path, "a file" if folder.exists() else "no such folder", _EXPECTED)
    if is_finetuned(folder) or is_finetuned(folder / MODEL):
        raise InputError(path, "a fine-tuned model", "a SAE; fine-tuned models are given by --finetuned")
    if any((folder / name).is_file() for name in _SAE_FILES):
        return [_sae_at(folder)]
    parent = folder / SAES
    saes = sorted(sae for sae in parent.iterdir() if sae.is_dir() and sae.name[0] != ".") if parent.is_dir() else []
    if not saes:
        got = f"an empty folder {SAES}" if parent.is_dir() else f"a folder with neither {_SAE_FILES[0]} nor {SAES}"
        raise InputError(path, got, _EXPECTED)
    return [_sae_at(sae) for sae in saes]


def _sae_at(folder: Path) -> Source:
    """Return the source of the SAE saved in a folder, with its run if the folder lies in one."""
    path = folder.resolve()
    in_a_run = path.parent.name == SAES and (path.parents[1] / CONFIG_FILE).is_file()
    return Source(_allowed(path.name), str(folder), path.parents[1] if in_a_run else None)


def _finetuned_at(path: str) -> Source:
    """Return the fine-tuned model in a folder or run, named after its run if it is in one."""
    folder = Path(path)
    for model in (folder, folder / MODEL):
        if is_finetuned(model):
            run = model.resolve().parent
            in_a_run = model.resolve().name == MODEL and (run / CONFIG_FILE).is_file()
            name = run.name if in_a_run else model.resolve().name
            return Source(_allowed(name), str(model), run if in_a_run else None, "finetuned")
    got = (
        "a folder without a fine-tuned model" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
    )
    raise InputError(path, got, "the folder of a fine-tuned model, or of a finished run of monoloss finetune")


def _allowed(name: str) -> str:
    """Make a name from a file name: replace characters that a name may not have by ``_``."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "_"


def _with_unique_names(sources: list[Source], fixed: set[int]) -> list[Source]:
    """Lengthen equal names, except at the positions ``fixed``; raise an error if some are equal still."""
    counts = Counter(source.name for source in sources)
    named = [
        source if counts[source.name] == 1 or position in fixed else replace(source, name=_longer(source))
        for position, source in enumerate(sources)
    ]
    for name, count in Counter(source.name for source in named).items():
        if count > 1:
            paths = " and ".join(source.path for source in named if source.name == name)
            raise InputError("names", f"{name!r} for {paths}", "a name of its own for each, written NAME=PATH")
    return named


def _longer(source: Source) -> str:
    """Return the name of a source with that of its run, parent folder or user of the Hub in front."""
    if source.path.startswith(HUB):
        prefix = source.path.removeprefix(HUB).rpartition("/")[0]
    else:
        run = source.run
        if run is not None and source.kind == "finetuned":  # it is named after its run already
            run = run.parent
        prefix = (run or Path(source.path).resolve().parent).name
    return f"{_allowed(prefix)}-{source.name}"
