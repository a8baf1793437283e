"""Checks of class labels. Tested in ``tests/functional/test_purity.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from monoloss.checks.tensors import check_same_device
from monoloss.errors import InputError
from monoloss.waiting import may_branch


def check_label_kind(labels: Tensor) -> None:
    """Check that labels are 1-D integers or a 2-D bool table."""
    expected = "integers (n,), one class a row, or bool (n, n_classes), any number of classes a row"
    if not isinstance(labels, Tensor):
        raise InputError("labels", type(labels).__name__, f"a tensor of {expected}")
    is_bool = labels.dtype == torch.bool
    integers = not (is_bool or labels.is_floating_point() or labels.is_complex())
    if not ((labels.ndim == 1 and integers) or (labels.ndim == 2 and is_bool)):
        raise InputError("labels", f"shape {tuple(labels.shape)}, dtype {labels.dtype}", expected)


def check_labels(labels: Tensor, n_classes: int, n_rows: int, device: torch.device) -> None:
    """Check that there are labels below ``n_classes`` for so many rows on a device; on a GPU not which labels."""
    check_label_kind(labels)
    if n_classes < 1:
        raise InputError("n_classes", n_classes, "at least 1")
    if labels.shape[0] != n_rows:
        raise InputError("labels", f"{labels.shape[0]} rows", f"as many as activations has, {n_rows}")
    check_same_device("labels", labels.device, "activations", device)
    if labels.ndim == 2:
        if labels.shape[1] != n_classes:
            raise InputError("labels", f"{labels.shape[1]} columns", f"one for each of {n_classes} classes")
        return
    if not may_branch(labels.device):
        return
    numbers = labels.long()  # a short type cannot hold `n_classes` itself
    outside = ((numbers < 0) | (numbers >= n_classes)).nonzero()
    if outside.shape[0]:
        row = int(outside[0])
        raise InputError("labels", f"{int(labels[row])} (row {row})", f"labels from 0 to {n_classes - 1}")
