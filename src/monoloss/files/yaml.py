"""YAML in which 3e-4 is a number, a key may not stand twice, and no tag runs code."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped] # carries no types

from monoloss.errors import InputError

_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader without two traps of YAML 1.1: ``3e-4`` is text, and of two equal keys the last one wins."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        repeated = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if repeated is not None and not getattr(node, "merged", False):
            raise yaml.constructor.ConstructorError(None, None, f"the key {repeated!r} twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def flatten_mapping(self, node: Any) -> None:
        merges = any(isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value)
        super().flatten_mapping(node)
        node.merged = getattr(node, "merged", False) or merges  # a key may override one from ``<<``


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """A safe dumper that quotes what the loader would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def from_yaml(text: str, where: str) -> Any:
    """Parse YAML into nested plain values.

    Raises:
        InputError: no valid YAML, or a key twice; the error names ``where`` (a file, an option) and the line.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "unreadable text"
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise InputError(where, f"text that is not YAML ({problem}{line})", "valid YAML, each key once") from None


def to_yaml(content: Any) -> str:
    """Write nested plain values as YAML text, keys in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
