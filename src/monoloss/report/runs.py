"""Runs of a report: evaluations in groups that are compared, each group with a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.result import Evaluation
from monoloss.report.run_metadata import Settings, settings_of


@dataclass(frozen=True)
class ReportRun:
    """One evaluation in a report."""

    key: str
    """Name in the files of the report, such as "run-0"."""
    evaluation: Evaluation
    """Its measures, with all tensors on the CPU. Its name is unique in the report."""
    group: str
    """Name of the group whose runs it is compared with."""
    is_baseline: bool
    """Whether the others of its group are compared with it."""
    settings: Settings
    store_key: str
    """Name of its store in the files of the report, such as "store-0"."""
    store: FeatureStore | None = None
    """Store that it was evaluated on; None where the store was not given."""

    @property
    def name(self) -> str:
        """Name of the evaluation."""
        return self.evaluation.name

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """Data, model, training and origin of the evaluation, as headings with texts."""
        return self.settings.metadata(self.evaluation)


def report_runs(
    evaluations: Sequence[Evaluation],
    stores: Sequence[FeatureStore] = (),
    baseline: str | None = None,
) -> list[ReportRun]:
    """Group evaluations that are compared and choose the baseline of each group.

    A group is one SAE configuration, or one backbone fine-tuned on the same images, evaluated on one store. Its
    baseline is the evaluation named ``baseline`` if the group contains it, else the first whose model was trained
    without MonoLoss, else the first.

    Args:
        evaluations: evaluations with different names.
        stores: the stores that still exist, recognised by their fingerprints.
        baseline: name of the evaluation that the others of its group are compared with.

    Returns:
        A run for each evaluation, in the same order.

    Raises:
        InputError: no evaluation, two with the same name, or no evaluation named ``baseline``.
    """
    names = Counter(evaluation.name for evaluation in evaluations)
    if not names:
        raise InputError("evaluations", "none", "at least one")
    for name, count in names.items():
        if count > 1:
            raise InputError("evaluations", f"{count} with the name {name!r}", "names that differ")
    if baseline is not None and baseline not in names:
        raise InputError("baseline", repr(baseline), f"one of {', '.join(names)}")
    by_fingerprint = {store.fingerprint: store for store in stores}
    evaluations = [_on_cpu(evaluation) for evaluation in evaluations]
    settings = [settings_of(evaluation) for evaluation in evaluations]
    groups = _groups(evaluations, settings)
    baselines = _baselines(evaluations, settings, groups, baseline)
    store_keys: dict[str, str] = {}
    runs = []
    for number, (evaluation, model, group) in enumerate(zip(evaluations, settings, groups, strict=True)):
        fingerprint = str(evaluation.metadata.get("store_fingerprint"))
        runs.append(
            ReportRun(
                f"run-{number}",
                evaluation,
                group,
                baselines[group] == number,
                model,
                store_keys.setdefault(fingerprint, f"store-{len(store_keys)}"),
                by_fingerprint.get(fingerprint),
            )
        )
    return runs


def baseline_of(runs: Sequence[ReportRun], run: ReportRun) -> ReportRun | None:
    """Return the baseline of a run's group; None for a baseline itself."""
    if run.is_baseline:
        return None
    return next(other for other in runs if other.is_baseline and other.group == run.group)


def _on_cpu(evaluation: Evaluation) -> Evaluation:
    """Copy an evaluation with all its tensors on the CPU."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cpu()
        if isinstance(value, Examples | TopClasses):
            return replace(value, **{part.name: moved(getattr(value, part.name)) for part in fields(value)})
        return value

    parts = {part.name: moved(getattr(evaluation, part.name)) for part in fields(evaluation)}
    return replace(
        evaluation, **parts | {"latents": {key: moved(values) for key, values in evaluation.latents.items()}}
    )


def _groups(evaluations: Sequence[Evaluation], settings: Sequence[Settings]) -> list[str]:
    """Return the name of each evaluation's group: the shortest of three titles that no other group has."""
    keys, titles = [], []
    for evaluation, model in zip(evaluations, settings, strict=True):
        metadata, centred = evaluation.metadata, bool(evaluation.metadata.get("centred"))
        keys.append((model.key, str(metadata.get("store_fingerprint")), centred))
        longest = f"{model.long_title}, {metadata.get('store')}" + ", centred" * centred
        titles.append((model.title, model.long_title, longest))
    names: dict[object, str] = {}
    for length in range(3):
        title_of_key = dict(zip(keys, (title[length] for title in titles), strict=True))
        counts = Counter(title_of_key.values())
        names |= {key: title for key, title in title_of_key.items() if key not in names and counts[title] == 1}
    for key, title in zip(keys, titles, strict=True):
        names.setdefault(key, f"{title[-1]} ({len(names) + 1})")
    return [names[key] for key in keys]


def _baselines(
    evaluations: Sequence[Evaluation], settings: Sequence[Settings], groups: Sequence[str], baseline: str | None
) -> dict[str, int]:
    """Return the number of the baseline of each group, by the group's name."""
    baselines: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for number, (evaluation, model, group) in enumerate(zip(evaluations, settings, groups, strict=True)):
        rank = 0 if evaluation.name == baseline else 1 if model.mono_weight == 0 else 2
        if rank < ranks.get(group, 3):
            baselines[group], ranks[group] = number, rank
    return baselines
