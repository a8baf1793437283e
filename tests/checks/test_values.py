"""Checks of single values: what passes, and the sentence for what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from monoloss.checks import check_choice, check_number, check_type
from monoloss.errors import InputError


def test_right_values_pass():
    check_type("x", None, int | None, "an integer or None")
    check_choice("x", "b", ("a", "b"))
    check_choice("x", None, (None,))
    check_number("x", 0.5, above=0.0, below=1.0)
    check_number("x", 0, at_least=0, integer=True)
    check_number("x", 3)  # an integer is a number
    check_number("x", -1e300)


@pytest.mark.door
@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda: check_type("x", "3", int, "an integer"), "x: got a str; expected an integer"),
        (lambda: check_type("x", None, int | str, "a name"), "x: got a NoneType; expected a name"),
        (lambda: check_choice("x", "c", ("a", 1)), "x: got 'c'; expected one of 'a', 1"),
        (lambda: check_number("x", -1, at_least=0), "x: got -1; expected a number at least 0"),
        (lambda: check_number("x", 0.0, above=0.0), "x: got 0.0; expected a number above 0.0"),
        (lambda: check_number("x", 1.0, at_least=0, below=1), "x: got 1.0; expected a number at least 0 and below 1"),
        (lambda: check_number("x", 2.0, at_least=1, integer=True), "x: got 2.0; expected an integer at least 1"),
        (lambda: check_number("x", True, at_least=0), "x: got True; expected a number at least 0"),
        (lambda: check_number("x", "1", at_least=0), "x: got '1'; expected a number at least 0"),
        (lambda: check_number("x", float("nan"), at_least=0), "x: got nan; expected a number at least 0"),
        (lambda: check_number("x", float("inf"), above=0), "x: got inf; expected a number above 0"),
    ],
)
def test_error_texts(check: Callable[[], None], text: str):
    with pytest.raises(InputError) as caught:
        check()
    assert str(caught.value) == text
