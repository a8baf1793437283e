"""What a report is made of: evaluations in groups that are compared, each group with its baseline."""

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
    """One evaluation in a report.

    Attributes:
        key: its name in the files of the report, "run-0".
        evaluation: its figures; no other of the report has its name.
        group: what it is compared within: its SAE, or what was fine-tuned on which images, on its store.
        is_baseline: the others of its group are compared with it.
        settings: of its model, as far as they are known.
        store_key: name of its store in the files of the report, "store-0".
        store: the rows that it was judged on; None where they are gone.
    """

    key: str
    evaluation: Evaluation
    group: str
    is_baseline: bool
    settings: Settings
    store_key: str
    store: FeatureStore | None = None

    @property
    def name(self) -> str:
        """That of its evaluation."""
        return self.evaluation.name

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What was run, as labels and texts."""
        return self.settings.metadata(self.evaluation)


def report_runs(
    evaluations: Sequence[Evaluation],
    stores: Sequence[FeatureStore] = (),
    baseline: str | None = None,
) -> list[ReportRun]:
    """Evaluations in groups that are compared, each with its baseline.

    A group is one SAE configuration, or one backbone fine-tuned on the same images, on one store. Its baseline is the
    evaluation named ``baseline`` if that is one of it, else the first whose model was trained without MonoLoss, else
    its first.

    Args:
        evaluations: their names differ.
        stores: as many of their stores as there are.
        baseline: name of the one that others are compared with.

    Raises:
        InputError: no evaluation, two of one name, or a baseline that is none of them.
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
    first = _baselines(evaluations, settings, groups, baseline)
    store_keys: dict[str, str] = {}
    runs = []
    for number, (evaluation, known, group) in enumerate(zip(evaluations, settings, groups, strict=True)):
        fingerprint = str(evaluation.metadata.get("store_fingerprint"))
        runs.append(
            ReportRun(
                f"run-{number}",
                evaluation,
                group,
                first[group] == number,
                known,
                store_keys.setdefault(fingerprint, f"store-{len(store_keys)}"),
                by_fingerprint.get(fingerprint),
            )
        )
    return runs


def baseline_of(runs: Sequence[ReportRun], run: ReportRun) -> ReportRun | None:
    """The one that a run is compared with; None for a baseline itself."""
    if run.is_baseline:
        return None
    return next(other for other in runs if other.is_baseline and other.group == run.group)


def _on_cpu(evaluation: Evaluation) -> Evaluation:
    """With all tensors on the CPU, wherever they were computed."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cpu()
        if isinstance(value, Examples | TopClasses):
            return replace(value, **{part.name: moved(getattr(value, part.name)) for part in fields(value)})
        return value

    parts = {part.name: moved(getattr(evaluation, part.name)) for part in fields(evaluation)}
    return replace(evaluation, **parts | {"latents": {name: moved(one) for name, one in evaluation.latents.items()}})


def _groups(evaluations: Sequence[Evaluation], settings: Sequence[Settings]) -> list[str]:
    """The name of the group of each: as short as tells the groups of this report apart."""
    keys, texts = [], []
    for evaluation, known in zip(evaluations, settings, strict=True):
        metadata, centred = evaluation.metadata, bool(evaluation.metadata.get("centred"))
        keys.append((known.key, str(metadata.get("store_fingerprint")), centred))
        longest = f"{known.long_title}, {metadata.get('store')}" + ", centred" * centred
        texts.append((known.title, known.long_title, longest))
    names: dict[object, str] = {}
    for length in range(3):
        found = dict(zip(keys, (text[length] for text in texts), strict=True))
        counts = Counter(found.values())
        names |= {key: text for key, text in found.items() if key not in names and counts[text] == 1}
    for key, text in zip(keys, texts, strict=True):
        names.setdefault(key, f"{text[-1]} ({len(names) + 1})")
    return [names[key] for key in keys]


def _baselines(
    evaluations: Sequence[Evaluation], settings: Sequence[Settings], groups: Sequence[str], baseline: str | None
) -> dict[str, int]:
    """For each group the number of the evaluation that the others are compared with."""
    found: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for number, (evaluation, known, group) in enumerate(zip(evaluations, settings, groups, strict=True)):
        rank = 0 if evaluation.name == baseline else 1 if known.mono_weight == 0 else 2
        if rank < ranks.get(group, 3):
            found[group], ranks[group] = number, rank
    return found
