"""Activations read from a file; row ``i`` of the file belongs to row ``i`` of a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors import safe_open
from torch import Tensor

from monoloss.checks import check_type
from monoloss.data.array_files import (
    choose_key,
    open_npy,
    open_npz,
    open_pt,
    plain_tensor,
    read_member,
    reading,
    to_tensor,
)
from monoloss.data.transfer import queue_copy
from monoloss.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
USUAL_KEYS = ("activations", "codes")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SMALL_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16)  # float32 holds them exactly


class StoredActivations:
    """Activations ``(n, m)`` in a file, for the rows of a store in stored order, read a slice at a time.

    Args:
        path: an .npy file (memory-mapped); or an .npz (read whole), .safetensors or .pt file with one array (a tensor,
            or a dict that holds it; both memory-mapped, but a .pt of the old format is read whole). Numbers of any
            real type; integers become floating point. Nothing in a file is executed.
        key: name of the array in a file that holds several; by default `activations`, `codes`, or the only one.
        device: device of the slices.

    Attributes:
        path: path of the file.
        shape: n and m.

    Raises:
        InputError: the file cannot be read, or has no such array; the error lists its keys.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(folder + "/a.npy", np.eye(3, dtype=np.float16))
        ...     StoredActivations(folder + "/a.npy").rows(1, 3)
        tensor([[0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float16)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, key: str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.path, self.device = Path(path), torch.device(device)
        check_type("key", key, str | None, "the name of an array, or None")
        suffix = self.path.suffix.lower()
        if suffix not in _OPENERS:
            got = "no such file" if not self.path.exists() else f"a file that ends in {suffix or 'nothing'}"
            raise InputError(str(path), got, f"activations in a file that ends in {', '.join(SUFFIXES)}")
        with reading(self.path):
            self._array = _OPENERS[suffix](self.path, key)
        shape = tuple(self._array.get_shape() if hasattr(self._array, "get_shape") else self._array.shape)
        if len(shape) != 2 or shape[1] == 0:
            raise InputError(str(path), f"an array of shape {shape}", "activations of shape (rows, latents)")
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.rows(0, 0)  # raises unless the dtype is one of real numbers

    @property
    def description(self) -> str:
        """A few words that say what the activations are, with the name of the file."""
        return f"activations in {self.path.name}"

    def rows(self, start: int, stop: int) -> Float[Tensor, "n m"]:
        """Return the activations of the rows ``start`` to ``stop`` (exclusive), floating point, on ``device``.

        Raises:
            InputError: NaN or infinity among them (the error names the row and the latent), or complex numbers.
        """
        with reading(self.path):
            part = _as_floats(self.path, self._array[start:stop])
        if not torch.isfinite(part.sum()):
            bad = (~torch.isfinite(part)).nonzero()
            if len(bad):  # none if only the sum overflowed
                row, latent = bad[0].tolist()
                got = f"{float(part[row, latent])} (row {start + row}, latent {latent})"
                raise InputError(str(self.path), got, "finite numbers")
        return queue_copy(part, self.device)

    def __len__(self) -> int:
        return self.shape[0]


def _as_floats(path: Path, part: Shaped[np.ndarray, "n m"] | Shaped[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Convert rows of an array to a floating-point tensor that holds their values exactly (int64 up to 2^53)."""
    values = to_tensor(str(path), part)
    if values.is_complex():
        raise InputError(str(path), f"dtype {values.dtype}", "real numbers")
    if values.dtype in _FLOATS:
        return values
    return values.to(torch.float32 if values.dtype in _SMALL_INTEGERS else torch.float64)


def _open_npy(path: Path, key: str | None) -> Shaped[np.ndarray, "..."]:
    """Map the array of an .npy file; refuse a key."""
    if key is not None:
        raise InputError("key", f"{key!r} for {path}", "None: an .npy file holds one array")
    return open_npy(path)


def _open_npz(path: Path, key: str | None) -> Shaped[np.ndarray, "..."]:
    """Return the array of an .npz file that the key names, or the only one."""
    with open_npz(path) as archive:
        return read_member(archive, path, _key(path, key, archive.files))


def _open_safetensors(path: Path, key: str | None) -> Any:
    """Return a slice object of the tensor that the key names, or of the only one: rows are read on demand."""
    with safe_open(path, framework="pt") as file:
        return file.get_slice(_key(path, key, list(file.keys())))


def _open_pt(path: Path, key: str | None) -> Tensor:
    """Load the tensor of a .pt file: the file's own, or that of its dict that the key names."""
    content = open_pt(path)
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = tensors[_key(path, key, list(tensors))]
    elif key is not None:
        raise InputError("key", f"{key!r} for {path}", "None: the file holds no dict")
    if not isinstance(content, Tensor):
        raise InputError(str(path), f"a {type(content).__name__}", "a tensor, or a dict that holds it")
    return plain_tensor(path, content)


_OPENERS: Mapping[str, Callable[[Path, str | None], Any]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".pt": _open_pt,
}


def _key(path: Path, key: str | None, keys: Sequence[str]) -> str:
    """Return ``key`` if it is given, else the file's only key, else the one of ``USUAL_KEYS`` that the file has."""
    chosen = choose_key("key", keys[0] if key is None and len(keys) == 1 else key, USUAL_KEYS, keys, path)
    if chosen is None:
        got = f"the keys {', '.join(keys) or '(none)'}"
        raise InputError(str(path), got, "a key: the name of the array of activations")
    return chosen
