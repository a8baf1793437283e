"""What a result is worth without: the machine, the versions and the commit it was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from monoloss.files.json import write_json
from monoloss.version import __version__

_PACKAGE = Path(__file__).parents[1]


def machine_metadata() -> dict[str, Any]:
    """Processor, threads, versions, and the commit where the package runs from a clone."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monoloss": __version__,
        "commit": _commit(),
    }


def write_measured(path: str | os.PathLike[str], result: dict[str, Any]) -> None:
    """Write figures as JSON, with the facts of the machine under `about`."""
    write_json(path, {"about": machine_metadata(), **result}, format_version=1)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _commit() -> str | None:
    """The commit of the clone, with a word where the package differs from it; None for an installed package."""
    if _git("ls-files", "--error-unmatch", "--", __file__) is None:  # another repository may be around an installed one
        return None
    commit = _git("rev-parse", "--short", "HEAD")
    if commit is None:
        return None
    return commit.strip() + ("" if _git("diff", "--quiet", "HEAD", "--", str(_PACKAGE)) is not None else ", changed")


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are those above
            ["git", *arguments],  # noqa: S607 - whichever git is there
            capture_output=True,
            text=True,
            check=False,
            cwd=_PACKAGE,
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
