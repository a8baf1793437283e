"""Checks of tensors: shape, dtype, device and finite values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monoloss.errors import InputError
from monoloss.waiting import may_check


def check_matrix(name: str, value: Any, *, rows: int | None = None, width: int | None = None) -> None:
    """Check that a value is a floating-point ``(rows, width)`` tensor; None allows any number."""
    expected = f"a floating-point tensor of shape ({rows or 'n'}, {width or 'any width'})"
    if not isinstance(value, Tensor):
        raise InputError(name, type(value).__name__, expected)
    check_dense(name, value)
    if not value.is_floating_point():
        raise InputError(name, f"dtype {value.dtype}", expected)
    fits = value.ndim == 2 and (rows is None or value.shape[0] == rows) and (width is None or value.shape[1] == width)
    if not fits:
        raise InputError(name, f"shape {tuple(value.shape)}", expected)


def check_dense(name: str, value: Tensor) -> None:
    """Check that a tensor is plain memory: not sparse, nested or quantised, and of at least 16 bits a number."""
    if torch.compiler.is_compiling():  # which refuses other layouts itself
        return
    kind, expected = None, "a dense tensor"
    if value.is_nested:
        kind = "a nested tensor"
    elif value.layout != torch.strided:
        kind = f"layout {value.layout}"
    elif value.is_quantized:
        kind = "a quantised tensor"
    elif value.is_floating_point() and value.dtype.itemsize == 1:
        kind, expected = f"dtype {value.dtype}", "float16, bfloat16, float32 or float64"
    if kind is not None:
        raise InputError(name, kind, f"{expected}, or SparseActivations" if name == "activations" else expected)


def check_vector(name: str, value: Any, width: int | None = None) -> None:
    """Check that a value is a floating-point ``(width,)`` tensor, on the CPU also finite; None allows any width."""
    expected = f"a floating-point tensor of shape ({'any width' if width is None else width},)"
    if not isinstance(value, Tensor):
        raise InputError(name, type(value).__name__, expected)
    check_dense(name, value)
    if value.ndim != 1 or value.shape[0] != (width or value.shape[0]) or not value.is_floating_point():
        raise InputError(name, f"shape {tuple(value.shape)}, dtype {value.dtype}", expected)
    if may_check(value.device) and not torch.isfinite(value).all():
        raise InputError(name, "NaN or infinity", "finite numbers")


def check_rows(embeddings: Any, activations: Any, center: Any = None) -> None:
    """Check the types of embeddings, activations (dense or sparse) and centre, and that shapes and devices agree."""
    check_matrix("embeddings", embeddings)
    n, d = embeddings.shape
    if d == 0:
        raise InputError("embeddings", f"shape {tuple(embeddings.shape)}", "a width of at least 1")
    if not hasattr(activations, "n_latents"):  # dense; sparse activations are checked when they are made
        check_matrix("activations", activations)
        if activations.shape[1] == 0:
            raise InputError("activations", f"shape {tuple(activations.shape)}", "at least 1 latent")
    if activations.shape[0] != n:
        raise InputError("activations", f"{activations.shape[0]} rows", f"as many as embeddings has, {n}")
    check_same_device("activations", activations.device, "embeddings", embeddings.device)
    if center is not None:
        check_vector("center", center, d)
        check_same_device("center", center.device, "embeddings", embeddings.device)


def check_same_device(name: str, got: torch.device, other: str, expected: torch.device) -> None:
    """Raise `InputError` naming the tensor ``name`` unless its device is that of the tensor ``other``, and not meta."""
    if got != expected:
        raise InputError(name, f"device {got}", f"the device of {other}, {expected}")
    if got.type == "meta":
        raise InputError(name, "a tensor without values, on the meta device", "one with values")
