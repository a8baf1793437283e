"""Writing of safetensors files; an error of the disk is raised as `OSError`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_OS_ERROR = re.compile(r"\(os error (\d+)\)|\bcode: (\d+)")  # in safetensors' error texts; the second form before 0.6


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; not atomically, so to a path that `atomic_file` or `atomic_folder` has given.

    Raises:
        OSError: the disk is full or the like; with error number and path, which safetensors' own error lacks.
    """
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        match = _OS_ERROR.search(str(error))
        if match is None:
            raise
        number = int(match[1] or match[2])
        raise OSError(number, os.strerror(number), str(path)) from error
