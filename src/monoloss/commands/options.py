"""Parser of a command's options, made from the arguments and the docstring of its function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser

_FLAGS = ("verify", "skipped", "classes", "print_config")  # options without a value


def read_options(program: str, function: Callable[..., None], words: Sequence[str]) -> dict[str, Any]:
    """Parse the words of a command line and return the arguments of a command's function.

    Args:
        program: name of the command in the help, such as "monoloss info".
        function: its arguments become options, their docstrings the help; arguments without a default that are not
            keyword-only are positional on the command line.
        words: the words after the name of the command.

    Raises:
        SystemExit: the help was asked for and has been printed, or a word is wrong and the error has been printed.
    """
    from docstring_parser import parse as parse_docstring

    text = function.__doc__ or ""
    parser = ArgumentParser(prog=program, allow_abbrev=False, description=text.split("\n\n    Args:")[0])
    hints = get_type_hints(function)
    arguments = signature(function).parameters
    for line in parse_docstring(text).params:
        if line.arg_name != "settings":  # `take_settings` parses them
            _add(parser, arguments[line.arg_name], hints[line.arg_name], line.description or "")
    options: dict[str, Any] = parser.parse_args(list(words)).as_dict()
    return options


def _add(parser: ArgumentParser, argument: Parameter, hint: Any, text: str) -> None:
    """Add an argument of the function as a required or optional option, or as a positional argument."""
    is_required = argument.default is Parameter.empty
    is_positional = is_required and argument.kind is not Parameter.KEYWORD_ONLY
    keywords: dict[str, Any] = {"required": True} if is_required and not is_positional else {}
    if not is_required:
        keywords["default"] = argument.default
    if argument.name in _FLAGS:
        parser.add_argument(f"--{argument.name}", action="store_true", help=text)
        return
    if hint == list[str] or list[str] in get_args(hint):  # as --paths A B; jsonargparse alone takes --paths [A,B]
        keywords |= {"nargs": "+", "metavar": "PATH"}
        hint = str
    parser.add_argument(argument.name if is_positional else f"--{argument.name}", type=hint, help=text, **keywords)
