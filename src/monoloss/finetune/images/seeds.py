"""Random choices that follow from what they are for: the same in any process, order, or resumed run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*parts: int | str) -> int:
    """A seed that follows from the parts alone, from 0 to 2^63 - 1.

    Example:
        >>> seed_of(0, 1, 2) == seed_of(0, 1, 2), seed_of(0, 1, 2) == seed_of(0, 12)
        (True, False)
    """
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded_from(*parts: int | str) -> Iterator[None]:
    """What torch draws on the CPU follows from the parts alone; afterwards its generator is as it was before.

    torchvision's transforms and torch's distributions take no generator, so torch's own is borrowed.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(*parts))  # torch.manual_seed would reach the GPUs as well
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
