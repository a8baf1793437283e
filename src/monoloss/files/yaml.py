"""YAML as people write numbers: 3e-4 is one. No key twice, nothing executed."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped] # carries no types

from monoloss.errors import InputError

_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.1 takes ``3e-4`` for text, and of a key that stands twice the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None and not getattr(node, "merged", False):
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def flatten_mapping(self, node: Any) -> None:
        merges = any(isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value)
        super().flatten_mapping(node)
        node.merged = getattr(node, "merged", False) or merges  # what comes from ``<<`` may stand again


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def from_yaml(text: str, where: str) -> Any:
    """Plain values from YAML.

    Raises:
        InputError: it is not YAML, or holds a key twice; the error names ``where`` and the line.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is none of
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "unreadable text"
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise InputError(where, f"{problem}{line}", "YAML") from None


def to_yaml(content: Any) -> str:
    """Plain values as YAML, in their order."""
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return text
