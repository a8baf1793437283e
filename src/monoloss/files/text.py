"""Text files of others, read line by line."""

from __future__ import annotations

import os
from pathlib import Path

from monoloss.errors import InputError


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file in UTF-8, without their ends."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", "a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"what is not UTF-8 ({error.reason})", "a text file, or an .npy file") from error
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
