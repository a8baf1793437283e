"""The base class of the metrics: a torchmetrics metric whose states are the fields of a dataclass of sums."""

from __future__ import annotations

import sys
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

    In addition to torchmetrics: two states merge by a rule of the sums (``_merge``); processes reduce their sums
    (``_reduce``) instead of gathering those of all ranks; the sums stay float64 when the model around the metric is
    cast, and on the CPU if the device has no float64.
    """

    full_state_update = False
    is_differentiable = False
    _sums_type: ClassVar[type[Any]]

    def __init__(self, empty: SumsT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for field in fields(self._sums_type):
            state = getattr(empty, field.name)
            # The default, to which reset returns, is one number expanded to the shape of the state: no second memory
            self.add_state(field.name, state.reshape(-1)[0].clone().expand(state.shape), dist_reduce_fx="sum")
            setattr(self, field.name, state)

    @property
    def sums(self) -> SumsT:
        """The sums of this process over all updates."""
        values = {field.name: getattr(self, field.name) for field in fields(self._sums_type)}
        result: SumsT = self._sums_type(**values)
        return result

    def _sums_to_change(self) -> SumsT:
        """Return the sums for an update in place; first copy those that somebody else holds, such as a saved state."""
        for field in fields(self._sums_type):
            if _is_shared(self, field.name):
                setattr(self, field.name, getattr(self, field.name).clone())
        return self.sums

    def reset(self) -> None:
        """Return to the state before the first update: in place, which is faster, unless somebody else holds it."""
        defaults, self._defaults = self._defaults, {}
        try:
            super().reset()
        finally:
            self._defaults = defaults
        for name, default in defaults.items():
            is_shared = _is_shared(self, name)
            state, empty = getattr(self, name), torch.as_tensor(default)
            can_change = torch.is_inference_mode_enabled() or not state.is_inference()
            if state.shape == empty.shape and can_change and not is_shared:
                state.copy_(empty)
            else:
                setattr(self, name, empty.clone().to(state.device))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the rows of another metric, given as the metric or as its ``metric_state``.

        Raises:
            InputError: the other metric has other sizes.
        """
        check_type("incoming_state", incoming_state, dict | Metric, "a metric or its state")
        incoming = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        for name, state in self.metric_state.items():
            other = incoming.get(name)
            if not isinstance(state, Tensor) or not isinstance(other, Tensor) or other.shape != state.shape:
                got = tuple(other.shape) if isinstance(other, Tensor) else other
                expected = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else "a state"
                raise InputError(f"incoming_state[{name!r}]", got, expected)
        super().merge_state(incoming_state)
        self._update_count += 1
        self._computed = None

    def _merge(self, left: SumsT, right: SumsT) -> SumsT:
        """Return the sums over the rows of ``left`` and ``right``."""
        raise NotImplementedError

    def _reduce(self, sums: SumsT, group: dist.ProcessGroup | None) -> SumsT:
        """Return the sums over the rows of all processes of ``group``, from the sums of this process."""
        raise NotImplementedError

    def _set_sums(self, sums: SumsT) -> None:
        """Write sums into the states of the metric."""
        for field in fields(self._sums_type):
            setattr(self, field.name, getattr(sums, field.name))

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Merge the incoming sums into the states; torchmetrics calls it in ``merge_state`` and ``forward``."""
        device = sums_device(self.device)
        names = [field.name for field in fields(self._sums_type)]
        incoming = self._sums_type(**{name: incoming_state[name].to(device) for name in names})
        self._set_sums(self._merge(incoming, self.sums))

    def _sync_dist(self, dist_sync_fn: object = None, process_group: dist.ProcessGroup | None = None) -> None:
        """Replace the states by those over all processes; torchmetrics calls it before ``compute``."""
        self._set_sums(self._reduce(self.sums, process_group or self.process_group))

    def _synced(self, summary: Callable[[SumsT], Any]) -> Any:
        """Return ``summary(sums)`` for the sums over all processes; the states are then those of this process again."""
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return summary(self.sums)

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``compute`` as torchmetrics does, but return shape ``(1,)``, not a scalar, for one latent."""
        squeezed = super()._wrap_compute(compute)

        @wraps(compute)
        def unsqueezed(*args: Any, **kwargs: Any) -> Any:
            value = squeezed(*args, **kwargs)
            return value.reshape(-1) if getattr(self, "average", None) == "none" else value

        return unsqueezed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self._defaults:  # torchmetrics does not copy the tensors of the dict, and updates change them
            if prefix + name in state_dict:
                state_dict[prefix + name] = state_dict[prefix + name].clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move states and buffers to the device that ``fn`` moves to, without a change of their dtype."""
        buffers = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, exclude_state=tuple(self._defaults))
        device = sums_device(self.device)
        for name, buffer in buffers.items():
            self._buffers[name] = buffer.to(self.device)
        for name in self._defaults:
            self._defaults[name] = torch.as_tensor(self._defaults[name]).to(device)
            setattr(self, name, getattr(self, name).to(device))
        self._computed = None  # a cached result is cast too: compute it from the sums again
        return self


def _is_shared(owner: object, name: str) -> bool:
    """Return whether a tensor among the attributes is held by somebody else too: itself, or as an alias or a view."""
    tensor = getattr(owner, name)
    names = sys.getrefcount(tensor) - 2  # without this variable and the argument
    aliases = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - 1  # noqa: SLF001 - without this call's own
    return names > 1 or aliases > 1
