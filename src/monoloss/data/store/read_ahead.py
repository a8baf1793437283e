"""One thing read in the background while the one before it is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item], *, ahead: bool = True) -> Iterator[Read]:
    """``read(item)`` for each item, in their order; while one is worked on, a thread reads the next.

    What ``read`` raises is raised where its result is due. At most two results are there at a time, and nothing is
    read any more when the iterator has been closed.

    Args:
        read: runs in the thread, one call at a time.
        items: asked for in the caller's thread.
        ahead: off, everything happens in the caller's thread, when it is due.
    """
    if not ahead:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read_ahead") as thread:
        due = None
        for item in items:
            following = thread.submit(read, item)
            if due is not None:
                yield due.result()
            due = following
        if due is not None:
            yield due.result()
