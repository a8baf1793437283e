"""What is to be evaluated, as a user names it: SAEs, runs, fine-tuned models, files of activations."""

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
_NAME = re.compile(r"[^\W.][\w.+-]*")  # what a file system takes, and a name in a training configuration
_EXPECTED = f"the folder of a SAE or of a run, or a name on the Hub written {HUB}USER/NAME"


@dataclass(frozen=True)
class Source:
    """One model that is to be evaluated, not loaded yet.

    Attributes:
        name: what its figures carry.
        path: where it comes from: a folder, a file, or ``hf-hub:user/name``.
        run: the folder of the run that it belongs to, if it does.
        kind: what the path is: a SAE, a file of activations, or a fine-tuned model.
    """

    name: str
    path: str
    run: Path | None = None
    kind: Literal["sae", "activations", "finetuned"] = "sae"

    @property
    def folder(self) -> Path:
        """Where its evaluation goes if nothing else is said: in its run, or ``evaluations`` in the working folder.

        In a run it has the name of the SAE; that of a fine-tuned model has the run's.
        """
        if self.run is None:
            return Path(EVALUATIONS) / self.name
        name = _allowed(self.run.name) if self.kind == "finetuned" else Path(self.path).name
        return self.run / EVALUATIONS / name

    def load(self, device: torch.device, key: str | None = None) -> SparseAutoencoder | StoredActivations:
        """The SAE, or the activations, on a device. ``key``: of the activations in their file.

        Raises:
            InputError: the file or folder cannot be used; the error names it.
        """
        if self.kind == "activations":
            return StoredActivations(self.path, key=key, device=device)
        return SparseAutoencoder.from_pretrained(self.path, device=device)


def find_sources(saes: Sequence[str], activations: Sequence[str] = (), finetuned: Sequence[str] = ()) -> list[Source]:
    """The models that some texts name, each under a name of its own.

    A text is a path, or ``NAME=PATH``. A path to a SAE is its folder, ``hf-hub:user/name``, or the folder of a run,
    which stands for all SAEs in it. A name is that of the folder or file, or of the run where a model was fine-tuned in
    one; where several are the same, that of the run or parent folder comes before it.

    Args:
        saes: of SAEs.
        activations: of files that hold activations.
        finetuned: of folders of fine-tuned models, or of the runs that made them.

    Returns:
        One source for each SAE, file and model, in the order given; the SAEs of a run by name.

    Raises:
        InputError: a path where nothing is, or nothing that can be evaluated; a name that was given to two models;
            the same model twice under the same name; nothing at all.
    """
    found: list[Source] = []
    given: set[int] = set()  # positions of names that the user chose: these stay
    for text in saes:
        name, path = _name_and_path(text)
        sources = [replace(source, name=name or source.name) for source in _saes_at(path)]
        if name is not None and len(sources) > 1:
            sources = [replace(source, name=f"{name}-{Path(source.path).name}") for source in sources]
        given |= {len(found) + position for position in range(len(sources)) if name is not None}
        found += sources
    for text in activations:
        name, path = _name_and_path(text)
        given |= {len(found)} if name is not None else set()
        found.append(Source(name or _allowed(Path(path).stem), path, kind="activations"))
    for text in finetuned:
        name, path = _name_and_path(text)
        given |= {len(found)} if name is not None else set()
        source = _finetuned_at(path)
        found.append(replace(source, name=name or source.name))
    if not found:
        raise InputError("saes", "none, and no activations", "something to evaluate")
    return _with_unique_names(found, given)


