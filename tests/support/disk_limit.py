"""A disk that takes no large files: what a full one does to a writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """Writing a file beyond a size fails, with EFBIG, as writing beyond the end of the disk fails with ENOSPC."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
