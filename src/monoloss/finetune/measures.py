"""Counts of correct classifications."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from monoloss.precision import sums_device

_TOP = 5


def top_counts(logits: Float[Tensor, "n c"], targets: Int64[Tensor, " n"]) -> Float64[Tensor, " 3"]:
    """Count the rows, those whose class has the largest logit, and those where it is among the five largest.

    The three counts are on the device for sums of the logits' device, where nothing waits for a GPU. With up to five
    classes the third one is the number of rows.
    """
    matches = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices == targets[:, None]
    correct, among_top = matches[:, 0].sum(), matches.sum()
    counts = torch.stack([torch.full_like(correct, len(targets)), correct, among_top])
    return counts.to(sums_device(logits.device)).double()
