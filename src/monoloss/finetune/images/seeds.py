"""Seeds derived from the purpose of a random choice, equal in any process, order of work or resumed run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*parts: int | str) -> int:
    """Return a seed that depends on the parts and their order alone, from 0 to 2^63 - 1."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded_from(*parts: int | str) -> Iterator[None]:
    """Seed torch's CPU generator by the parts inside the block; restore its state afterwards.

    For torchvision's transforms and torch's distributions, which take no generator.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(*parts))  # torch.manual_seed would reach the GPUs as well
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
