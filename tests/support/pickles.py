"""A pickle that does something when it is loaded, to show that readers do not load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)
