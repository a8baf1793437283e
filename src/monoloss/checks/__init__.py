"""The door: what a user may pass, said in one sentence when it is something else."""

from monoloss.checks.values import check_choice, check_number, check_type

__all__ = ["check_choice", "check_number", "check_type"]
