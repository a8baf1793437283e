"""The command line: what a user gave wrong ends in one sentence and exit code 2, never in a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from inspect import Parameter, signature

from monoloss.errors import InputError, missing_extra

EXIT_INPUT = 2
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class _Terminated(BaseException):
    """SIGTERM came: raised, so that what is half-written is cleaned up."""


COMMANDS = {  # module and function; its arguments become options. At their top these modules import nothing heavy
    "demo": ("monoloss.commands.demo", "demo"),
    "train": ("monoloss.commands.train", "train"),
    "finetune": ("monoloss.commands.finetune", "finetune"),
    "evaluate": ("monoloss.commands.evaluate", "evaluate_saes"),
    "extract": ("monoloss.commands.extract", "extract_features"),
    "import": ("monoloss.commands.import_files", "import_files"),
    "report": ("monoloss.commands.report", "report"),
    "info": ("monoloss.commands.info", "info"),
    "benchmark": ("monoloss.commands.benchmark", "benchmark"),
}
_POSITIONAL = ("import", "report", "info")  # what these commands need first is given without its name
_BARE = Parameter.POSITIONAL_OR_KEYWORD
_FLAGS = {"verify", "skipped", "classes", "print_config"}  # options without a value


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for input that cannot be used, 130 for Ctrl-C, 143 for SIGTERM.

    Example:
        >>> main(["demo", "--seed", "-1"])
        2
    """
    try:
        with _sigterm_is_raised():
            return _run(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        return _refuse(error)
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if known is error:
            raise
        return _refuse(known)
    except OSError as error:  # a full disk, a folder that may not be written
        if error.errno not in _OF_THE_DISK:
            raise
        return _refuse(
            InputError(str(error.filename or "a file"), os.strerror(error.errno), "a place that can hold it")
        )
    except KeyboardInterrupt:
        print("monoloss: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _Terminated:
        print("monoloss: terminated", file=sys.stderr)
        return EXIT_TERMINATED


@contextmanager
def _sigterm_is_raised() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does. Only the main thread may handle signals; elsewhere it stays as it is."""
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


def _run(argv: list[str]) -> int:
    from docstring_parser import parse as parse_docstring
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="monoloss", description="Measure, train for and show monosemantic latents.")
    parser.add_argument("--version", action="version", version=version("monoloss"))
    commands = parser.add_subcommands(dest="command")
    functions = {name: getattr(import_module(module), function) for name, (module, function) in COMMANDS.items()}
    argv, more = _settings_apart(argv)
    for name, function in functions.items():
        command = ArgumentParser(description=(function.__doc__ or "").split("\n\n    Args:")[0])
        arguments = signature(function).parameters.values()
        lists: set[str | int] = {each.name for each in arguments if str(each.annotation).startswith("list[str]")}
        command.add_function_arguments(function, as_positional=name in _POSITIONAL, skip={*lists, *_FLAGS, "settings"})
        for line in parse_docstring(function.__doc__ or "").params:
            if line.arg_name in lists:  # for which jsonargparse would want --paths [A,B] instead of --paths A B
                given_bare = name in _POSITIONAL and signature(function).parameters[line.arg_name].kind is _BARE
                option = line.arg_name if given_bare else f"--{line.arg_name}"
                command.add_argument(option, nargs="+", type=str, metavar="PATH", help=line.description)
            elif line.arg_name in _FLAGS:
                command.add_argument(f"--{line.arg_name}", action="store_true", help=line.description)
        commands.add_subcommand(name, command, help=(function.__doc__ or "").split(".")[0])
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # --help, --version, or an argument that argparse has already explained
        return stop.code if isinstance(stop.code, int) else EXIT_INPUT
    functions[options.command](**{**options[options.command].as_dict(), **more})
    return 0


def _settings_apart(argv: list[str]) -> tuple[list[str], dict[str, object]]:
    """Of a command whose module takes settings: what is left to parse, and the settings as an argument."""
    if not argv or argv[0] not in COMMANDS:
        return argv, {}
    module = import_module(COMMANDS[argv[0]][0])
    if not hasattr(module, "take_settings"):
        return argv, {}
    rest, settings = module.take_settings(argv[1:])
    return [argv[0], *rest], settings


def _refuse(error: Exception) -> int:
    print(f"monoloss: {error}", file=sys.stderr)
    return EXIT_INPUT


if __name__ == "__main__":
    sys.exit(main())
