"""The errors that a user's input can cause; the command line turns these, and only these, into one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something that was given cannot be used: names the argument, what came and what was needed.

    Example:
        >>> raise InputError("embeddings", "a row of zeros (row 3)", "rows with a norm above 0")
        Traceback (most recent call last):
        monoloss.errors.InputError: embeddings: got a row of zeros (row 3); expected rows with a norm above 0
    """

    def __init__(self, argument: str, got: object, expected: str) -> None:
        super().__init__(argument, got, expected)  # all three, so that the error survives pickling
        self.argument = argument
        self.got = str(got)
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.argument}: got {self.got}; expected {self.expected}"


class MissingExtraError(InputError, ImportError):
    """A part of the library needs packages that are not installed: says what to install.

    Example:
        >>> str(MissingExtraError("matplotlib", "report"))
        "matplotlib: got no such package; expected pip install 'monoloss[report]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, "no such package", f"pip install 'monoloss[{extra}]'")
        self.args = (package, extra)


_BROUGHT_BY: dict[str, tuple[str, ...]] = {  # packages by the name that is imported, and the extras that list them
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
_INCLUDES = {  # extras in others
    "train": ("cli",),
    "report": ("cli",),
    "vision": ("cli",),
    "interop": ("cli",),
    "finetune": ("cli", "train", "vision"),
    "demo": ("cli", "train", "report"),
}


def missing_extra(error: ImportError, asked: str | None = None) -> ImportError:
    """What to raise for a package that could not be imported: which extra brings it, if one does.

    Args:
        error: what the import raised, or what this function made of it further inside.
        asked: the extra of what the user asked for; it is named if it brings the package.

    Example:
        >>> print(missing_extra(ModuleNotFoundError(name="PIL"), "report"))
        PIL: got no such package; expected pip install 'monoloss[report]'
    """
    package = error.args[0] if isinstance(error, MissingExtraError) else (error.name or "").split(".")[0]
    if package not in _BROUGHT_BY:
        return error
    if asked is not None and {asked, *_INCLUDES.get(asked, ())} & set(_BROUGHT_BY[package]):
        return MissingExtraError(package, asked)
    return error if isinstance(error, MissingExtraError) else MissingExtraError(package, _BROUGHT_BY[package][0])


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Name this extra where a package that it brings is missing in the block.

    Raises:
        MissingExtraError: a package of an extra is missing.

    Example:
        >>> with needs_extra("report"):
        ...     raise ModuleNotFoundError(name="matplotlib")
        Traceback (most recent call last):
        monoloss.errors.MissingExtraError: matplotlib: got no such package; expected pip install 'monoloss[report]'
    """
    try:
        yield
    except (ModuleNotFoundError, MissingExtraError) as error:
        raise missing_extra(error, name) from (error.__cause__ or error)
