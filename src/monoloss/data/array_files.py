"""Arrays in files of others: memory-mapped where the format allows it, never executed; errors name the file."""

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
_ZIP_START = b"PK\x03\x04"  # what torch has written since 1.6; only such files can be memory-mapped


def choose_key(
    argument: str, key: str | None, usual: Sequence[str], there: Collection[str], path: str | os.PathLike[str]
) -> str | None:
    """Choose the key that is given, or else the only usual one there; None if there is none, or for an empty key."""
    found = [name for name in usual if name in there] if key is None else [key] if key else []
    if len(found) > 1:
        raise InputError(argument, f"no choice between {' and '.join(found)} in {path}", "one of them")
    if found and found[0] not in there:
        raise InputError(argument, repr(key), f"one of the keys of {path}: {', '.join(there)}")
    return found[0] if found else None


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "file") -> Iterator[None]:
    """Turn whatever a library raises for an unreadable file into an `InputError` that names the file."""
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
    """Open the array of an .npy file, memory-mapped."""
    if zipfile.is_zipfile(path):
        raise InputError(str(path), "an archive of arrays", "an .npy file; archives end in .npz")
    with reading(path, "array"):
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[NpzFile]:
    """Open an .npz file; `read_member` reads its arrays."""
    with reading(path, "archive"), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, ndarray):
            raise InputError(str(path), "a single array", "an .npz file; single arrays end in .npy")
        yield archive


def read_member(archive: NpzFile, path: str | os.PathLike[str], key: str) -> Shaped[ndarray, "..."]:
    """Read one array of an .npz file."""
    with reading(path, f"array {key!r}"):
        member: ndarray = archive[key]
    return member


def open_pt(path: str | os.PathLike[str]) -> Any:
    """Open what a file of torch.save holds, memory-mapped where its format allows it.

    Raises:
        InputError: the file cannot be read, or holds anything but tensors and plain containers; nothing is executed.
    """
    expected = "a file of torch.save with nothing but tensors, strings, numbers, lists and dicts"
    try:
        with Path(path).open("rb") as file:
            is_zip = file.read(len(_ZIP_START)) == _ZIP_START
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what torch has to say about other formats it then refuses
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", expected) from error
    except Exception as error:  # a broken pickle can raise anything
        foreign = re.search(r"(?i)unsupported global:? (?:GLOBAL )?([\w.]+)", str(error))
        got = f"a pickle with {foreign[1]} in it" if foreign else "an unreadable file"  # torch advises to execute it
        raise InputError(str(path), f"{got}; nothing of it was executed", expected) from error


def plain_tensor(path: str | os.PathLike[str], tensor: Tensor) -> Tensor:
    """Detach a tensor; `InputError` unless its rows can be sliced on the CPU."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout}, {tensor.device}"
        raise InputError(str(path), f"a tensor that is {kind}", "ordinary tensors, as .to_dense() makes them")
    return tensor.detach()


def check_array(name: str, values: object) -> None:
    """Raise `InputError` for what is neither a tensor nor an array."""
    if not isinstance(values, Tensor | ndarray):
        raise InputError(name, type(values).__name__, "a torch tensor or a NumPy array")


def dtype_name(values: AnyArray) -> str:
    """Name the type of the numbers as NumPy and torch both do."""
    return values.dtype.name if isinstance(values, ndarray) else str(values.dtype).removeprefix("torch.")


def to_tensor(name: str, values: AnyArray) -> Shaped[Tensor, "..."]:
    """Turn an array into a tensor on the CPU; arrays are copied: a part of a memory-mapped file is read here."""
    check_array(name, values)
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(array(values, dtype=values.dtype.newbyteorder("=")))
    except TypeError as error:
        raise InputError(name, f"dtype {values.dtype}", "numbers of a type that torch knows") from error
