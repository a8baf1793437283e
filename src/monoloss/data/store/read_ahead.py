"""A thread that reads the next item while the caller works on the current one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item], *, ahead: bool = True) -> Iterator[Read]:
    """Yield ``read(item)`` for each item, in order; a thread reads the next item while the caller works on this one.

    An exception of ``read(item)`` is raised when that item's result is due. At most two results are in memory at a
    time. Closing the iterator ends the reading.

    Args:
        read: runs in the thread, one call at a time.
        items: iterated in the caller's thread.
        ahead: False: no thread; each item is read when the caller asks for it.
    """
    if not ahead:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read_ahead") as thread:
        current = None
        for item in items:
            following = thread.submit(read, item)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()
