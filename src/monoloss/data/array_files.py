"""Readers of .npy, .npz and .pt files: memory-mapped where possible, no code executed, errors name the file."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Shaped
from numpy import array, ndarray
from numpy.lib.npyio import NpzFile
from safetensors import SafetensorError
from torch import Tensor

from monoloss.errors import InputError, first_line

AnyArray: TypeAlias = Shaped[Tensor, "..."] | Shaped[ndarray, "..."]

EMBEDDING_KEYS = ("embeddings", "features")
LABEL_KEYS = ("labels", "targets")
ID_KEYS = ("ids",)
PATH_KEYS = ("paths",)
_ZIP_START = b"PK\x03\x04"  # of files written by torch 1.6 or later; only they can be memory-mapped


def choose_key(
    argument: str, key: str | None, usual: Sequence[str], present_keys: Collection[str], path: str | os.PathLike[str]
) -> str | None:
    """Return `key` if it is given ("": None), else the one of the `usual` keys that the file `path` has, or None.

    Raises:
        InputError: naming `argument`: the file has several usual keys, or lacks `key`.
    """
    candidates = [name for name in usual if name in present_keys] if key is None else [key] if key else []
    if len(candidates) > 1:
        raise InputError(argument, f"no choice between {' and '.join(candidates)} in {path}", "one of them")
    if candidates and candidates[0] not in present_keys:
        raise InputError(argument, repr(key), f"one of the keys of {path}: {', '.join(present_keys)}")
    return candidates[0] if candidates else None


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "file") -> Iterator[None]:
    """Turn every error of a library that reads the file `path` into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(str(path), error.strerror or f"an unreadable {what} ({error})", "a readable file") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        got = f"an unreadable {what} ({first_line(error).split('. ')[0]})"
        raise InputError(str(path), got, "a whole file without pickled objects") from error


def open_npy(path: str | os.PathLike[str]) -> Shaped[ndarray, "..."]:
    """Open the array of an .npy file, memory-mapped; pickled arrays are refused."""
    if zipfile.is_zipfile(path):
        raise InputError(str(path), "an archive of arrays", "an .npy file; archives end in .npz")
    with reading(path, "array"):
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[NpzFile]:
    """Open an .npz file, whose arrays `read_member` reads."""
    with reading(path, "archive"), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, ndarray):
            raise InputError(str(path), "a single array", "an .npz file; single arrays end in .npy")
        yield archive


def read_member(archive: NpzFile, path: str | os.PathLike[str], key: str) -> Shaped[ndarray, "..."]:
    """Read the array `key` of an opened .npz file; `path` is for errors."""
    with reading(path, f"array {key!r}"):
        member: ndarray = archive[key]
    return member


def open_pt(path: str | os.PathLike[str]) -> Any:
    """Load a file of torch.save, memory-mapped if it has the format of torch 1.6 or later; nothing is executed.

    Raises:
        InputError: the file cannot be read, or holds anything but tensors and plain containers.
    """
    expected = "a file of torch.save with nothing but tensors, strings, numbers, lists and dicts"
    try:
        with Path(path).open("rb") as file:
            is_zip = file.read(len(_ZIP_START)) == _ZIP_START
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about formats that torch then refuses
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", expected) from error
    except Exception as error:  # a broken pickle can raise anything
        foreign = re.search(r"(?i)unsupported global:? (?:GLOBAL )?([\w.]+)", str(error))
        got = f"a pickle with {foreign[1]} in it" if foreign else "an unreadable file"  # torch advises to run it
        raise InputError(str(path), f"{got}; nothing of it was executed", expected) from error


def plain_tensor(path: str | os.PathLike[str], tensor: Tensor) -> Tensor:
    """Return a detached tensor of the file `path`; `InputError` unless it is dense, not quantized and on the CPU."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "a quantized tensor" if tensor.is_quantized else f"a tensor of layout {tensor.layout} on {tensor.device}"
        raise InputError(str(path), kind, "dense tensors on the CPU, as .to_dense() and .cpu() make them")
    return tensor.detach()


def check_array(name: str, values: object) -> None:
    """Raise `InputError`, naming `name`, unless the values are a tensor or a NumPy array."""
    if not isinstance(values, Tensor | ndarray):
        raise InputError(name, type(values).__name__, "a torch tensor or a NumPy array")


def dtype_name(values: AnyArray) -> str:
    """Return the name of the dtype as NumPy and torch both spell it, such as "float32"."""
    return values.dtype.name if isinstance(values, ndarray) else str(values.dtype).removeprefix("torch.")


def to_tensor(name: str, values: AnyArray) -> Shaped[Tensor, "..."]:
    """Return values as a tensor on the CPU; NumPy arrays are copied, which reads a memory-mapped part of a file."""
    check_array(name, values)
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(array(values, dtype=values.dtype.newbyteorder("=")))
    except TypeError as error:
        raise InputError(name, f"dtype {values.dtype}", "numbers of a dtype that torch has") from error
