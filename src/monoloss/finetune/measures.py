"""Counts of correct classifications."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_TOP = 5


def top_counts(logits: Float[Tensor, "n c"], targets: Int64[Tensor, " n"]) -> Float64[Tensor, " 3"]:
    """Count the rows, those whose class has the largest logit, and those where it is among the five largest.

    The three counts are on the CPU. With up to five classes the third one is the number of rows.
    """
    matches = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices == targets[:, None]
    return torch.tensor([len(targets), int(matches[:, 0].sum()), int(matches.sum())], dtype=torch.float64)
