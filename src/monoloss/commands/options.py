"""The arguments of a command's function as options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser

_FLAGS = ("verify", "skipped", "classes", "print_config")  # options without a value


def read_options(program: str, function: Callable[..., None], words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a function from the words of a command line.

    Args:
        program: what the user has called, for the help.
        function: its plainly typed arguments become options, and its docstring their help; those without a default
            that are not keyword-only are given without their name.
        words: what follows the name of the command.

    Raises:
        SystemExit: help was asked for and shown; or the words are wrong, and what is wrong with them has been said.
    """
    from docstring_parser import parse as parse_docstring

    text = function.__doc__ or ""
    parser = ArgumentParser(prog=program, allow_abbrev=False, description=text.split("\n\n    Args:")[0])
    hints = get_type_hints(function)
    arguments = signature(function).parameters
    for line in parse_docstring(text).params:
        if line.arg_name != "settings":  # which `take_settings` gives
            _add(parser, arguments[line.arg_name], hints[line.arg_name], line.description or "")
    options: dict[str, Any] = parser.parse_args(list(words)).as_dict()
    return options


def _add(parser: ArgumentParser, argument: Parameter, hint: Any, text: str) -> None:
    """An option, or an argument that is given without its name."""
    expected = argument.default is Parameter.empty
    bare = expected and argument.kind is not Parameter.KEYWORD_ONLY
    more: dict[str, Any] = {} if bare or not expected else {"required": True}
    if not expected:
        more["default"] = argument.default
    if argument.name in _FLAGS:
        parser.add_argument(f"--{argument.name}", action="store_true", help=text)
        return
    if hint == list[str] or list[str] in get_args(hint):  # --paths A B, where jsonargparse would want --paths [A,B]
        more |= {"nargs": "+", "metavar": "PATH"}
        hint = str
    parser.add_argument(argument.name if bare else f"--{argument.name}", type=hint, help=text, **more)
