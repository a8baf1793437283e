"""Targets of the measures in the speed scripts."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A measured number and its target.

    Attributes:
        name: name of the measure.
        figure: the measured number.
        at_least: lower bound of the target, or None.
        at_most: upper bound of the target, or None.
        unit: unit as printed after the number.
    """

    name: str
    figure: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the number is within the bounds."""
        return (self.at_least is None or self.figure >= self.at_least) and (
            self.at_most is None or self.figure <= self.at_most
        )


def print_targets(targets: list[Target]) -> dict[str, dict[str, object]]:
    """Print each number with its target and whether it is met; return them by name, as for a result file."""
    print("\ntargets")
    for target in targets:
        bound = f"at least {target.at_least:g}" if target.at_most is None else f"at most {target.at_most:g}"
        mark = "met" if target.is_met else "MISSED"
        print(f"  {mark:8}{target.name}: {target.figure:.3g}{target.unit} ({bound}{target.unit})")
    return {target.name: {**target._asdict(), "is_met": target.is_met} for target in targets}
