"""Checks of arguments: each raises `InputError`, with one sentence, for a value that a user may not pass."""

from monoloss.checks.values import check_choice, check_number, check_type

__all__ = ["check_choice", "check_number", "check_type"]
