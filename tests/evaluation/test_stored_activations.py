"""Activations from files: every format gives the same rows, slices only are read, bad contents name the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from monoloss.errors import InputError
from monoloss.evaluation.run import evaluate
from monoloss.evaluation.stored_activations import StoredActivations
from support.saes import generator_of, structured_store

N, M = 60, 7
Z = torch.randn(N, M, generator=generator_of(0))


def as_npy(path: Path, z: Tensor) -> None:
    """Under any name: np.save would add an ending."""
    with path.open("wb") as file:
        np.save(file, z.numpy())


def as_npz(path: Path, **arrays: Tensor) -> None:
    with path.open("wb") as file:
        np.savez(file, **{name: z.numpy() for name, z in arrays.items()})


WRITERS: dict[str, Callable[[Path, Tensor], Any]] = {
    "a.npy": lambda path, z: np.save(path, z.numpy()),
    "big-endian.npy": lambda path, z: np.save(path, z.numpy().astype(z.numpy().dtype.newbyteorder(">"))),
    "fortran.npy": lambda path, z: np.save(path, np.asfortranarray(z.numpy())),
    "a.npz": lambda path, z: np.savez(path, anything=z.numpy()),
    "packed.npz": lambda path, z: np.savez_compressed(path, labels=np.arange(3), codes=z.numpy()),
    "a.safetensors": lambda path, z: save_file({"activations": z, "other": torch.zeros(3)}, path),
    "a.pt": lambda path, z: torch.save(z, path),
    "dict.pt": lambda path, z: torch.save({"codes": z, "ids": ["a"], "other": torch.zeros(2)}, path),
    "old.pt": lambda path, z: torch.save(z, path, _use_new_zipfile_serialization=False),
    "parameter.pt": lambda path, z: torch.save(torch.nn.Parameter(z), path),
    "UPPER.NPY": as_npy,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_slices(tmp_path, name):
    WRITERS[name](tmp_path / name, Z)
    stored = StoredActivations(tmp_path / name)
    assert stored.shape == (N, M)
    assert len(stored) == N
    for start, stop in ((0, N), (0, 0), (13, 14), (50, N)):
        part = stored.rows(start, stop)
        assert torch.equal(part, Z[start:stop])
        assert not part.requires_grad


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors", "a.pt"])
@pytest.mark.parametrize(
    ("got", "back"),
    [
        (torch.float16, torch.float16),
        (torch.float64, torch.float64),
        (torch.bool, torch.float32),
        (torch.uint8, torch.float32),
        (torch.int16, torch.float32),
        (torch.int32, torch.float64),
        (torch.int64, torch.float64),
    ],
)
def test_dtypes(tmp_path, name, got, back):
    z = (Z * 3).to(got)
    WRITERS[name](tmp_path / name, z)
    part = StoredActivations(tmp_path / name).rows(3, 9)
    assert part.dtype == back
    assert torch.equal(part.double(), z[3:9].double())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_bfloat16(tmp_path, name):
    WRITERS[name](tmp_path / name, Z.bfloat16())
    assert torch.equal(StoredActivations(tmp_path / name).rows(0, N), Z.bfloat16())


def test_a_key_is_found_or_given(tmp_path):
    np.savez(tmp_path / "a.npz", train=Z.numpy(), val=Z.numpy() + 1)
    assert torch.equal(StoredActivations(tmp_path / "a.npz", key="val").rows(0, N), Z + 1)
    torch.save({"train": Z, "val": Z + 1}, tmp_path / "a.pt")
    assert torch.equal(StoredActivations(tmp_path / "a.pt", key="val").rows(0, N), Z + 1)


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
def test_a_huge_file_is_opened_without_reading_it(tmp_path, name):
    """2 GB of zeros on a file system that stores none of them: slices are read, never the whole."""
    rows, width = 2**20, 512
    path = tmp_path / name
    if name == "a.npy":
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width))
    else:
        header = b'{"codes":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,%d]}}' % (rows, width, rows * width * 4)
        header += b" " * (-len(header) % 8)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + rows * width * 4)
    stored = StoredActivations(path)
    assert stored.shape == (rows, width)
    assert torch.equal(stored.rows(rows - 3, rows), torch.zeros(3, width))


# In an evaluation


def test_judged_as_if_a_model_had_made_them(tmp_path):
    store = structured_store(tmp_path / "store", N, rows_per_shard=23)
    np.save(tmp_path / "a.npy", Z.numpy())

    class Model:
        def __init__(self) -> None:
            self.at = 0

        def encode(self, inputs: Tensor) -> Tensor:
            self.at += len(inputs)
            return Z[self.at - len(inputs) : self.at].clone()  # which lies in memory as a slice of a file does

    found = evaluate(store, {"stored": StoredActivations(tmp_path / "a.npy"), "made": Model()}, batch_size=9)
    assert found["stored"].summary == found["made"].summary
    for column, values in found["made"].latents.items():
        assert torch.equal(found["stored"].latents[column].nan_to_num(9), values.nan_to_num(9))
    assert torch.equal(found["stored"].examples.rows, found["made"].examples.rows)
    assert "r2" not in found["stored"].summary
    assert found["stored"].metadata["model"] == "activations in a.npy"


@pytest.mark.door
def test_another_number_of_rows_is_refused_before_the_pass(tmp_path):
    store = structured_store(tmp_path / "store", N)
    np.save(tmp_path / "a.npy", Z[1:].numpy())
    with pytest.raises(InputError) as caught:
        evaluate(store, {"a": StoredActivations(tmp_path / "a.npy")})
    path = tmp_path / "a.npy"
    assert str(caught.value) == f"models['a']: got {N - 1} rows in {path}; expected one for each row of the store, {N}"


@pytest.mark.door
def test_numbers_that_are_not_finite_are_named_by_their_row(tmp_path):
    store = structured_store(tmp_path / "store", N)
    for value, text in ((torch.nan, "nan"), (-torch.inf, "-inf")):
        z = Z.clone()
        z[41, 3] = value
        np.save(tmp_path / "a.npy", z.numpy())
        with pytest.raises(InputError) as caught:
            evaluate(store, {"a": StoredActivations(tmp_path / "a.npy")}, batch_size=7)
        assert str(caught.value) == f"{tmp_path / 'a.npy'}: got {text} (row 41, latent 3); expected finite numbers"


def test_large_but_finite_numbers_pass(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 2), 6e4, dtype=np.float16))  # whose sum is infinite
    assert StoredActivations(tmp_path / "a.npy").rows(0, 3).tolist() == [[60_000] * 2] * 3


# The door


def torn(path: Path, n_bytes: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-n_bytes])


class Evil:
    def __reduce__(self) -> Any:
        return (Path("/nowhere/at/all").mkdir, ())


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none.npy": (lambda _: None, "got No such file or directory"),
    "none.bin": (lambda _: None, "got no such file"),
    "a.bin": (lambda path: path.write_bytes(b"x"), "got a file that ends in .bin"),
    "folder.npy": (lambda path: path.mkdir(), "got Is a directory"),
    "torn.npy": (lambda path: (np.save(path, Z.numpy()), torn(path)), "unreadable"),
    "torn.npz": (lambda path: (np.savez(path, a=Z.numpy()), torn(path)), "unreadable"),
    "torn.safetensors": (lambda path: (save_file({"a": Z}, path), torn(path)), "unreadable"),
    "torn.pt": (lambda path: (torch.save(Z, path), torn(path)), "unreadable"),
    "empty.pt": (lambda path: path.write_bytes(b""), "unreadable"),
    "objects.npy": (lambda path: np.save(path, np.array([[Evil()]]), allow_pickle=True), "unreadable"),
    "objects.npz": (lambda path: np.savez(path, a=np.array([[Evil()]])), "unreadable"),
    "evil.pt": (lambda path: torch.save(Evil(), path), "in it; nothing of it was executed"),
    "module.pt": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "in it; nothing of it was executed"),
    "list.pt": (lambda path: torch.save([1, 2], path), "got a list"),
    "sparse.pt": (lambda path: torch.save(torch.eye(3).to_sparse(), path), "got a tensor of layout torch.sparse_coo"),
    "none.npz": (as_npz, "got the keys (none)"),
    "two.npz": (lambda path: np.savez(path, a=Z, b=Z), "got the keys a, b; expected a key"),
    "flat.npy": (lambda path: np.save(path, Z[0].numpy()), "got an array of shape (7,)"),
    "no-latents.npy": (lambda path: np.save(path, Z[:, :0].numpy()), "got an array of shape (60, 0)"),
    "complex.npy": (lambda path: np.save(path, Z.numpy() * 1j), "got dtype torch.complex64; expected real numbers"),
    "text.npy": (lambda path: np.save(path, np.array([["a"]])), "got dtype <U1"),
    "single.npz": (lambda path: as_npy(path, Z), "got a single array"),
    "archive.npy": (lambda path: as_npz(path, a=Z), "got an archive of arrays"),
}


@pytest.mark.door
@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name):
    write, text = DAMAGES[name]
    write(tmp_path / name)
    with pytest.raises(InputError) as caught:
        StoredActivations(tmp_path / name)
    assert caught.value.argument == str(tmp_path / name)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.door
def test_keys_that_are_not_there_or_mean_nothing(tmp_path):
    np.save(tmp_path / "a.npy", Z.numpy())
    torch.save(Z, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", a=Z.numpy())
    for name, text in (
        ("a.npy", "key: got 'b' for {path}; expected None: an .npy file holds one array"),
        ("a.pt", "key: got 'b' for {path}; expected None: the file holds no dict"),
        ("a.npz", "key: got 'b'; expected one of the keys of {path}: a"),
    ):
        with pytest.raises(InputError) as caught:
            StoredActivations(tmp_path / name, key="b")
        assert str(caught.value) == text.format(path=tmp_path / name)
