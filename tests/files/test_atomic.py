"""Files and folders that appear whole or not at all, also on a disk that is full."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monoloss.errors import InputError
from monoloss.files.atomic import atomic_file, atomic_folder, remove_temporaries, sha256, write_text
from monoloss.files.json import write_json
from monoloss.files.tensors import save_tensors
from support.disk_limit import file_size_limit


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Killed(BaseException):
    """Like KeyboardInterrupt: no `except Exception` sees it."""


def test_a_file_appears_whole_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "note.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert everything_in(tmp_path) == ["a", "a/b", "a/b/note.txt"]


@pytest.mark.parametrize("error", [RuntimeError, Killed])
def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "note.txt"
    target.write_text("old")

    def fail(path: Path) -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail(target)
    with pytest.raises(error):
        fail(tmp_path / "new" / "parents" / "note.txt")
    assert target.read_text() == "old"
    assert everything_in(tmp_path) == ["note.txt"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    with atomic_file(tmp_path / "ours") as temporary:
        os.close(os.open(temporary, os.O_CREAT, 0o600))  # as some writers do
    with atomic_folder(tmp_path / "folder") as folder:
        os.close(os.open(folder / "ours", os.O_CREAT, 0o600))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours", "folder/ours")]
    assert modes[1:] == [modes[0], modes[0]]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "note.txt").write_text("new")
        assert everything_in(tmp_path) == [folder.name, f"{folder.name}/deep", f"{folder.name}/deep/note.txt"]
    assert everything_in(tmp_path) == ["run", "run/deep", "run/deep/note.txt"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which file is flushed")
def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(Path(f"/proc/self/fd/{fd}").resolve().name), fsync(fd)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1])
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "note.txt").write_text("new")
    assert events == ["note.txt", "deep", folder.name, "rename", tmp_path.name]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path, *, replace: bool = False) -> None:
        with atomic_folder(path, replace=replace) as folder:
            (folder / "note.txt").write_text("half")
            raise Killed

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "note.txt").write_text("old")
    for path, replace in [(tmp_path / "new" / "run", False), (tmp_path / "old", True)]:
        with pytest.raises(Killed):
            fail(path, replace=replace)
    assert everything_in(tmp_path) == ["old", "old/note.txt"]
    assert (tmp_path / "old" / "note.txt").read_text() == "old"


def test_an_empty_folder_is_filled_and_a_full_one_replaced_on_request(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    for replace, content in [(False, "first"), (True, "second")]:
        with atomic_folder(target, replace=replace) as folder:
            (folder / f"{content}.txt").write_text(content)
    assert everything_in(tmp_path) == ["run", "run/second.txt"]


def test_the_old_folder_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "note.txt").write_text("old")
    rename = Path.rename

    def failing_rename(self: Path, to: Path) -> Path:
        if (self / "new.txt").exists():
            raise OSError("disk gone")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing_rename)

    def write() -> None:
        with atomic_folder(target, replace=True) as folder:
            (folder / "new.txt").write_text("new")

    with pytest.raises(OSError, match="disk gone"):
        write()
    assert everything_in(tmp_path) == ["run", "run/note.txt"]


@pytest.mark.door
def test_a_full_folder_and_a_wrong_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("old")
    with pytest.raises(InputError, match="full: got a folder that is not empty; expected a folder that is empty or"):
        atomic_folder(tmp_path / "full").__enter__()
    with pytest.raises(InputError, match=r"note\.txt: got a file; expected a path for a folder"):
        atomic_folder(tmp_path / "full" / "note.txt").__enter__()
    with pytest.raises(InputError, match="full: got a folder; expected a path for a file"):
        atomic_file(tmp_path / "full").__enter__()
    assert everything_in(tmp_path) == ["full", "full/note.txt"]


def test_what_a_kill_leaves_behind_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / ".keep.tmp").write_text("a file of the user's")
    killed = atomic_file(tmp_path / "note.txt")
    killed.__enter__().write_text("half")
    assert len(everything_in(tmp_path)) == 3
    remove_temporaries(tmp_path)
    assert everything_in(tmp_path) == [".keep.tmp"]


def tensors_in_a_file(path: Path) -> None:
    with atomic_file(path) as temporary:
        save_tensors({"a": torch.ones(2000)}, temporary)


def tensors_in_a_folder(path: Path) -> None:
    with atomic_folder(path.parent, replace=True) as temporary:
        save_tensors({"a": torch.ones(2000)}, temporary / path.name)


def json_in_a_folder(path: Path) -> None:
    with atomic_folder(path.parent, replace=True) as temporary:
        write_json(temporary / path.name, {"a": "b" * 5000}, format_version=1)


@pytest.mark.parametrize(
    "write",
    [
        tensors_in_a_file,
        tensors_in_a_folder,
        json_in_a_folder,
        lambda path: write_text(path, "a" * 5000),
        lambda path: write_json(path, {"a": "b" * 5000}, format_version=1),
    ],
)
def test_a_disk_that_is_full_is_an_error_with_the_name_of_the_file(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    target = tmp_path / "run" / "file"
    target.parent.mkdir()
    target.write_text("old")
    with file_size_limit(4096), pytest.raises(OSError, match="File too large") as caught:
        write(target)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(target))
    assert everything_in(tmp_path) == ["run", "run/file"]
    assert target.read_text() == "old"
    write(target)


def test_errors_of_other_things_than_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_file(tmp_path / "x"):
            raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError) as caught:
        fail()
    assert caught.value.filename is None


def test_text_is_the_same_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "linesep", "\r\n")
    write_text(tmp_path / "x", "a\nb\n")
    write_json(tmp_path / "y", {"a": 1}, format_version=1)
    assert (tmp_path / "x").read_bytes() == b"a\nb\n"
    assert (tmp_path / "y").read_bytes() == b'{\n "format_version": 1,\n "a": 1\n}\n'
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "z", "é")
    assert everything_in(tmp_path) == ["x", "y"]


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
