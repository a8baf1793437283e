"""What the figures of the speed scripts are held against."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A figure beside its target.

    Attributes:
        name: of the figure.
        figure: as measured.
        at_least: the least that is asked for, or None.
        at_most: the most that is allowed, or None.
        unit: behind the figure.
    """

    name: str
    figure: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the figure is within its target."""
        return (self.at_least is None or self.figure >= self.at_least) and (
            self.at_most is None or self.figure <= self.at_most
        )


def print_targets(targets: list[Target]) -> dict[str, dict[str, object]]:
    """Print each figure with its target, and whether it is met; returns them for the result."""
    print("\ntargets")
    for target in targets:
        bound = f"at least {target.at_least:g}" if target.at_most is None else f"at most {target.at_most:g}"
        mark = "met" if target.is_met else "MISSED"
        print(f"  {mark:8}{target.name}: {target.figure:.3g}{target.unit} ({bound}{target.unit})")
    return {target.name: {**target._asdict(), "is_met": target.is_met} for target in targets}
