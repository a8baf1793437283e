"""Checks of single values: type, choice, number within bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import UnionType

from monoloss.errors import InputError


def check_type(name: str, value: object, kind: type | UnionType, expected: str) -> None:
    """Check that a value is of a type, which ``expected`` describes in the error."""
    if not isinstance(value, kind):
        raise InputError(name, f"a {type(value).__name__}", expected)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Check that a value is one of the choices."""
    if value not in choices:
        raise InputError(name, repr(value), "one of " + ", ".join(repr(choice) for choice in choices))


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | int | None = None,
    above: float | int | None = None,
    below: float | int | None = None,
    integer: bool = False,
) -> None:
    """Check that a value is a finite number (no bool) within the bounds, with ``integer`` an int."""
    bounds = [f"at least {at_least}"] * (at_least is not None)
    bounds += [f"above {above}"] * (above is not None) + [f"below {below}"] * (below is not None)
    kind = int if integer else (int, float)
    ok = isinstance(value, kind) and not isinstance(value, bool)
    if ok:
        number = float(value)  # type: ignore[arg-type]
        ok = (at_least is None or number >= at_least) and (above is None or number > above)
        ok = ok and (below is None or number < below) and math.isfinite(number)
    if not ok:
        raise InputError(name, repr(value), " ".join(["an integer" if integer else "a number", " and ".join(bounds)]))
