"""Search for saved evaluations in the folders that a user names, and for their stores and training logs."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monoloss.data.store import FeatureStore
from monoloss.data.store.format import MANIFEST
from monoloss.errors import InputError
from monoloss.evaluation.charts.overview import TrainingCurve
from monoloss.evaluation.result import EVALUATION_FILE, Evaluation
from monoloss.runs.layout import CONFIG_FILE, EVALUATIONS, SAES

_EVALUATION_PATTERNS = ("*", f"{EVALUATIONS}/*", f"*/{EVALUATIONS}/*")  # below a folder that a user names
_LOG_PATTERN = "logs/version_*/metrics.csv"  # below a run


@dataclass(frozen=True)
class LocatedEvaluation:
    """An evaluation and where it was read from."""

    folder: Path
    """Folder of the evaluation's files."""
    evaluation: Evaluation
    run: Path | None = None
    """Folder of the run that trained its SAE; None where that is unknown or deleted."""
    sae: str = ""
    """Name of its SAE in that run."""


def find_evaluations(paths: Sequence[str | Path]) -> list[LocatedEvaluation]:
    """Load the evaluations in some folders, each once, and rename those whose names are equal.

    A path is the folder of one evaluation, of a run, or of evaluations or runs. An evaluation whose name is not unique
    is prefixed by the name of its run, or of its parent folder where it has none; then, if need be, it is numbered.

    Raises:
        InputError: no path, a path without an evaluation, or an evaluation that cannot be read.
    """
    folder_of_path: dict[Path, Path] = {}
    for path in map(Path, paths):
        folders = list(_evaluation_folders(path))
        if not folders:
            got = "no such folder" if not path.exists() else "no evaluation" if path.is_dir() else "a file"
            raise InputError(str(path), got, "a run or a folder with evaluations")
        folder_of_path |= {folder.resolve(): folder for folder in folders if folder.resolve() not in folder_of_path}
    if not folder_of_path:
        raise InputError("runs", "none", "at least one")
    return _with_unique_names([_locate(folder) for folder in folder_of_path.values()])


def find_stores(evaluations: Sequence[LocatedEvaluation], given: Sequence[str | Path] = ()) -> list[FeatureStore]:
    """Open the stores that evaluations were made on, each once; stores that no longer exist are left out.

    A store counts if its fingerprint is that in the evaluation. Searched: the ``given`` folders, then for each
    evaluation the path that it names, the paths in the configuration of its run, and ``stores/`` in its run.

    Args:
        evaluations: of :func:`find_evaluations`.
        given: folders of stores.

    Raises:
        InputError: a given folder is not a store, or none of the evaluations was made on it.
    """
    fingerprints = {str(located.evaluation.metadata.get("store_fingerprint")) for located in evaluations}
    stores: dict[str, FeatureStore] = {}
    for path in given:
        store = FeatureStore(path)
        if store.fingerprint not in fingerprints:
            expected = "a store that one of the evaluations was made on"
            raise InputError("store", f"{path}, on which no evaluation was made", expected)
        stores[store.fingerprint] = store
    for located in evaluations:
        fingerprint = located.evaluation.metadata.get("store_fingerprint")
        if fingerprint in stores:
            continue
        for folder in _store_candidates(located):
            try:
                store = FeatureStore(folder)
            except InputError:
                continue  # unfinished, damaged or of another version: of no use for a report
            if store.fingerprint == fingerprint:
                stores[store.fingerprint] = store
                break
    return list(stores.values())


def training_curves(located: LocatedEvaluation) -> list[TrainingCurve]:
    """Read the training logs of an evaluation's SAE: one curve for each measure, with points in order of steps.

    Where several logs of a resumed run hold a step, the latest counts. Names of measures on validation rows begin with
    ``val_``. Empty where there are no logs.
    """
    curves: dict[str, dict[int, float]] = {}
    if located.run is None:
        return []
    for file in sorted(located.run.glob(_LOG_PATTERN), key=lambda file: (len(file.parent.name), file.parent.name)):
        with file.open(encoding="utf-8", newline="") as lines:
            for line in csv.DictReader(lines):
                for column, text in line.items():
                    name, _, measure = (column or "").rpartition("/")
                    if name == located.sae and text:
                        curves.setdefault(measure, {})[int(float(line["step"]))] = float(text)
    return [
        TrainingCurve(located.evaluation.name, measure, sorted(points), [points[step] for step in sorted(points)])
        for measure, points in curves.items()
    ]


def _evaluation_folders(path: Path) -> Iterator[Path]:
    """Yield `path` if it is an evaluation, else the evaluations below it that no hidden folder contains."""
    if (path / EVALUATION_FILE).is_file():
        yield path
        return
    for pattern in _EVALUATION_PATTERNS:
        for folder in sorted(path.glob(pattern)):
            if (folder / EVALUATION_FILE).is_file() and not any(
                part.startswith(".") for part in folder.relative_to(path).parts
            ):
                yield folder


def _locate(folder: Path) -> LocatedEvaluation:
    """Load an evaluation; its run is the one that contains it, else the one that contains its SAE's folder."""
    evaluation, absolute = Evaluation.load(folder), folder.resolve()
    if absolute.parent.name == EVALUATIONS and (absolute.parents[1] / CONFIG_FILE).is_file():
        return LocatedEvaluation(folder, evaluation, absolute.parents[1], absolute.name)
    source = evaluation.metadata.get("source")  # a path as the user wrote it
    if isinstance(source, str) and Path(source).is_dir():
        sae = Path(source).resolve()
        if sae.parent.name == SAES and (sae.parents[1] / CONFIG_FILE).is_file():
            return LocatedEvaluation(folder, evaluation, sae.parents[1], sae.name)
    return LocatedEvaluation(folder, evaluation)


def _with_unique_names(evaluations: list[LocatedEvaluation]) -> list[LocatedEvaluation]:
    """Prefix names that are equal by their run or parent folder, then number those that still are."""
    names = [located.evaluation.name for located in evaluations]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    for number, located in enumerate(evaluations):
        if names[number] in repeated:
            above = located.run or located.folder.resolve().parent
            if located.run is not None and located.run.name == names[number]:  # a fine-tuned model, named by its run
                above = located.run.parent
            names[number] = f"{above.name}-{names[number]}"
    taken: set[str] = set()
    for number, name in enumerate(names):
        suffix = 2
        while names[number] in taken:
            names[number] = f"{name} ({suffix})"
            suffix += 1
        taken.add(names[number])
    return [
        replace(located, evaluation=replace(located.evaluation, name=name))
        for located, name in zip(evaluations, names, strict=True)
    ]


def _store_candidates(located: LocatedEvaluation) -> Iterator[Path]:
    """Yield the folders with a store manifest in which the store of an evaluation may be."""
    metadata, run = located.evaluation.metadata, located.run
    folders = [located.folder / str(metadata["store_folder"])] if "store_folder" in metadata else []
    if run is not None:
        folders += [run / folder for folder in _stores_in_config(run / CONFIG_FILE)]
        folders += sorted((run / "stores").glob("*"))
    yield from (folder for folder in folders if (folder / MANIFEST).is_file())


def _stores_in_config(file: Path) -> list[str]:
    """Read the paths of the stores in a run's configuration; none where it is of another version or kind."""
    from monoloss.training.config_files import read_config

    try:
        config = read_config(file)
    except InputError:
        return []
    return [folder for folder in (config.validation, config.store) if folder is not None]
