"""LMDB files in the layout of the MonoLoss authors, written here; what their reader would evaluate is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

import monoloss.data.importers.lmdb
from monoloss.data.importers.lmdb import import_lmdb
from monoloss.errors import InputError
from support.pickles import Touches
from support.stores import everything_in

ROWS = np.random.default_rng(1).normal(size=(13, 6)).astype(np.float32)


def entries_of(rows: np.ndarray, shape: str | None = None) -> dict[str, bytes]:
    """The keys and values of the layout."""
    entries = {str(number): row.astype(np.float32).tobytes() for number, row in enumerate(rows)}
    return entries | {"__len__": str(len(rows)).encode(), "__shape__": (shape or str(rows.shape[1:])).encode()}


def write(path: Path, entries: Mapping[str, bytes], *, subdir: bool = True) -> Path:
    with lmdb.open(str(path), map_size=1 << 20, subdir=subdir) as environment, environment.begin(write=True) as writing:
        for key, value in entries.items():
            writing.put(key.encode(), value)
    return path


def refused(path: Path, **options: Any) -> str:
    """The error; nothing is left behind."""
    before = everything_in(path.parent)
    with pytest.raises(InputError) as error:
        import_lmdb(path, path.parent / "s", **options)
    assert everything_in(path.parent) == before
    return str(error.value)


@pytest.mark.parametrize("shape", ["(6,)", "[6]", "(1, 6)", "( 1,6 , )", "[6, 1]"])
@pytest.mark.parametrize("subdir", [True, False])
def test_same_rows_bit_for_bit_in_the_order_of_their_numbers(tmp_path: Path, shape: str, subdir: bool) -> None:
    path = write(tmp_path / "train.lmdb", entries_of(ROWS, shape), subdir=subdir)
    store = import_lmdb(path, tmp_path / "s", rows_per_shard=4, image_root="root")
    assert np.array_equal(store.embeddings().numpy(), ROWS)
    assert store.ids == [str(row) for row in range(13)]
    assert (store.shard_offsets, store.manifest.dtype, store.has_labels) == ([0, 4, 8, 12, 13], "float32", False)
    assert store.manifest.image_root == "root"
    store.verify()


def test_the_data_file_itself_and_no_lock_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.lmdb", entries_of(ROWS))
    (path / "lock.mdb").unlink()
    assert len(import_lmdb(path / "data.mdb", tmp_path / "s")) == 13
    assert everything_in(path) == ["data.mdb"]


def test_labels_ids_and_paths_from_files(tmp_path: Path) -> None:
    path = write(tmp_path / "x.lmdb", entries_of(ROWS))
    names = [f"n{i % 3}/é {i}.jpg" for i in range(13)]
    (tmp_path / "labels.txt").write_text("".join(f"{i % 3}\n" for i in range(13)), encoding="utf-8")
    (tmp_path / "paths.txt").write_bytes("\r\n".join(names).encode())
    files = {"labels_path": tmp_path / "labels.txt", "paths_path": tmp_path / "paths.txt"}
    store = import_lmdb(path, tmp_path / "s", rows_per_shard=5, class_names=list("abc"), **files)
    assert store.labels().tolist() == [i % 3 for i in range(13)]
    assert store.paths == store.ids == names
    np.save(tmp_path / "ids.npy", np.arange(100, 113))
    np.save(tmp_path / "several.npy", np.eye(13, 4, dtype=bool))
    files = {"labels_path": tmp_path / "several.npy", "ids_path": tmp_path / "ids.npy"}
    store = import_lmdb(path, tmp_path / "t", rows_per_shard=5, **files)
    assert store.labels().tolist() == np.eye(13, 4, dtype=bool).tolist()
    assert store.ids == [str(i) for i in range(100, 113)]


def test_other_stored_types(tmp_path: Path) -> None:
    path = write(tmp_path / "x.lmdb", entries_of(ROWS))
    half = import_lmdb(path, tmp_path / "half", dtype="float16")
    assert np.array_equal(half.embeddings().numpy(), ROWS.astype(np.float16).astype(np.float32))
    path = write(tmp_path / "y.lmdb", entries_of(np.arange(1, 13).reshape(4, 3) * 0.5))
    store = import_lmdb(path, tmp_path / "bytes", dtype="uint8", scale=0.5)
    assert store.manifest.dtype == "uint8"
    assert store.embeddings().numpy().tolist() == (np.arange(1, 13).reshape(4, 3) * 0.5).tolist()


def test_a_shard_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.lmdb", entries_of(ROWS))
    asked: list[range] = []
    read = monoloss.data.importers.lmdb._read_rows

    def counting(*arguments: Any) -> np.ndarray:
        asked.append(arguments[2])
        return read(*arguments)

    monkeypatch.setattr(monoloss.data.importers.lmdb, "_read_rows", counting)
    import_lmdb(path, tmp_path / "s", rows_per_shard=6)
    assert asked == [range(6), range(6, 12), range(12, 13)]


@pytest.mark.door
@pytest.mark.parametrize(
    "shape",
    [
        "__import__('os').system('touch {file}')",
        "(__import__('pathlib').Path('{file}').touch() or 6,)",
        "(6,) if open('{file}', 'w') else (6,)",
        "(3, -1)",
        "(-6,)",
        "(6.0,)",
        "(2*3,)",
        "(10**9, 10**9)",
        "((6,),)",
        "[[6]]",
        "(6)",
        "6",
        "()",
        "[]",
        "(,)",
        "(6,,)",
        "(6 6)",
        "(0,)",
        "(6, 0)",
        "(6,)(6,)",
        "(6,]",
        "(६,)",
        "(0x6,)",
        "(" + "6," * 200 + ")",
        "(" + "9" * 50 + ",)",
        "torch.Size([6])",
        "",
    ],
)
def test_a_shape_that_is_no_tuple_of_integers(tmp_path: Path, shape: str) -> None:
    hit = tmp_path / "hit"
    path = write(tmp_path / "x.lmdb", entries_of(ROWS) | {"__shape__": shape.replace("{file}", str(hit)).encode()})
    message = refused(path)
    assert message.startswith(f"{path}, key __shape__: got b")
    assert message.endswith("expected a tuple of positive integers in decimal, such as (768,); it is not evaluated")
    assert not hit.exists()


@pytest.mark.door
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"__shape__": b"(2, 3)"}, "key __shape__: got b'(2, 3)'; expected one vector for each row"),
        ({"__shape__": b"(1000000000, 1000000000)"}, "key __shape__: got b'(1000000000, 1000000000)'; expected one"),
        (
            {"__shape__": b"(1000000000,)"},
            "key 0: got 24 bytes; expected a row of 4000000000 bytes: 1000000000 float32",
        ),
        ({"__shape__": b"(7,)"}, "key 0: got 24 bytes; expected a row of 28 bytes"),
        ({"__len__": b"1000000000"}, "key __len__: got 1000000000 rows; expected at most 13: it has 15 entries"),
        ({"__len__": b"12"}, "key 12: got a row; expected none after the 12 rows that __len__ promises"),
        ({"__len__": b"0"}, "key __len__: got b'0'; expected the number of rows in decimal"),
        ({"__len__": b"-1"}, "key __len__: got b'-1'"),
        ({"__len__": b"len(open('x'))"}, "key __len__: got b\"len(open('x'))\""),
        ({"__len__": pickle.dumps(13)}, "key __len__: got b'\\x80"),
        ({"7": b""}, "key 7: got 0 bytes; expected a row of 24 bytes: 6 float32 values, as __shape__ says"),
        ({"7": ROWS[7].tobytes()[:-1]}, "key 7: got 23 bytes"),
        ({"7": ROWS[7].astype(np.float16).tobytes()}, "key 7: got 12 bytes"),
        ({"7": pickle.dumps(ROWS[7])}, "key 7: got"),
    ],
)
def test_what_contradicts_the_data_is_named(tmp_path: Path, changes: dict[str, bytes], message: str) -> None:
    path = write(tmp_path / "x.lmdb", entries_of(ROWS) | changes)
    assert message in refused(path)


@pytest.mark.door
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("__len__", "got no key __len__; expected the keys __len__ and __shape__"),
        ("__shape__", "got no key __shape__; expected the keys __len__ and __shape__"),
        ("3", "key 3: got no such key; expected a row of 24 bytes"),
    ],
)
def test_missing_keys(tmp_path: Path, missing: str, message: str) -> None:
    entries = entries_of(ROWS)
    del entries[missing]
    path = write(tmp_path / "x.lmdb", entries | {"other": b"1"})
    assert message in refused(path, rows_per_shard=2)


def test_other_keys_are_never_unpickled(tmp_path: Path) -> None:
    path = write(tmp_path / "x.lmdb", entries_of(ROWS) | {"__keys__": pickle.dumps(Touches(tmp_path / "hit"))})
    assert len(import_lmdb(path, tmp_path / "s")) == 13
    assert not (tmp_path / "hit").exists()


@pytest.mark.door
def test_files_that_are_cut_off_or_no_lmdb(tmp_path: Path) -> None:
    content = (write(tmp_path / "x.lmdb", entries_of(np.ones((40, 300)))) / "data.mdb").read_bytes()
    for name, part in [("cut", content[: len(content) // 2]), ("short", content[:-1]), ("head", content[:9000])]:
        (tmp_path / f"{name}.lmdb").write_bytes(part)
        assert f"{name}.lmdb: got a file that is cut off at {len(part)} bytes" in refused(tmp_path / f"{name}.lmdb")
    (tmp_path / "empty.lmdb").write_bytes(b"")
    (tmp_path / "text.lmdb").write_text("0, 1, 2\n" * 2000, encoding="ascii")
    (tmp_path / "folder").mkdir()
    for name in ("empty.lmdb", "text.lmdb", "folder"):
        assert f"{name}: got data that cannot be read as LMDB" in refused(tmp_path / name)
    assert "absent: got no such file or folder" in refused(tmp_path / "absent")


@pytest.mark.door
def test_files_beside_it_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "x.lmdb", entries_of(ROWS))
    (tmp_path / "labels.txt").write_text("0\n1\ntwo\n", encoding="ascii")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    assert "labels.txt: got 'two' on line 3; expected an integer" in refused(path, labels_path=tmp_path / "labels.txt")
    assert "latin.txt: got no UTF-8" in refused(path, ids_path=tmp_path / "latin.txt")
    assert "absent.txt: got No such file" in refused(path, paths_path=tmp_path / "absent.txt")
    (tmp_path / "labels.txt").write_text("0\n1\n", encoding="ascii")
    assert refused(path, labels_path=tmp_path / "labels.txt").startswith("labels: got 2 rows; expected as many as")
    assert refused(path, dtype="uint8").startswith("scale: got None")
