"""Arrays in .npy, .npz and .pt files: which key is chosen, what is read, and how unreadable files are named."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss.data.array_files import (
    check_array,
    choose_key,
    dtype_name,
    open_npy,
    open_npz,
    open_pt,
    plain_tensor,
    read_member,
    reading,
    to_tensor,
)
from monoloss.errors import InputError
from support.pickles import Touches

USUAL = ("embeddings", "features")


@pytest.mark.parametrize(
    ("key", "present_keys", "expected"),
    [
        (None, ["x", "features"], "features"),
        (None, ["embeddings"], "embeddings"),
        (None, ["x"], None),
        ("x", ["x", "features"], "x"),
        ("", ["features"], None),
        ("x", ["x", "embeddings", "features"], "x"),
    ],
)
def test_the_given_key_goes_before_the_usual_one(
    key: str | None, present_keys: list[str], expected: str | None
) -> None:
    assert choose_key("embeddings_key", key, USUAL, present_keys, "file") == expected


@pytest.mark.door
def test_keys_that_are_absent_or_ambiguous() -> None:
    with pytest.raises(InputError, match="key: got no choice between embeddings and features in file; expected one of"):
        choose_key("key", None, USUAL, ["features", "embeddings"], "file")
    with pytest.raises(InputError, match="key: got 'z'; expected one of the keys of file: x, features"):
        choose_key("key", "z", USUAL, ["x", "features"], "file")


def test_npy_files_are_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6).reshape(2, 3))
    array = open_npy(tmp_path / "x.npy")
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.npz", a=np.arange(3), b=np.array(["x", "é"]))
    with open_npz(tmp_path / "x.npz") as archive:
        assert archive.files == ["a", "b"]
        assert read_member(archive, tmp_path / "x.npz", "a").tolist() == [0, 1, 2]
        assert read_member(archive, tmp_path / "x.npz", "b").tolist() == ["x", "é"]


def test_pt_files(tmp_path: Path) -> None:
    for as_zip in (True, False):
        content = {"a": torch.arange(3), "b": ["x", 1, {"c": None}]}
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=as_zip)
        loaded = open_pt(tmp_path / "x.pt")
        assert torch.equal(loaded["a"], content["a"])
        assert loaded["b"] == content["b"]


@pytest.mark.door
def test_pickled_objects_are_refused_and_not_executed(tmp_path: Path) -> None:
    trap = Touches(tmp_path / "hit")
    torch.save(trap, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([trap], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", a=np.array([trap], dtype=object))
    with pytest.raises(
        InputError, match=r"x\.pt: got a pickle with .*; nothing of it was executed; expected a file of"
    ):
        open_pt(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.npy: got an unreadable array .* expected a whole file without pickled"):
        open_npy(tmp_path / "x.npy")
    with (
        open_npz(tmp_path / "x.npz") as archive,
        pytest.raises(
            InputError, match=r"x\.npz: got an unreadable array 'a' .* expected a whole file without pickled"
        ),
    ):
        read_member(archive, tmp_path / "x.npz", "a")
    assert not (tmp_path / "hit").exists()


@pytest.mark.door
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory"),
            "x: got No such file or directory; expected a readable file",
        ),
        (OSError("broken"), r"x: got an unreadable part \(broken\); expected a readable file"),
        (
            zipfile.BadZipFile("Bad CRC-32. More.\nEven more"),
            r"x: got an unreadable part \(Bad CRC-32\); expected a who",
        ),
        (EOFError(), r"x: got an unreadable part \(EOFError\); expected a whole file without pickled objects"),
        (InputError("key", "'a'", "'b'"), "key: got 'a'; expected 'b'"),
    ],
)
def test_errors_of_libraries_name_the_file(error: Exception, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"), reading("x", "part"):
        raise error


@pytest.mark.door
def test_a_fault_of_the_program_is_not_one_of_the_file() -> None:
    with pytest.raises(ZeroDivisionError), reading("x"):
        _ = 1 / 0


@pytest.mark.door
def test_a_pt_file_that_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match=r"x\.pt: got an unreadable file; nothing of it was executed; expected a file"):
        open_pt(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"absent\.pt: got No such file or directory; expected a file of torch\.save"):
        open_pt(tmp_path / "absent.pt")


def test_the_same_name_of_a_type_in_both_libraries() -> None:
    for name in ("float16", "float32", "float64", "uint8", "int64", "bool"):
        assert dtype_name(np.zeros(1, dtype=name)) == dtype_name(torch.zeros(1, dtype=getattr(torch, name))) == name
    assert dtype_name(np.zeros(1, dtype=">f4")) == "float32"
    assert dtype_name(torch.zeros(1, dtype=torch.bfloat16)) == "bfloat16"


def test_arrays_are_copied_and_tensors_are_not() -> None:
    array = np.array([[1.0, 2.0]], dtype=">f4")
    array.setflags(write=False)
    tensor = to_tensor("x", array)
    assert (tensor.dtype, tensor.tolist()) == (torch.float32, [[1.0, 2.0]])
    tensor.zero_()
    assert array.tolist() == [[1.0, 2.0]]
    leaf = torch.ones(2, requires_grad=True)
    assert to_tensor("x", leaf).data_ptr() == leaf.data_ptr()
    assert not to_tensor("x", leaf).requires_grad


@pytest.mark.door
def test_what_is_no_array_of_numbers() -> None:
    with pytest.raises(InputError, match="x: got list; expected a torch tensor or a NumPy array"):
        check_array("x", [1.0])
    with pytest.raises(InputError, match="x: got dtype <U1; expected numbers of a dtype that torch has"):
        to_tensor("x", np.array(["a"]))
    assert plain_tensor("x", torch.ones(2, requires_grad=True)).requires_grad is False
    for tensor, kind in [(torch.eye(2).to_sparse(), "sparse_coo on cpu"), (torch.ones(2, device="meta"), "on meta")]:
        with pytest.raises(InputError, match=rf"x: got a tensor of layout .*{kind}; expected dense tensors on the CPU"):
            plain_tensor("x", tensor)
