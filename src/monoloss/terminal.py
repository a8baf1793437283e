"""Sizes and times as people read them."""

from __future__ import annotations


def size_text(n_bytes: int) -> str:
    """A number of bytes in the unit that suits it.

    Example:
        >>> size_text(3 * 1024**2)
        '3.0 MiB'
    """
    size, unit = float(n_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def time_text(seconds: float) -> str:
    """A time in its two largest units.

    Example:
        >>> time_text(12.34), time_text(75), time_text(5400), time_text(300_000)
        ('12.3 s', '1 min 15 s', '1 h 30 min', '3 days 11 h')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
