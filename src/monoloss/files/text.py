"""Reading of text files that other programs have written."""

from __future__ import annotations

import os
from pathlib import Path

from monoloss.errors import InputError


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a UTF-8 text file without line ends (LF or CRLF); a byte order mark is skipped."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", "a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"no UTF-8 ({error.reason})", "a text file, or an .npy file") from error
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
