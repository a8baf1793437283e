"""How sparse autoencoders are trained: frozen dataclasses, several SAEs by name on one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from monoloss.checks import check_number, check_type
from monoloss.errors import InputError
from monoloss.sae.config import SaeConfig


@dataclass(frozen=True)
class SaeTraining:
    """One SAE of a run and how it is trained; the defaults are the paper's.

    Attributes:
        sae: the variant and its sizes.
        mono_weight: factor of MonoLoss; 0 trains without it. More raises the score and costs reconstruction.
        mono_memory: ``memory`` of :class:`monoloss.MonoLoss`, in [0, 1).
        mono_center: take the mean of the training rows off the embeddings that MonoLoss sees.
        lr: learning rate of Adam.
        adam_eps: epsilon of Adam.
        clip_norm: largest norm of this SAE's gradient; None does not clip (the paper's TopK runs).
        redraw_dead_every_steps: draw dead latents anew so often (the paper's TopK runs: 10 000); None never.
        seed: of the initial weights.

    Example:
        >>> from monoloss import TopKConfig
        >>> SaeTraining(TopKConfig("topk", n_latents=8192, k=64), mono_weight=0.09).lr
        0.0001
    """

    sae: SaeConfig
    mono_weight: float = 0.0
    mono_memory: float = 0.0
    mono_center: bool = False
    lr: float = 1e-4
    adam_eps: float = 6.25e-10
    clip_norm: float | None = 1.0
    redraw_dead_every_steps: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        check_type("sae", self.sae, SaeConfig, "TopKConfig or BatchTopKConfig")
        check_type("mono_center", self.mono_center, bool, "True or False")
        check_number("seed", self.seed, at_least=0, below=2**63, integer=True)
        check_number("mono_weight", self.mono_weight, at_least=0.0)
        check_number("mono_memory", self.mono_memory, at_least=0.0, below=1.0)
        check_number("lr", self.lr, above=0.0)
        check_number("adam_eps", self.adam_eps, above=0.0)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, above=0.0)
        if self.redraw_dead_every_steps is not None:
            check_number("redraw_dead_every_steps", self.redraw_dead_every_steps, at_least=1, integer=True)


@dataclass(frozen=True)
class TrainingConfig:
    """A run: the SAEs by name, and what they share.

    Attributes:
        saes: each SAE under the name that its figures carry (letters, digits and ``_ - . +``).
        batch_size: rows a step; what does not fill a batch is left out of that epoch.
        epochs: passes over the data.
        log_every_steps: optimiser steps between two logged lines.
        seed: of the order of the rows.

    Example:
        >>> from dataclasses import replace
        >>> from monoloss import TopKConfig
        >>> base = SaeTraining(TopKConfig("topk", n_latents=8192, k=64))
        >>> TrainingConfig({"base": base, "mono": replace(base, mono_weight=0.09)}).batch_size
        2048
    """

    saes: Mapping[str, SaeTraining]
    batch_size: int = 2048
    epochs: int = 50
    log_every_steps: int = 50
    seed: int = 42

    def __post_init__(self) -> None:
        check_type("saes", self.saes, Mapping, "a mapping from names to SaeTraining")
        if not self.saes:
            raise InputError("saes", "no SAE", "at least one")
        check_number("seed", self.seed, at_least=0, below=2**63, integer=True)
        for name, training in self.saes.items():
            check_type("saes", name, str, "strings as names")
            check_type(f"saes[{name!r}]", training, SaeTraining, "SaeTraining(sae, ...)")
            if not name or not all(char.isalnum() or char in "_-.+" for char in name) or name.startswith("."):
                raise InputError("saes", f"the name {name!r}", "names of letters, digits and _ - . +, no dot first")
        for field in ("batch_size", "epochs", "log_every_steps"):
            check_number(field, getattr(self, field), at_least=1, integer=True)
