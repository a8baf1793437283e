"""What every kind of run says of its engine and its checkpoints, and what its batches can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable


@runtime_checkable
class RunSettings(Protocol):
    """The fields that configurations of runs share; :class:`monoloss.TrainingConfig` says what they mean."""

    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def accumulate_batches(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> Literal["32-true", "bf16-mixed"]: ...  # noqa: D102
    @property
    def log_every_steps(self) -> int: ...  # noqa: D102
    @property
    def checkpoint_every_steps(self) -> int | None: ...  # noqa: D102
    @property
    def checkpoint_every_minutes(self) -> float | None: ...  # noqa: D102
    @property
    def keep_checkpoints(self) -> int: ...  # noqa: D102
    @property
    def loggers(self) -> Sequence[Literal["tensorboard", "wandb"]]: ...  # noqa: D102


@runtime_checkable
class ResumableBatches(Protocol):
    """Batches of an epoch that know where they stand."""

    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102
