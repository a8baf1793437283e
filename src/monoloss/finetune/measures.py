"""How often a classifier is right."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_TOP = 5


def top_counts(logits: Float[Tensor, "n c"], targets: Int64[Tensor, " n"]) -> Float64[Tensor, " 3"]:
    """Rows; rows whose class has the largest logit; rows whose class has one of the five largest. On the CPU.

    Example:
        >>> top_counts(torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([0, 0])).tolist()
        [2.0, 1.0, 2.0]
    """
    best = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices == targets[:, None]
    return torch.tensor([len(targets), int(best[:, 0].sum()), int(best.sum())], dtype=torch.float64)
