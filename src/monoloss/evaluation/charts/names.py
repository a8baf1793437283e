"""Names of models, classes and rows as they are shown: one line, and without what all of a group share."""

from __future__ import annotations

import re
from collections.abc import Sequence

_JOINERS = "\u200c\u200d"  # within emoji and some scripts


def variant_of(name: str, group: str) -> str:
    """The name of a loss variant: a model's name without its group's in front ("topk-memory" in "TopK": "memory")."""
    letters = [re.escape(letter) for letter in group if letter.isalnum()]
    match = re.match(r"[\W_]*".join(letters) + r"[\W_]+(?=.)", name, re.IGNORECASE) if letters else None
    return name[match.end() :] if match else name


def plain_text(text: str, longest: int = 60) -> str:
    r"""One line without control characters, cut in the middle where it is longer than `longest`.

    Example:
        >>> plain_text("a\tb\x00"), plain_text("abcdefgh", 5), plain_text("")
        ('a b', 'ab…gh', '(no name)')
    """
    shown = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in text)
    shown = " ".join(shown.split()) or "(no name)"
    half = (longest - 1) // 2
    return shown if len(shown) <= longest else f"{shown[: longest - 1 - half]}…{shown[-half:]}"


def class_name(number: int, names: Sequence[str] | None) -> str:
    """The name of a class, "class 3" where it has none.

    Example:
        >>> class_name(1, ["cat", "dog"]), class_name(3, None)
        ('dog', 'class 3')
    """
    return plain_text(str(names[number])) if names is not None and number < len(names) else f"class {number}"
