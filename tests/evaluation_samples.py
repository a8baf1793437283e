"""What tests of evaluations share."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from torch import Tensor

from monoloss.evaluation.result import Evaluation


def tensors_of(evaluation: Evaluation) -> dict[str, Tensor]:
    """Everything that is shown of the latents but their columns: the tensors of an evaluation by name."""
    found = {}
    for field in fields(evaluation):
        value = getattr(evaluation, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value
        elif is_dataclass(value):
            found |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
    return found
