"""The errors that a user's input can cause; the command line prints them as one sentence, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """An argument, option or file that cannot be used.

    Attributes: ``argument`` names it, ``got`` says what was passed, ``expected`` what would have been right.

    Example:
        >>> raise InputError("embeddings", "a row of zeros (row 3)", "rows with a norm above 0")
        Traceback (most recent call last):
        monoloss.errors.InputError: embeddings: got a row of zeros (row 3); expected rows with a norm above 0
    """

    def __init__(self, argument: str, got: object, expected: str) -> None:
        super().__init__(argument, got, expected)  # all three, so that the error can be pickled
        self.argument = argument
        self.got = str(got)
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.argument}: got {self.got}; expected {self.expected}"


class MissingExtraError(InputError, ImportError):
    """A part of the library needs a package that is not installed; the error says how to install its extra.

    Example:
        >>> str(MissingExtraError("matplotlib", "report"))
        "matplotlib: got no such package; expected pip install 'monoloss[report]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, "no such package", f"pip install 'monoloss[{extra}]'")
        self.args = (package, extra)


_EXTRAS_OF: dict[str, tuple[str, ...]] = {  # imported name of a package: the extras that list it
    "docstring_parser": ("cli",),
    "jsonargparse": ("cli",),
    "rich": ("cli",),
    "yaml": ("cli",),
    "lightning": ("train",),
    "jinja2": ("report",),
    "matplotlib": ("report",),
    "plotly": ("report",),
    "PIL": ("vision", "report"),
    "timm": ("vision",),
    "torchvision": ("vision",),
    "peft": ("finetune",),
    "transformers": ("finetune",),
    "datasets": ("interop",),
    "lmdb": ("interop",),
    "pyarrow": ("interop",),
    "sklearn": ("demo",),
}
_INCLUDES = {  # extra: the extras that it includes
    "train": ("cli",),
    "report": ("cli",),
    "vision": ("cli",),
    "interop": ("cli",),
    "finetune": ("cli", "train", "vision"),
    "demo": ("cli", "train", "report"),
}


def missing_extra(error: ImportError, asked: str | None = None) -> ImportError:
    """Return the error to raise for a failed import: `MissingExtraError` if an extra has the package, else ``error``.

    Args:
        error: the error of the import, or the result of an earlier call of this function.
        asked: the extra of the command or function that the user called; it is named if it has the package.
    """
    package = error.args[0] if isinstance(error, MissingExtraError) else (error.name or "").split(".")[0]
    if package not in _EXTRAS_OF:
        return error
    if asked is not None and {asked, *_INCLUDES.get(asked, ())} & set(_EXTRAS_OF[package]):
        return MissingExtraError(package, asked)
    return error if isinstance(error, MissingExtraError) else MissingExtraError(package, _EXTRAS_OF[package][0])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; the name of its class if the text is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def some_names(names: Sequence[str], most: int = 10) -> str:
    """Return the first ``most`` names on one line, with the number of the others."""
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Run a block whose imports need the extra ``name``.

    Raises:
        MissingExtraError: a package of an extra is not installed; ``name`` is named if it has the package.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingExtraError) as error:
        raise missing_extra(error, name) from (error.__cause__ or error)
