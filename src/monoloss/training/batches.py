"""Shuffled batches of a feature store: an iterable that knows where it is and can go on from there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monoloss.checks import check_number
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError


class ShuffledBatches:
    """Batches of ``batch_size`` rows in an order that follows from ``(seed, epoch)`` alone; a new order every epoch.

    Iterating gives the rest of the current epoch, then the next one begins. Rows that do not fill a batch, and batches
    that do not fill a step of ``accumulate`` batches, are left out of that epoch. State: epoch and batches given.

    Raises:
        InputError: the batches of a step are larger than the data.
    """

    def __init__(self, store: FeatureStore, batch_size: int, seed: int, accumulate: int = 1) -> None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
        check_number("accumulate", accumulate, at_least=1, integer=True)
        if batch_size > store.n_rows:
            raise InputError("batch_size", batch_size, f"at most the rows there are to train on, {store.n_rows}")
        if batch_size * accumulate > store.n_rows:
            needed = f"batches that hold no more than the rows there are to train on, {store.n_rows}"
            raise InputError("accumulate_batches", f"{accumulate} of {batch_size} rows", needed)
        self.store, self.batch_size, self.seed, self.accumulate = store, batch_size, seed, accumulate
        self.epoch = 0
        self.n_given = 0

    def __len__(self) -> int:
        return self.store.n_rows // (self.batch_size * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[Float[Tensor, "n d"]]:
        order = shuffled(self.store.n_rows, self.seed, self.epoch)
        for position in range(self.n_given, len(self)):
            batch = self.store.rows(order[position * self.batch_size : (position + 1) * self.batch_size])
            self.n_given = position + 1
            if self.n_given == len(self):  # roll over before the last batch: a sized iterator is never asked again
                self.epoch, self.n_given = self.epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands."""
        return {**self._identity(), "seed": self.seed, "epoch": self.epoch, "n_given": self.n_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another iteration over the same data stood.

        Raises:
            InputError: the state is of another store or batch size.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise InputError(f"state[{name!r}]", state.get(name), f"that of these batches, {value}")
        self.seed, self.epoch, self.n_given = state["seed"], state["epoch"], state["n_given"]

    def _identity(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "accumulate": self.accumulate, "store": self.store.fingerprint}


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``n`` rows, ``(n,)`` int64, that follows from the seed and the epoch alone."""
    mixed = random.Random(f"{seed}/{epoch}").getrandbits(63)  # noqa: S311 - an order, not a secret
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed))
