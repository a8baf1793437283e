"""Names of models, classes and rows as charts show them: on one line, without the name of their group."""

from __future__ import annotations

import re
from collections.abc import Sequence

_JOINERS = "\u200c\u200d"  # zero-width joiners: parts of emoji and of some scripts


def variant_of(name: str, group: str) -> str:
    """Return a model's name without its group's name in front, its loss variant: "topk-memory" in "TopK": "memory"."""
    letters = [re.escape(letter) for letter in group if letter.isalnum()]
    match = re.match(r"[\W_]*".join(letters) + r"[\W_]+(?=.)", name, re.IGNORECASE) if letters else None
    return name[match.end() :] if match else name


def plain_text(text: str, longest: int = 60) -> str:
    r"""Return the text on one line without control characters, cut in the middle if longer than `longest` letters.

    Example:
        >>> plain_text("a\tb\x00"), plain_text("abcdefgh", 5), plain_text("")
        ('a b', 'ab…gh', '(no name)')
    """
    shown = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in text)
    shown = " ".join(shown.split()) or "(no name)"
    half = (longest - 1) // 2
    return shown if len(shown) <= longest else f"{shown[: longest - 1 - half]}…{shown[-half:]}"


def class_name(number: int, names: Sequence[str] | None) -> str:
    """Return the name of a class, or "class 3" if class 3 has no name.

    Example:
        >>> class_name(1, ["cat", "dog"]), class_name(3, None)
        ('dog', 'class 3')
    """
    return plain_text(str(names[number])) if names is not None and number < len(names) else f"class {number}"
