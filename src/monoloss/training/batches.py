"""Shuffled batches of a feature store: an iterable that knows where it is and can go on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from monoloss.checks import check_number
from monoloss.data.store import FeatureStore
from monoloss.data.store.read_ahead import read_ahead
from monoloss.errors import InputError
from monoloss.runs.shuffling import block_shuffled, shuffled


class ShuffledBatches:
    """Batches of ``batch_size`` rows in an order that follows from ``(seed, epoch)`` alone; a new order every epoch.

    Iterating gives the rest of the current epoch, then the next one begins. Rows that do not fill a batch, and batches
    that do not fill a step of ``accumulate`` batches, are left out of that epoch. State: epoch, batches given, and
    which order it is, so that a run goes on in its own order on a machine with more or less memory, too.

    ``order`` is settled where it is first needed: "rows", any row beside any other, if the store is loaded then; else
    "blocks" (``block_shuffled``), which a disk reads at speed, a batch ahead in a thread. Stores of up to 65536
    rows have one order for both.

    Raises:
        InputError: the batches of a step are larger than the data.
    """

    def __init__(self, store: FeatureStore, batch_size: int, seed: int, accumulate: int = 1) -> None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
        check_number("accumulate", accumulate, at_least=1, integer=True)
        if batch_size > store.n_rows:
            raise InputError("batch_size", batch_size, f"at most the rows there are to train on, {store.n_rows}")
        if batch_size * accumulate > store.n_rows:
            expected = f"batches that hold no more than the rows there are to train on, {store.n_rows}"
            raise InputError("accumulate_batches", f"{accumulate} of {batch_size} rows", expected)
        self.store, self.batch_size, self.seed, self.accumulate = store, batch_size, seed, accumulate
        self.epoch = 0
        self.n_given = 0
        self._order: str | None = None

    def __len__(self) -> int:
        return self.store.n_rows // (self.batch_size * self.accumulate) * self.accumulate

    @property
    def order(self) -> str:
        """Which order it is: "rows" or "blocks"; from here on it stays."""
        if self._order is None:
            self._order = "rows" if self.store.is_loaded else "blocks"
        return self._order

    def __iter__(self) -> Iterator[Float[Tensor, "n d"]]:
        order = _ORDERS[self.order](self.store.n_rows, self.seed, self.epoch)
        first = self.n_given
        parts = (order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(first, len(self)))
        batches = read_ahead(self.store.rows, parts, ahead=not self.store.is_loaded)
        for position, batch in enumerate(batches, start=first):
            self.n_given = position + 1
            if self.n_given == len(self):  # roll over before the last batch: a sized iterator is never asked again
                self.epoch, self.n_given = self.epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands."""
        place = {"seed": self.seed, "epoch": self.epoch, "n_given": self.n_given}
        return {**self._identity(), **place, "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another iteration over the same data stood.

        Raises:
            InputError: the state is of another store or batch size, or of an order that is not known.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise InputError(f"state[{name!r}]", state.get(name), f"that of these batches, {value}")
        order = state.get("order", "rows")  # the only one there was
        if order not in _ORDERS:
            raise InputError("state['order']", order, f"one of {', '.join(map(repr, _ORDERS))}")
        self._order = order
        self.seed, self.epoch, self.n_given = state["seed"], state["epoch"], state["n_given"]

    def _identity(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "accumulate": self.accumulate, "store": self.store.fingerprint}


_ORDERS: Mapping[str, Callable[[int, int, int], Tensor]] = {"rows": shuffled, "blocks": block_shuffled}
