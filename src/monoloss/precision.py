"""Where sums are kept and in which precision products run, whatever the device, the dtype or an autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


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
