"""Evaluations on the disk, by the folders that a user names, with the stores and logs that belong to them."""

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

_PLACES = ("*", f"{EVALUATIONS}/*", f"*/{EVALUATIONS}/*")  # of evaluations, below a folder
_LOGS = "logs/version_*/metrics.csv"


@dataclass(frozen=True)
class LocatedEvaluation:
    """An evaluation on the disk.

    Attributes:
        folder: of its files.
        evaluation: what they say.
        run: the folder of the run that its SAE comes from; None where that is not known or gone.
        sae: name of its SAE in that run.
    """

    folder: Path
    evaluation: Evaluation
    run: Path | None = None
    sae: str = ""


def find_evaluations(paths: Sequence[str | Path]) -> list[LocatedEvaluation]:
    """Load the evaluations in some folders, each once, under names that differ.

    A folder is that of one evaluation, of a run, or one with evaluations or runs right below it. Of equal names each
    gets that of its run before it, else of its parent folder; a number where that is not enough.

    Raises:
        InputError: nothing is there, or an evaluation that cannot be read.
    """
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = list(_evaluations_at(path))
        if not found:
            got = "no such folder" if not path.exists() else "no evaluation" if path.is_dir() else "a file"
            raise InputError(str(path), got, "a run or a folder with evaluations")
        folders |= {folder.resolve(): folder for folder in found if folder.resolve() not in folders}
    if not folders:
        raise InputError("runs", "none", "at least one")
    return _named_apart([_locate(folder) for folder in folders.values()])


def find_stores(evaluations: Sequence[LocatedEvaluation], given: Sequence[str | Path] = ()) -> list[FeatureStore]:
    """Open the stores that evaluations were made on, as far as they still exist; their fingerprints must match.

    Looked for where a user says, where the evaluation and the configuration of its run say, and below its run.

    Args:
        evaluations: of :func:`find_evaluations`.
        given: folders of stores.

    Raises:
        InputError: a given folder is no store, or one that none of the evaluations was made on.
    """
    wanted = {str(one.evaluation.metadata.get("store_fingerprint")) for one in evaluations}
    stores: dict[str, FeatureStore] = {}
    for path in given:
        store = FeatureStore(path)
        if store.fingerprint not in wanted:
            raise InputError("store", f"{path}, on which no evaluation was made", "a store that one was made on")
        stores[store.fingerprint] = store
    for one in evaluations:
        if one.evaluation.metadata.get("store_fingerprint") in stores:
            continue
        for folder in _places_of_store(one):
            try:
                store = FeatureStore(folder)
            except InputError:
                continue  # unfinished, damaged or of another version: as good as gone
            if store.fingerprint == one.evaluation.metadata.get("store_fingerprint"):
                stores[store.fingerprint] = store
                break
    return list(stores.values())


def training_curves(located: LocatedEvaluation) -> list[TrainingCurve]:
    """Read the training logs of an evaluation's SAE, a curve a measure; a resumed run's later logs replace equal steps.

    Measures on validation rows begin with ``val_``. Empty where there are no logs.
    """
    curves: dict[str, dict[int, float]] = {}
    if located.run is None:
        return []
    for file in sorted(located.run.glob(_LOGS), key=lambda file: (len(file.parent.name), file.parent.name)):
        with file.open(encoding="utf-8", newline="") as lines:
            for line in csv.DictReader(lines):
                for column, text in line.items():
                    name, _, figure = (column or "").rpartition("/")
                    if name == located.sae and text:
                        curves.setdefault(figure, {})[int(float(line["step"]))] = float(text)
    return [
        TrainingCurve(located.evaluation.name, figure, sorted(points), [points[step] for step in sorted(points)])
        for figure, points in curves.items()
    ]


def _evaluations_at(path: Path) -> Iterator[Path]:
    if (path / EVALUATION_FILE).is_file():
        yield path
        return
    for pattern in _PLACES:
        for folder in sorted(path.glob(pattern)):
            if (folder / EVALUATION_FILE).is_file() and not any(
                part.startswith(".") for part in folder.relative_to(path).parts
            ):
                yield folder


def _locate(folder: Path) -> LocatedEvaluation:
    evaluation, whole = Evaluation.load(folder), folder.resolve()
    if whole.parent.name == EVALUATIONS and (whole.parents[1] / CONFIG_FILE).is_file():
        return LocatedEvaluation(folder, evaluation, whole.parents[1], whole.name)
    source = evaluation.metadata.get("source")  # the folder of a SAE, as the user wrote it
    if isinstance(source, str) and Path(source).is_dir():
        sae = Path(source).resolve()
        if sae.parent.name == SAES and (sae.parents[1] / CONFIG_FILE).is_file():
            return LocatedEvaluation(folder, evaluation, sae.parents[1], sae.name)
    return LocatedEvaluation(folder, evaluation)


def _named_apart(located: list[LocatedEvaluation]) -> list[LocatedEvaluation]:
    """Rename evaluations whose names are equal: after their run or parent folder, then with a number."""
    names = [one.evaluation.name for one in located]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    for number, one in enumerate(located):
        if names[number] in repeated:
            above = one.run or one.folder.resolve().parent
            if one.run is not None and one.run.name == names[number]:  # of a fine-tuned model: its name already
                above = one.run.parent
            names[number] = f"{above.name}-{names[number]}"
    taken: set[str] = set()
    for number, name in enumerate(names):
        again = 2
        while names[number] in taken:
            names[number] = f"{name} ({again})"
            again += 1
        taken.add(names[number])
    return [
        replace(one, evaluation=replace(one.evaluation, name=name)) for one, name in zip(located, names, strict=True)
    ]


def _places_of_store(one: LocatedEvaluation) -> Iterator[Path]:
    """Where the store of an evaluation may be; folders that hold a manifest."""
    metadata, run = one.evaluation.metadata, one.run
    places = [one.folder / str(metadata["store_folder"])] if "store_folder" in metadata else []
    if run is not None:
        places += [run / folder for folder in _stores_in_config(run / CONFIG_FILE)]
        places += sorted((run / "stores").glob("*"))
    yield from (place for place in places if (place / MANIFEST).is_file())


def _stores_in_config(file: Path) -> list[str]:
    from monoloss.training.config_files import read_config

    try:
        config = read_config(file)
    except InputError:  # of another version
        return []
    return [folder for folder in (config.validation, config.store) if folder is not None]