def evaluation_folders(
    sources: Sequence[Source], out: str | Path | None = None, judged: Mapping[str, object] | None = None
) -> dict[str, Path]:
    """Where the evaluation of each source is to be saved, by name; an earlier evaluation there will be replaced.

    Args:
        sources: what is evaluated.
        out: a folder, new or with evaluations only, for one folder each; None: where each belongs.
        judged: facts of the evaluation to come, such as its "store_fingerprint". Where ``out`` is None, an earlier
            evaluation whose facts are others is not replaced.

    Raises:
        InputError: a folder that holds something else; two evaluations in one place.
    """
    if out is not None and Path(out).is_dir():
        for entry in Path(out).iterdir():
            if not (entry.is_dir() and (entry / EVALUATION_FILE).is_file()):
                raise InputError("out", f"{out}, which holds {entry.name}", "a new folder, or one with evaluations")
    folders = {source.name: source.folder if out is None else Path(out) / source.name for source in sources}
    for place, count in Counter(folder.resolve() for folder in folders.values()).items():
        if count > 1:
            raise InputError("saes", f"the SAE of {place} twice", "each once, or names of their own and an out folder")
    for folder in folders.values():
        check_evaluation_folder(folder)
        if out is None and judged and (folder / EVALUATION_FILE).is_file():
            metadata = read_json(folder / EVALUATION_FILE, format_version=FORMAT_VERSION).get("facts")
            if not isinstance(metadata, dict) or any(metadata.get(key) != value for key, value in judged.items()):
                expected = "--out with another folder for this one"
                raise InputError(str(folder), "an evaluation on another store, or centred otherwise", expected)
    return folders


def _name_and_path(text: str) -> tuple[str | None, str]:
    """What stands before and after the first ``=``; a path that exists as it is may hold one."""
    name, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        return None, text
    if not _NAME.fullmatch(name):
        raise InputError(text, f"the name {name!r}", "a name of letters, digits and _ - . +, no dot first")
    return name, path


def _saes_at(path: str) -> list[Source]:
    if path.startswith(HUB):
        return [Source(_allowed(path.rpartition("/")[2]), path)]
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(path, "a file" if folder.exists() else "no such folder", _EXPECTED)
    if is_finetuned(folder) or is_finetuned(folder / MODEL):
        raise InputError(path, "a fine-tuned model", "a SAE here; fine-tuned models are given by --finetuned")
    if any((folder / name).is_file() for name in _SAE_FILES):
        return [_sae_at(folder)]
    below = folder / SAES
    inside = sorted(sae for sae in below.iterdir() if sae.is_dir() and sae.name[0] != ".") if below.is_dir() else []
    if not inside:
        got = f"an empty folder {SAES}" if below.is_dir() else f"a folder with neither {_SAE_FILES[0]} nor {SAES}"
        raise InputError(path, got, _EXPECTED)
    return [_sae_at(sae) for sae in inside]


def _sae_at(folder: Path) -> Source:
    whole = folder.resolve()
    in_a_run = whole.parent.name == SAES and (whole.parents[1] / CONFIG_FILE).is_file()
    return Source(_allowed(whole.name), str(folder), whole.parents[1] if in_a_run else None)


def _finetuned_at(path: str) -> Source:
    """A fine-tuned model, under the name of its run where it lies in one."""
    folder = Path(path)
    for model in (folder, folder / MODEL):
        if is_finetuned(model):
            run = model.resolve().parent
            in_a_run = model.resolve().name == MODEL and (run / CONFIG_FILE).is_file()
            name = run.name if in_a_run else model.resolve().name
            return Source(_allowed(name), str(model), run if in_a_run else None, "finetuned")
    got = "a folder without one" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
    raise InputError(path, got, "the folder of a fine-tuned model, or of a run of monoloss finetune that is finished")


def _allowed(name: str) -> str:
    """A name made of a file's: what may not be in a name becomes ``_``."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "_"


def _with_unique_names(sources: list[Source], given: set[int]) -> list[Source]:
    """Of equal names that the user did not choose, each gets that of its run or parent folder before it."""
    counts = Counter(source.name for source in sources)
    named = [
        source if counts[source.name] == 1 or position in given else replace(source, name=_longer(source))
        for position, source in enumerate(sources)
    ]
    for name, count in Counter(source.name for source in named).items():
        if count > 1:
            paths = " and ".join(source.path for source in named if source.name == name)
            raise InputError("names", f"{name!r} for {paths}", "a name of its own for each, written NAME=PATH")
    return named


def _longer(source: Source) -> str:
    if source.path.startswith(HUB):
        before = source.path.removeprefix(HUB).rpartition("/")[0]
    else:
        run = source.run
        if run is not None and source.kind == "finetuned":  # its name is the run's already
            run = run.parent
        before = (run or Path(source.path).resolve().parent).name
    return f"{_allowed(before)}-{source.name}"
