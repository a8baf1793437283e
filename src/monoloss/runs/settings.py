"""The settings that runs of every kind share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, runtime_checkable

from monoloss.checks import check_choice, check_number, check_type

_COUNTS = ("epochs", "batch_size", "accumulate_batches", "log_every_steps", "keep_checkpoints")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The fields that the configurations of all runs share."""

    epochs: int
    """Passes over the data."""

    batch_size: int
    """Rows, or images, that go through the model, and MonoLoss, at a time: over all processes together."""

    accumulate_batches: int = 1
    """Batches whose mean gradient makes one optimiser step; MonoLoss is computed for each batch alone. Batches that do
    not fill a step are left out of that epoch."""

    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """"bf16-mixed": the model's products run in bfloat16, MonoLoss as before; a JumpReLU encoder, whose bandwidth is
    finer than that, runs in float32."""

    log_every_steps: int = 50
    """Optimiser steps between two logged lines, which show the last batch of their step."""

    checkpoint_every_steps: int | None = None
    """Optimiser steps between two checkpoints; None saves by time alone."""

    checkpoint_every_minutes: float | None = 10.0
    """Time between two checkpoints; None saves by steps alone. At the end, and when Ctrl-C or SIGTERM stops the run, it
    is saved in any case."""

    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""

    loggers: Sequence[Literal["tensorboard", "wandb"]] = ()
    """Where measures are logged besides ``metrics.csv``."""

    seed: int = 42
    """Seed of everything random in the run: order of the rows, new layers, augmentation."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_number(name, getattr(self, name), at_least=1, integer=True)
        if self.checkpoint_every_steps is not None:
            check_number("checkpoint_every_steps", self.checkpoint_every_steps, at_least=1, integer=True)
        if self.checkpoint_every_minutes is not None:
            check_number("checkpoint_every_minutes", self.checkpoint_every_minutes, above=0.0)
        check_choice("precision", self.precision, ("32-true", "bf16-mixed"))
        check_type("loggers", self.loggers, list | tuple, "a list of 'tensorboard', 'wandb' or both")
        for logger in self.loggers:
            check_choice("loggers", logger, ("tensorboard", "wandb"))
        object.__setattr__(self, "loggers", tuple(dict.fromkeys(self.loggers)))
        check_number("seed", self.seed, at_least=0, below=2**63, integer=True)


def shared_last(content: Mapping[str, Any]) -> dict[str, Any]:
    """Reorder the fields of a configuration: first those of its kind of run, then those of `RunSettings`."""
    shared = {field.name for field in fields(RunSettings)}
    return dict(sorted(content.items(), key=lambda item: item[0] in shared))


@runtime_checkable
class ResumableBatches(Protocol):
    """Batches of an epoch, iterable, whose position can be saved and restored."""

    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102
