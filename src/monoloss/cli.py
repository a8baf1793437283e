"""The command line ``monoloss``: a user's error ends in one sentence and exit code 2, never in a traceback.

Slow imports are put off: the parser is imported with a command, torch with the command's work.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from monoloss.errors import InputError, MissingExtraError, missing_extra
from monoloss.version import __version__

EXIT_INPUT = 2
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class _Terminated(BaseException):
    """Raised at SIGTERM, so that half-written files are cleaned up."""


class Command(NamedTuple):
    """A command: a function whose arguments become options, its module (no slow imports), and the extra it needs."""

    module: str
    function: str
    extra: str = "cli"


COMMANDS = {
    "demo": Command("monoloss.commands.demo", "demo", "demo"),
    "train": Command("monoloss.commands.train", "train", "train"),
    "finetune": Command("monoloss.commands.finetune", "finetune", "finetune"),
    "evaluate": Command("monoloss.commands.evaluate", "evaluate_saes"),
    "extract": Command("monoloss.commands.extract", "extract_features", "vision"),
    "import": Command("monoloss.commands.import_files", "import_files"),
    "report": Command("monoloss.commands.report", "report", "report"),
    "info": Command("monoloss.commands.info", "info"),
    "benchmark": Command("monoloss.commands.benchmark", "benchmark", "report"),
}
_HELP = ("-h", "--help")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for unusable input, 130 for Ctrl-C, 143 for SIGTERM.

    ``argv`` are the words after ``monoloss``; by default those of this process.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        with _sigterm_is_raised():
            return _run(words)
    except (ModuleNotFoundError, MissingExtraError) as error:
        missing = missing_extra(error, _extra_for(words))
        if not isinstance(missing, InputError):
            raise
        return _refuse(missing)
    except InputError as error:
        return _refuse(error)
    except OSError as error:  # a full disk, a read-only folder
        if error.errno not in _DISK_ERRORS:
            raise
        file = str(error.filename or "a file")
        return _refuse(InputError(file, os.strerror(error.errno), "a place that can hold it"))
    except KeyboardInterrupt:
        # Raised inside `exec`, which dataclasses use, it makes Python kill itself at exit unless another exec succeeds
        exec("")  # noqa: S102
        print("monoloss: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _Terminated:
        print("monoloss: terminated", file=sys.stderr)
        return EXIT_TERMINATED


@contextmanager
def _sigterm_is_raised() -> Iterator[None]:
    """Raise `_Terminated` in the block at SIGTERM. In other threads, which may not handle signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: list[str]) -> int:
    """Run the command that the words name, or print help or version; return the exit code."""
    if not words:
        raise InputError("COMMAND", "nothing", f"one of {', '.join(COMMANDS)}, or --help")
    name, rest = words[0], words[1:]
    if name in _HELP:
        print(_help_text(), end="")
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        from monoloss.files.dataclasses import unknown_key

        unknown = unknown_key("", name, list(COMMANDS))
        raise InputError(name, "an unknown option" if name.startswith("-") else "an unknown command", unknown.expected)
    module = import_module(COMMANDS[name].module)
    function = getattr(module, COMMANDS[name].function)
    given: dict[str, object] = {}
    if hasattr(module, "SETTINGS_IN"):
        from monoloss.commands.settings import take_settings

        rest, given = take_settings(rest, function, module.SETTINGS_IN)
    from monoloss.commands.options import read_options

    try:
        options = read_options(f"monoloss {name}", function, rest)
    except SystemExit as stop:  # --help, or an argument that argparse has already explained
        return stop.code if isinstance(stop.code, int) else EXIT_INPUT
    function(**{**options, **given})
    return 0


def _help_text() -> str:
    """Return the text of ``monoloss --help``, with the first sentence of each command's docstring."""
    lines = [
        "usage: monoloss [-h] [--version] COMMAND ...",
        "",
        "Measure, train for and show monosemantic latents.",
        "",
        "options:",
        "  -h, --help  show this help and exit; monoloss COMMAND --help shows the options of a command",
        "  --version   show the version and exit",
        "",
        "commands:",
    ]
    for name, command in COMMANDS.items():
        text = getattr(import_module(command.module), command.function).__doc__ or ""
        lines.append(f"  {name:10}  {text.split('.')[0]}")
    return "\n".join(lines) + "\n"


def _extra_for(words: list[str]) -> str:
    """Return the extra that the words' command needs; "cli" for help and unknown commands."""
    asked_for_help = any(word in _HELP for word in words)
    return COMMANDS[words[0]].extra if words and words[0] in COMMANDS and not asked_for_help else "cli"


def _refuse(error: Exception) -> int:
    """Print a user's error; return its exit code."""
    print(f"monoloss: {error}", file=sys.stderr)
    return EXIT_INPUT


if __name__ == "__main__":
    sys.exit(main())
