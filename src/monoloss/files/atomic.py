"""Atomic writing: a file or folder appears whole or not at all. Also text files and sha256."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from monoloss.errors import InputError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of the disk, which may lack a file name


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all: the block gets a temporary path to write, which is then renamed to `path`.

    The temporary path lies in a new folder beside `path`. When the block ends, the file is flushed to the disk and
    renamed, which replaces an older file in one step. When the block raises, nothing is left behind and an older file
    is untouched. After a kill the temporary folder stays: see `remove_temporaries`.

    Args:
        path: the file to write; missing parent folders are made.

    Raises:
        InputError: `path` is a folder.
        OSError: the disk is full or the like; the error names `path`.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(str(target), "a folder", "a path for a file")
    with _temporary_beside(target) as temporary, _errors_naming(target, temporary / target.name):
        yield temporary / target.name
        _flush(temporary / target.name, _file_mode(temporary))
        (temporary / target.name).replace(target)
        _sync_folder(target.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Write a folder whole or not at all: the block gets a temporary folder to fill, which is then renamed to `path`.

    When the block ends, all its files are flushed to the disk and the folder is renamed. When the block raises,
    nothing is left behind. After a kill the temporary folder stays beside the target: see `remove_temporaries`.

    Args:
        path: the folder to make; it does not exist yet or is empty. Missing parent folders are made.
        replace: allow a folder that is not empty; it is moved aside, and deleted once the new one has its name. (For an
            instant between the two renames neither exists; if the second fails, the old folder is put back.)

    Raises:
        InputError: `path` is a file, or a folder that is not empty while `replace` is off; before anything is written.
        OSError: the disk is full or the like; the error names the file below `path`, or `path`.
    """
    target = Path(path).resolve()
    check_new_folder(target, allow_full=replace)
    with _temporary_beside(target) as temporary, _errors_naming(target, temporary):
        yield temporary
        mode = _file_mode(temporary)
        for parent, _, files in os.walk(temporary, topdown=False):
            for name in files:
                _flush(Path(parent, name), mode)
            _sync_folder(Path(parent))
        _put_in_place(temporary, target)


def check_new_folder(path: str | os.PathLike[str], *, allow_full: bool = False) -> None:
    """Refuse a `path` where no new folder can be made: a file, a path below a file, or a folder that is not empty.

    With `allow_full` a folder that is not empty is accepted.
    """
    target = Path(path)
    nearest = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        got = "a file" if nearest == target else f"a path below the file {nearest}"
        raise InputError(str(target), got, "a path for a folder")
    if not allow_full and target.is_dir() and any(target.iterdir()):
        raise InputError(str(target), "a folder that is not empty", "a folder that is empty or does not exist yet")


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary folders that killed calls of `atomic_file` and `atomic_folder` have left in `folder`.

    To be called only while no other process writes to `folder`.
    """
    for leftover in Path(folder).glob(".*.tmp"):
        if leftover.is_dir() and _TEMPORARY.fullmatch(leftover.name):
            shutil.rmtree(leftover)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write an ASCII file atomically; lines end with a line feed on every system."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="ascii", newline="\n")


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's contents, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """Make an empty folder beside `target` for a block, then delete it; after an error also the parents made for it."""
    new_parents = [parent for parent in target.parents if not parent.exists()]
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise InputError(str(target), f"a place that cannot be written ({error.strerror})", "another") from error
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # not empty: another process has written to it
                parent.rmdir()
        raise
    shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _errors_naming(target: Path, temporary: Path) -> Iterator[None]:
    """Make an `OSError` raised in the block name `target` where it names `temporary`, or no file though it should."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            error.filename = str(target)
        elif isinstance(error.filename, str):
            error.filename = error.filename.replace(str(temporary), str(target), 1)
        raise


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an older folder of that name is deleted, or put back if the rename fails."""
    old = None
    if target.is_dir() and any(target.iterdir()):
        old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        target.rename(old)
    elif target.is_dir():
        target.rmdir()
    try:
        temporary.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    _sync_folder(target.parent)
    if old is not None:
        shutil.rmtree(old)


def _file_mode(folder: Path) -> int:
    """Return the permissions of an ordinary new file, read off a new folder: some writers make owner-only files."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o666


def _flush(file: Path, mode: int) -> None:
    """Set the permissions of a file and flush it to the disk."""
    file.chmod(mode)
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
