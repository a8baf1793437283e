"""Names of models without the name of their group: what is compared from group to group."""

from __future__ import annotations

import re


def variant_of(name: str, group: str) -> str:
    """The name of a loss variant: a model's name without its group's in front ("topk-memory" in "TopK": "memory").

    Example:
        >>> variant_of("batch_topk, memory", "BatchTopK"), variant_of("baseline", "TopK"), variant_of("TopK", "TopK")
        ('memory', 'baseline', 'TopK')
    """
    letters = [re.escape(letter) for letter in group if letter.isalnum()]
    match = re.match(r"[\W_]*".join(letters) + r"[\W_]+(?=.)", name, re.IGNORECASE) if letters else None
    return name[match.end() :] if match else name
