"""A lock by which one process at a time works in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from monoloss.errors import InputError

_LOCKED: set[int] = set()  # file descriptors of the folders that this process has locked


@contextmanager
def only_one(folder: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Lock an existing folder for a block. The system removes the lock when the process ends, however it ends.

    On Windows, and on a file system without locks, this does nothing.

    Raises:
        InputError: another process has locked the folder; ``doing`` ("training") says in the error what it does.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    _LOCKED.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            expected = "another folder, or to wait until that process ends"
            raise InputError(str(folder), f"a folder in which another process is {doing}", expected) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        if descriptor in _LOCKED:
            _LOCKED.remove(descriptor)
            os.close(descriptor)


def _leave_locks() -> None:
    """Close a forked process's copies of the locks, which would outlive the process that holds them."""
    while _LOCKED:
        os.close(_LOCKED.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)
