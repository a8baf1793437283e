"""Shuffled batches of a feature store, whose position can be saved and restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from monoloss.checks import check_number
from monoloss.data.store import FeatureStore
from monoloss.data.store.read_ahead import read_ahead
from monoloss.data.transfer import on_device, pinned
from monoloss.errors import InputError
from monoloss.runs.shuffling import block_shuffled, shuffled


class ShuffledBatches:
    """Batches of ``batch_size`` rows in an order determined by ``(seed, epoch)`` alone; a new order every epoch.

    Each iteration yields the rest of the current epoch, ``(batch_size, d)`` a batch. Rows that do not fill a batch, and
    batches that do not fill a step of ``accumulate`` batches, are left out of that epoch. The state holds epoch,
    number of batches yielded and ``order``, so that a run resumes in the same order on a machine with other memory.

    ``order`` is chosen at its first use: "rows" (``shuffled``) if the store is in memory then; otherwise "blocks"
    (``block_shuffled``), which a disk reads fast, a batch ahead in a thread. Up to 65536 rows the two are the same.

    After ``to`` batches come on a device; for a GPU the next one is read and copied while the caller works on one.

    Raises:
        InputError: the batches of a step are larger than the data.
    """

    def __init__(self, store: FeatureStore, batch_size: int, seed: int, accumulate: int = 1) -> None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
        check_number("accumulate", accumulate, at_least=1, integer=True)
        if batch_size > store.n_rows:
            raise InputError("batch_size", batch_size, f"at most the number of training rows, {store.n_rows}")
        if batch_size * accumulate > store.n_rows:
            expected = f"at most the number of training rows, {store.n_rows}"
            raise InputError("accumulate_batches", f"{accumulate} of {batch_size} rows", expected)
        self.store, self.batch_size, self.seed, self.accumulate = store, batch_size, seed, accumulate
        self.epoch = 0
        self.n_given = 0
        self._order: str | None = None
        self._device: torch.device | None = None

    def __len__(self) -> int:
        return self.store.n_rows // (self.batch_size * self.accumulate) * self.accumulate

    @property
    def order(self) -> str:
        """Kind of the order, "rows" or "blocks"; fixed from the first use on."""
        if self._order is None:
            self._order = "rows" if self.store.is_loaded else "blocks"
        return self._order

    def __iter__(self) -> Iterator[Float[Tensor, "n d"]]:
        order = _ORDERS[self.order](self.store.n_rows, self.seed, self.epoch)
        first = self.n_given
        parts = (order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(first, len(self)))
        device = self.store.device if self._device is None else self._device
        # For a GPU in a thread, in memory too: gathering and pinning take from its time, as a GPU alone can show
        to_gpu = device.type == "cuda" and self.store.device.type == "cpu"
        batches = read_ahead(self._rows, parts, ahead=to_gpu or not self.store.is_loaded)
        for position, batch in enumerate(on_device(batches, device), start=first):  # counts none that is read ahead
            self.n_given = position + 1
            if self.n_given == len(self):  # before the last batch: a sized iterator is never asked again
                self.epoch, self.n_given = self.epoch + 1, 0
            yield batch

    def to(self, device: torch.device) -> ShuffledBatches:
        """Give the batches on ``device`` from the next iteration on, instead of where the store has its rows."""
        self._device = device
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the iteration, as plain values."""
        position = {"seed": self.seed, "epoch": self.epoch, "n_given": self.n_given}
        return {**self._identity(), **position, "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the position of another iteration over the same data.

        Raises:
            InputError: the state is of another store or batch size, or names an unknown order.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise InputError(f"state[{name!r}]", state.get(name), f"that of these batches, {value}")
        order = state.get("order", "rows")  # old states lack it
        if order not in _ORDERS:
            raise InputError("state['order']", order, f"one of {', '.join(map(repr, _ORDERS))}")
        self._order = order
        self.seed, self.epoch, self.n_given = state["seed"], state["epoch"], state["n_given"]

    def _rows(self, rows: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Read rows by number; in pinned memory if they are copied to a GPU."""
        return pinned(self.store.rows(rows), self._device)

    def _identity(self) -> dict[str, Any]:
        """Return the settings that a state to load must share."""
        return {"batch_size": self.batch_size, "accumulate": self.accumulate, "store": self.store.fingerprint}


_ORDERS: Mapping[str, Callable[[int, int, int], Tensor]] = {"rows": shuffled, "blocks": block_shuffled}
