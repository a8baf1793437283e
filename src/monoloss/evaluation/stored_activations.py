"""Activations that somebody has computed before: files whose rows belong to the rows of a store by position."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monoloss.checks import check_type
from monoloss.data.store.rows import to_tensor
from monoloss.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
USUAL_KEYS = ("activations", "codes")
_NEEDED = "a whole file without pickled objects"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SMALL_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16)  # float32 holds them exactly


class StoredActivations:
    """Activations ``(n, m)`` of the rows of a store, in its order, read a slice at a time.

    Args:
        path: an .npy file (memory-mapped); or one array of an .npz (which is read whole), .safetensors or .pt file (a
            tensor, or a dict with it; both memory-mapped, a .pt of the old format is read whole). Numbers of any real
            type; integers become floating point. Nothing in a file is executed.
        key: of the array in files that hold several; by default `activations`, `codes`, or the only one.
        device: where slices come back.

    Attributes:
        path: of the file.
        shape: n and m.

    Raises:
        InputError: the file cannot be read, or holds no such array; the error lists the keys that are there.

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
            came = "no such file" if not self.path.exists() else f"a file that ends in {suffix or 'nothing'}"
            raise InputError(str(path), came, f"activations in a file that ends in {', '.join(SUFFIXES)}")
        with _reading(self.path):
            self._array = _OPENERS[suffix](self.path, key)
        shape = tuple(self._array.get_shape() if hasattr(self._array, "get_shape") else self._array.shape)
        if len(shape) != 2 or shape[1] == 0:
            raise InputError(str(path), f"an array of shape {shape}", "activations of shape (rows, latents)")
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.rows(0, 0)  # refuses what are no real numbers

    @property
    def description(self) -> str:
        """What they are, in a few words."""
        return f"activations in {self.path.name}"

    def rows(self, start: int, stop: int) -> Float[Tensor, "n m"]:
        """Activations of the rows ``start`` to ``stop`` (exclusive), floating point, on ``device``.

        Raises:
            InputError: NaN or infinity among them (the error names the row of the file), or complex numbers.
        """
        with _reading(self.path):
            part = _as_floats(self.path, self._array[start:stop])
        if not torch.isfinite(part.sum()):
            bad = (~torch.isfinite(part)).nonzero()
            if len(bad):  # or the sum has overflowed
                row, latent = bad[0].tolist()
                came = f"{float(part[row, latent])} (row {start + row}, latent {latent})"
                raise InputError(str(self.path), came, "finite numbers")
        return part.to(self.device)

    def __len__(self) -> int:
        return self.shape[0]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a library raises for an unreadable file into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(str(path), error.strerror or f"an unreadable file ({error})", "a readable file") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        raise InputError(str(path), f"an unreadable file ({_first_sentence(error)})", _NEEDED) from error
    except pickle.UnpicklingError as error:  # what weights_only=True says of anything but tensors and plain containers
        raise InputError(str(path), "a file that holds more than tensors", "tensors, alone or in a dict") from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0]


def _as_floats(path: Path, part: Shaped[np.ndarray, "n m"] | Shaped[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    values = to_tensor(str(path), part)
    if values.is_complex():
        raise InputError(str(path), f"dtype {values.dtype}", "real numbers")
    if values.dtype in _FLOATS:
        return values
    return values.to(torch.float32 if values.dtype in _SMALL_INTEGERS else torch.float64)


def _open_npy(path: Path, key: str | None) -> Shaped[np.ndarray, "..."]:
    if key is not None:
        raise InputError("key", f"{key!r} for {path}", "None: an .npy file holds one array")
    if zipfile.is_zipfile(path):
        raise InputError(str(path), "an archive of arrays", "an .npy file; archives end in .npz")
    return np.lib.format.open_memmap(path, mode="r")


def _open_npz(path: Path, key: str | None) -> Shaped[np.ndarray, "..."]:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(str(path), "a single array", "an .npz file; single arrays end in .npy")
        array: np.ndarray = archive[_key(path, key, archive.files)]
        return array


def _open_safetensors(path: Path, key: str | None) -> Any:
    with safe_open(path, framework="pt") as file:
        return file.get_slice(_key(path, key, list(file.keys())))


def _open_pt(path: Path, key: str | None) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")  # which are refused below
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = tensors[_key(path, key, list(tensors))]
    elif key is not None:
        raise InputError("key", f"{key!r} for {path}", "None: the file holds no dict")
    if not isinstance(content, Tensor):
        raise InputError(str(path), f"a {type(content).__name__}", "a tensor, or a dict that holds it")
    if content.layout != torch.strided or content.is_quantized:
        raise InputError(str(path), f"a tensor of layout {content.layout}", "an ordinary tensor; .to_dense() makes one")
    return content.detach()


_OPENERS: Mapping[str, Callable[[Path, str | None], Any]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".pt": _open_pt,
}


def _key(path: Path, key: str | None, there: Sequence[str]) -> str:
    """The key that was asked for, or the usual one that is there, or the only one."""
    candidates = [name for name in USUAL_KEYS if name in there] or list(there)
    if key is None and len(candidates) == 1:
        return candidates[0]
    if key is not None and key in there:
        return key
    came = f"the keys {', '.join(there) or '(none)'}"
    needed = "a key: which of them holds the activations" if key is None else f"the key {key!r} among them"
    raise InputError(str(path), came, needed)
