"""Where sums are kept and in which precision products run, whatever the device, the dtype or an autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

_ROWS_IN_FLOAT64 = 512  # at a time: 3 MB for rows of 768


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """A context in which no autocast lowers the precision of products on ``device``."""
    return torch.autocast(device.type, enabled=False)


def sums_device(device: torch.device) -> torch.device:
    """Where float64 sums of data on ``device`` live: the device itself, or the CPU where it has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def product_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that products of ``dtypes`` run in: at least float32; float64 where one of them is."""
    result = torch.float32
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result


def row_norms(rows: Tensor) -> Tensor:
    """Length of each row, ``(n,)``, squared and summed in float64 where the device has it.

    Lifted a part at a time, which stays in the cache: many times faster than ``vector_norm(..., dtype=torch.float64)``.
    """
    wide = rows.dtype if rows.device.type == "mps" else torch.float64
    parts = [torch.linalg.vector_norm(part.to(wide), dim=1) for part in rows.split(_ROWS_IN_FLOAT64)]
    return torch.cat(parts)
