"""The command line: what a user gave wrong ends in one sentence and exit code 2, never in a traceback."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from monoloss.errors import InputError, missing_extra

EXIT_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class _Terminated(BaseException):
    """SIGTERM came: raised, so that what is half-written is cleaned up."""


def demo(seed: int = 0, out: str = "demo-output", progress: bool = True) -> None:
    """MonoLoss at work on real images: trains six small SAEs on scikit-learn's digits and judges them.

    TopK and BatchTopK, each without MonoLoss, with the paper's and with memory and centring, on one pass over the
    training digits; then a table of held-out figures in the terminal, pictures and evaluation files in a folder.

    Args:
        seed: of the split, the initial weights and the order of the rows; from 0 to 4294967295
        out: folder for the results; an earlier demo's there is replaced
        progress: show progress bars
    """
    from monoloss.demo import run_demo

    run_demo(seed=seed, out=out, progress=progress)


COMMANDS = {"demo": demo}


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
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="monoloss", description="Measure, train for and show monosemantic latents.")
    parser.add_argument("--version", action="version", version=version("monoloss"))
    commands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        command = ArgumentParser(description=(function.__doc__ or "").split("\n\n    Args:")[0])
        command.add_function_arguments(function)
        commands.add_subcommand(name, command, help=(function.__doc__ or "").split(".")[0])
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # --help, --version, or an argument that argparse has already explained
        return stop.code if isinstance(stop.code, int) else EXIT_INPUT
    COMMANDS[options.command](**options[options.command].as_dict())
    return 0


def _refuse(error: Exception) -> int:
    print(f"monoloss: {error}", file=sys.stderr)
    return EXIT_INPUT


if __name__ == "__main__":
    sys.exit(main())
