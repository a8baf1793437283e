"""Texts of sizes and times, and the progress bar, which alone imports Rich: it comes with the extra ``cli``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from monoloss.errors import needs_extra

if TYPE_CHECKING:
    from rich.console import Console


def size_text(n_bytes: int) -> str:
    """Format a number of bytes in the unit that suits its size: "512 B", "3.0 MiB"."""
    size, unit = float(n_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def time_text(seconds: float) -> str:
    """Format a time in its two largest units: "12.3 s", "1 min 15 s", "1 h 30 min", "3 days 11 h"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


@contextmanager
def progress(
    title: str,
    total: int | None,
    unit: str,
    *,
    shown: bool = True,
    done: int = 0,
    console: Console | None = None,
) -> Iterator[Callable[..., None]]:
    """Show a progress bar during a block, which gets a function ``advance(n, unit=unit)``.

    ``advance`` adds ``n`` to the count, and shows other words after it where ``unit`` is passed.

    Args:
        title: the words before the bar.
        total: the count at the end; None if unknown.
        unit: the words after the count.
        shown: whether there is a bar; without one ``advance`` does nothing.
        done: the count at the start.
        console: the console to draw on; by default the error stream.

    Raises:
        MissingExtraError: Rich is not installed.
    """
    if not shown:
        yield lambda *_: None
        return
    with needs_extra("cli"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    words = TextColumn("{task.fields[unit]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), words, TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, unit=unit)
        yield lambda n, unit=unit: bar.update(task, advance=n, unit=unit)
