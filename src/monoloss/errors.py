"""The errors that a user's input can cause; the command line turns these, and only these, into one sentence."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was given cannot be used: names the argument, what came and what was needed.

    Example:
        >>> raise InputError("embeddings", "a row of zeros (row 3)", "rows with a norm above 0")
        Traceback (most recent call last):
        monoloss.errors.InputError: embeddings: got a row of zeros (row 3); needed rows with a norm above 0
    """

    def __init__(self, argument: str, came: object, needed: str) -> None:
        super().__init__(argument, came, needed)  # all three, so that the error survives pickling
        self.argument = argument
        self.came = str(came)
        self.needed = needed

    def __str__(self) -> str:
        return f"{self.argument}: got {self.came}; needed {self.needed}"


class MissingExtraError(InputError, ImportError):
    """A part of the library needs packages that are not installed: says what to install.

    Example:
        >>> str(MissingExtraError("matplotlib", "report"))
        "matplotlib: got no such package; needed pip install 'monoloss[report]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, "no such package", f"pip install 'monoloss[{extra}]'")
        self.args = (package, extra)


_EXTRA_OF = {
    "docstring_parser": "train",
    "jsonargparse": "train",
    "lightning": "train",
    "yaml": "train",
    "rich": "train",
    "jinja2": "report",
    "matplotlib": "report",
    "plotly": "report",
    "PIL": "vision",
    "timm": "vision",
    "torchvision": "vision",
    "peft": "finetune",
    "datasets": "interop",
    "lmdb": "interop",
    "pyarrow": "interop",
    "sklearn": "demo",
}


def missing_extra(error: ModuleNotFoundError) -> ImportError:
    """What to raise for a package that could not be imported: which extra brings it, if one does."""
    package = (error.name or "").split(".")[0]
    return MissingExtraError(package, _EXTRA_OF[package]) if package in _EXTRA_OF else error
