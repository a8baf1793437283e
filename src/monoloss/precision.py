"""Device of the float64 sums and precision of the products, on any device, for any dtype and under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

_ROWS_IN_FLOAT64 = 512  # rows cast to float64 at a time: 3 MB for rows of width 768


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on ``device``, so that it does not lower the precision of products."""
    return torch.autocast(device.type, enabled=False)


def sums_device(device: torch.device) -> torch.device:
    """Return the device for float64 sums of data on ``device``: ``device``, or the CPU for MPS (it has no float64)."""
    return torch.device("cpu") if device.type == "mps" else device


def product_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype in which products of ``dtypes`` run: float64 if one of them is float64, else float32."""
    result = torch.float32
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result


def row_norms(rows: Tensor) -> Tensor:
    """Compute the length of each row, ``(n,)``, in float64; on MPS, which has none, in the dtype of the rows.

    Casts some rows at a time, which stay in the cache: much faster than ``vector_norm(..., dtype=torch.float64)``.
    """
    wide = rows.dtype if rows.device.type == "mps" else torch.float64
    parts = [torch.linalg.vector_norm(part.to(wide), dim=1) for part in rows.split(_ROWS_IN_FLOAT64)]
    return torch.cat(parts)
