"""The configuration of a training run: its SAEs by name, and how each is trained, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from monoloss.checks import check_choice, check_number, check_type
from monoloss.errors import InputError
from monoloss.runs.settings import RunSettings
from monoloss.sae.config import SAE_CONFIGS, JumpReluConfig, SaeConfig

MONO_OPTIONS: Mapping[str, object] = {"mono_memory": 0.0, "mono_center": False, "mono_embeddings": "inputs"}
_LONGEST_NAME = 100  # characters; the name of a SAE becomes that of a folder


@dataclass(frozen=True)
class SaeTraining:
    """One SAE of a run and how it is trained; the defaults are the paper's.

    Attributes:
        sae: the variant and its sizes.
        mono_weight: factor of MonoLoss; 0 trains without it. More raises the score and costs reconstruction.
        mono_memory: ``memory`` of :class:`monoloss.MonoLoss`, in [0, 1).
        mono_center: take the mean of the training rows off the embeddings that MonoLoss sees.
        mono_embeddings: the rows that MonoLoss compares: "inputs", at length 1; or "scaled", the rows as the encoder
            gets them (standardised, as in the authors' JumpReLU runs).
        lr: highest learning rate of Adam.
        warmup_steps: steps over which the learning rate rises to ``lr``.
        lr_schedule: the learning rate after the warm-up: "constant", or falling to 0 at the end of the run, along a
            line ("linear") or half a cosine ("cosine").
        threshold_lr: learning rate of JumpReLU's thresholds; None: ``lr``. Few entries are near a threshold, so with
            ``lr`` it moves slowly; to reach ``target_l0`` in a short run takes 100 times as much.
        adam_eps: epsilon of Adam.
        clip_norm: largest norm of this SAE's gradient; None does not clip (the paper's TopK runs).
        redraw_dead_every_steps: steps between two redraws of the dead latents' weights (the paper's TopK runs: 10 000);
            None: never.
        seed: seed of the initial weights.

    Example:
        >>> from monoloss import TopKConfig
        >>> SaeTraining(TopKConfig("topk", n_latents=8192, k=64), mono_weight=0.09).lr
        0.0001
    """

    sae: SaeConfig
    mono_weight: float = 0.0
    mono_memory: float = 0.0
    mono_center: bool = False
    mono_embeddings: Literal["inputs", "scaled"] = "inputs"
    lr: float = 1e-4
    threshold_lr: float | None = None
    warmup_steps: int = 0
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    adam_eps: float = 6.25e-10
    clip_norm: float | None = 1.0
    redraw_dead_every_steps: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        check_type("sae", self.sae, SaeConfig, SAE_CONFIGS)
        check_type("mono_center", self.mono_center, bool, "True or False")
        check_choice("mono_embeddings", self.mono_embeddings, ("inputs", "scaled"))
        check_choice("lr_schedule", self.lr_schedule, ("constant", "linear", "cosine"))
        check_number("warmup_steps", self.warmup_steps, at_least=0, integer=True)
        check_number("seed", self.seed, at_least=0, below=2**63, integer=True)
        check_number("mono_weight", self.mono_weight, at_least=0.0)
        check_number("mono_memory", self.mono_memory, at_least=0.0, below=1.0)
        check_number("lr", self.lr, above=0.0)
        if self.threshold_lr is not None:
            check_number("threshold_lr", self.threshold_lr, above=0.0)
        check_number("adam_eps", self.adam_eps, above=0.0)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, above=0.0)
        if self.redraw_dead_every_steps is not None:
            check_number("redraw_dead_every_steps", self.redraw_dead_every_steps, at_least=1, integer=True)


@dataclass(frozen=True)
class TrainingConfig(RunSettings):
    """The configuration of a run: the SAEs by name, and the settings that they share.

    Attributes:
        saes: the SAEs by the names under which they are logged and saved (letters, digits and ``_ - . +``).
        validate_every_steps: optimiser steps between two evaluations on the validation store; None for one at the end.

    The other fields are those of every run, :class:`monoloss.runs.settings.RunSettings`.

    Example:
        >>> from dataclasses import replace
        >>> from monoloss import TopKConfig
        >>> base = SaeTraining(TopKConfig("topk", n_latents=8192, k=64))
        >>> TrainingConfig({"base": base, "mono": replace(base, mono_weight=0.09)}).batch_size
        2048
    """

    saes: Mapping[str, SaeTraining]
    _: KW_ONLY
    batch_size: int = 2048
    epochs: int = 50
    validate_every_steps: int | None = None

    def __post_init__(self) -> None:
        check_type("saes", self.saes, Mapping, "a mapping from names to SaeTraining")
        if not self.saes:
            raise InputError("saes", "no SAE", "at least one")
        _check_names(self.saes)
        for name, training in self.saes.items():
            check_type(f"saes[{name!r}]", training, SaeTraining, "SaeTraining(sae, ...)")
            _check_together(f"saes.{name}", training)
        super().__post_init__()
        if self.validate_every_steps is not None:
            check_number("validate_every_steps", self.validate_every_steps, at_least=1, integer=True)


def _check_names(saes: Mapping[str, SaeTraining]) -> None:
    """Refuse names that cannot name folders, also on a file system that ignores case."""
    for name in saes:
        check_type(f"saes: the name {name!r}", name, str, "text")
        if len(name) > _LONGEST_NAME:
            raise InputError("saes", f"a name of {len(name)} characters", f"at most {_LONGEST_NAME}")
        if not name or not all(char.isalnum() or char in "_-.+" for char in name) or name.startswith("."):
            raise InputError("saes", f"the name {name!r}", "names of letters, digits and _ - . +, no dot first")
    if len({name.lower() for name in saes}) < len(saes):
        raise InputError("saes", "names that differ in case only", "others: they become names of folders")


def _check_together(where: str, training: SaeTraining) -> None:
    """Refuse options of one SAE that have no effect or contradict each other; ``where`` is its dotted key."""
    for option, unset in MONO_OPTIONS.items():
        value = getattr(training, option)
        if value != unset and training.mono_weight == 0:
            raise InputError(f"{where}.{option}", value, "mono_weight above 0 to make use of it")
    if training.threshold_lr is not None and not isinstance(training.sae, JumpReluConfig):
        expected = f"none for the variant {training.sae.variant!r}, which has no thresholds to learn"
        raise InputError(f"{where}.threshold_lr", training.threshold_lr, expected)
    if training.mono_center and training.mono_embeddings == "scaled":
        expected = "mono_embeddings 'inputs': the mean that it takes off is that of the inputs"
        raise InputError(f"{where}.mono_center", True, expected)
    if training.sae.inputs.center and not training.sae.inputs.unit_norm:
        expected = "unit_norm too: the store's mean is that of unit rows"
        raise InputError(f"{where}.sae.inputs.center", "True without unit_norm", expected)
