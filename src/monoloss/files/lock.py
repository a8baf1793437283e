"""One process at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from monoloss.errors import InputError

_LOCKED: set[int] = set()  # descriptors of folders


@contextmanager
def only_one(folder: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """A lock on a folder that is there; the system takes it away when the process ends, however it ends.

    Where the file system has no locks, this does nothing.

    Raises:
        InputError: another process holds it; `doing` says what that one does.
    """
    if os.name == "nt":  # no such locks
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    _LOCKED.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            expected = "another folder, or that one's end"
            raise InputError(str(folder), f"a folder in which another process is {doing}", expected) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        if descriptor in _LOCKED:
            _LOCKED.remove(descriptor)
            os.close(descriptor)


def _leave_locks() -> None:
    """In a forked process: its copy of a lock would outlive the process that holds it."""
    while _LOCKED:
        os.close(_LOCKED.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)
