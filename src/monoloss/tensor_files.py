"""Tensors as safetensors files, whose errors are those of the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_OS_ERROR = re.compile(r"\(os error (\d+)\)|\bcode: (\d+)")  # in texts of safetensors; the second before 0.6


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file. Not atomic by itself: into what `atomic_file` or `atomic_folder` hands out.

    Raises:
        OSError: with the path, where the disk is full or the like (safetensors raises an error of its own).
    """
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1] or found[2])
        raise OSError(number, os.strerror(number), str(path)) from error
