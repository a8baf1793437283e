"""Metadata of a measurement: the machine, the versions and the commit."""

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
    """Return processor, threads, versions, and the commit (None unless the package is run from a clone)."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monoloss": __version__,
        "commit": _commit(),
    }


def write_measured(path: str | os.PathLike[str], result: dict[str, Any]) -> None:
    """Write the measures in `result` as JSON, with :func:`machine_metadata` under the key "about"."""
    write_json(path, {"about": machine_metadata(), **result}, format_version=1)


def _processor() -> str:
    """Return the number and name of the processors, such as "2 x Intel Xeon"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _commit() -> str | None:
    """Return the clone's commit, with ", changed" where the package differs from it; None for an installed package."""
    if _git("ls-files", "--error-unmatch", "--", __file__) is None:  # an installed package inside another repository
        return None
    commit = _git("rev-parse", "--short", "HEAD")
    if commit is None:
        return None
    return commit.strip() + ("" if _git("diff", "--quiet", "HEAD", "--", str(_PACKAGE)) is not None else ", changed")


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in the package's folder; None where git fails or is not installed."""
    try:
        completed = subprocess.run(  # noqa: S603 - only the arguments above
            ["git", *arguments],  # noqa: S607 - the git on the path
            capture_output=True,
            text=True,
            check=False,
            cwd=_PACKAGE,
        )
    except OSError:
        return None
    return completed.stdout if completed.returncode == 0 else None
