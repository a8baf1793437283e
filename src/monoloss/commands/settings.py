"""The settings of a run among the options of a command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monoloss.errors import InputError


def part_settings(
    argv: Sequence[str], options: Sequence[str], settings_of: Callable[[], Sequence[str]]
) -> tuple[list[str], dict[str, Any]]:
    """Part the settings of a run from the other options, and say what is neither.

    Args:
        argv: the words of the command line.
        options: names of the other options.
        settings_of: gives the first parts of the settings' names; called where there is an option that is none of the
            others, because the configurations take time to load.

    Returns:
        What is left to parse, and the arguments ``settings`` and, where it was asked for, ``print_config``.

    Raises:
        InputError: an option that is neither, or a setting without a value.

    Example:
        >>> part_settings(["--out", "run", "--epochs", "3"], ["out"], lambda: ["epochs"])
        (['--out', 'run'], {'settings': [('epochs', '3')]})
    """
    rest: list[str] = []
    settings: list[tuple[str, str]] = []
    more: dict[str, Any] = {"settings": settings}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--print_config":  # which the parser would take for its own
            more["print_config"] = True
        elif not word.startswith("--") or name in ("help", *options):
            rest.append(word)
        elif name.partition(".")[0] not in settings_of():
            from monoloss.plain_values import unknown_key

            raise unknown_key("--", name, [*options, *settings_of()])
        elif not equals and (not words or words[0].startswith("--")):
            raise InputError(word, "nothing", "a value")
        else:
            settings.append((name, value if equals else words.pop(0)))
    return rest, more
