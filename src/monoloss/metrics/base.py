"""The torchmetrics class that all metrics share: a metric whose states are a dataclass of sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

from monoloss.checks import check_type
from monoloss.errors import InputError
from monoloss.precision import sums_device

SumsT = TypeVar("SumsT")


class SumsMetric(Metric, Generic[SumsT]):
    """A metric whose states are the fields of one dataclass of float64 sums.

    What torchmetrics does not do by itself: two states merge by the sums' own rule; processes reduce instead of
    gathering every rank's copy; the sums stay float64 whatever the model around them is cast to, and live on the CPU
    where the device has no float64.
    """

    full_state_update = False
    is_differentiable = False
    _sums_type: ClassVar[type[Any]]

    def __init__(self, empty: SumsT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for field in fields(self._sums_type):
            state = getattr(empty, field.name)
            # The default is one number seen as many, so that what reset goes back to takes no memory of its size
            self.add_state(field.name, state.reshape(-1)[0].clone().expand(state.shape), dist_reduce_fx="sum")
            setattr(self, field.name, state)

    @property
    def sums(self) -> SumsT:
        """The sums so far, of this process; the next ``update`` may change them in place."""
        values = {field.name: getattr(self, field.name) for field in fields(self._sums_type)}
        result: SumsT = self._sums_type(**values)
        return result

    def reset(self) -> None:
        """As before the first update. Sums are emptied in place: to make new ones takes longer than a batch."""
        defaults, self._defaults = self._defaults, {}
        try:
            super().reset()
        finally:
            self._defaults = defaults
        for name, default in defaults.items():
            state, empty = getattr(self, name), torch.as_tensor(default)
            can_change = torch.is_inference_mode_enabled() or not state.is_inference()
            if state.shape == empty.shape and can_change:
                state.copy_(empty)
            else:
                setattr(self, name, empty.clone().to(state.device))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take over the rows that another metric of the same sizes has seen.

        Raises:
            InputError: the other metric has other sizes.
        """
        check_type("incoming_state", incoming_state, dict | Metric, "a metric or its state")
        state = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        for name, mine in self.metric_state.items():
            theirs = state.get(name)
            if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor) or theirs.shape != mine.shape:
                got = tuple(theirs.shape) if isinstance(theirs, Tensor) else theirs
                expected = f"shape {tuple(mine.shape)}" if isinstance(mine, Tensor) else "a state"
                raise InputError(f"incoming_state[{name!r}]", got, expected)
        super().merge_state(incoming_state)
        self._update_count += 1
        self._computed = None

    def _merge(self, left: SumsT, right: SumsT) -> SumsT:
        raise NotImplementedError

    def _reduce(self, sums: SumsT, group: dist.ProcessGroup | None) -> SumsT:
        raise NotImplementedError

    def _take(self, sums: SumsT) -> None:
        for field in fields(self._sums_type):
            setattr(self, field.name, getattr(sums, field.name))

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        device = sums_device(self.device)
        names = [field.name for field in fields(self._sums_type)]
        self._take(self._merge(self._sums_type(**{name: incoming_state[name].to(device) for name in names}), self.sums))

    def _sync_dist(self, dist_sync_fn: object = None, process_group: dist.ProcessGroup | None = None) -> None:
        self._take(self._reduce(self.sums, process_group or self.process_group))

    def _synced(self, summary: Callable[[SumsT], Any]) -> Any:
        """What ``summary`` makes of the sums of all processes."""
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return summary(self.sums)

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        squeezed = super()._wrap_compute(compute)  # torchmetrics makes a scalar of one element

        @wraps(compute)
        def whole(*args: Any, **kwargs: Any) -> Any:
            value = squeezed(*args, **kwargs)
            return value.reshape(-1) if getattr(self, "average", None) == "none" else value

        return whole

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self._defaults:  # torchmetrics takes the very tensors of the dict, and updates change them in place
            if prefix + name in state_dict:
                state_dict[prefix + name] = state_dict[prefix + name].clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, exclude_state=tuple(self._defaults))
        device = sums_device(self.device)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(self.device)
        for name in self._defaults:
            self._defaults[name] = torch.as_tensor(self._defaults[name]).to(device)
            setattr(self, name, getattr(self, name).to(device))
        self._computed = None  # cast too, if it was kept: computed again from the sums
        return self
