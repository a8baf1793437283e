"""Hugging Face datasets with a column of embeddings, written here and read without any network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

import monoloss.data.importers.hf_datasets
from monoloss.data.importers.hf_datasets import import_dataset
from monoloss.errors import InputError
from support.saved_datasets import save_dataset

ROWS = np.random.default_rng(2).normal(size=(11, 4)).astype(np.float32)
LABELS = [i % 3 for i in range(11)]
NAMES = [f"n{i}/é {i}.jpg" for i in range(11)]


pytestmark = pytest.mark.usefixtures("own_cache")


def dataset_of(rows: np.ndarray = ROWS, *, kind: str = "float32", length: int = -1, **columns: Any) -> Dataset:
    """A dataset of `embedding`, `label`, `path` and a column that is nobody's business; `columns` go over them."""
    features = {
        "embedding": List(Value(kind), length=length),
        "label": ClassLabel(names=["ant", "bee", "cat"]),
        "path": Value("string"),
        "caption": Value("string"),
    }
    content: dict[str, Any] = {"embedding": list(rows), "label": LABELS, "path": NAMES, "caption": ["x"] * 11}
    for name, (feature, values) in columns.items():
        features[name], content[name] = feature, values
    return Dataset.from_dict(content, features=Features(features))


def without(dataset: Dataset, *names: str) -> Dataset:
    return dataset.remove_columns(list(names))


def refused(path: Path | str, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        import_dataset(path, folder / "s", **options)
    assert not [*folder.glob("s"), *folder.glob(".s.*")]
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("name", ["saved", "x.parquet", "odd [1] *.parquet", "x.arrow"])
@pytest.mark.parametrize("length", [-1, 4])
def test_same_rows_labels_and_paths(tmp_path: Path, name: str, length: int) -> None:
    path = save_dataset(dataset_of(length=length), tmp_path / name)
    store = import_dataset(path, tmp_path / "s", rows_per_shard=4, image_root="root")
    assert np.array_equal(store.embeddings().numpy(), ROWS)
    assert store.labels().tolist() == LABELS
    assert store.class_names == ["ant", "bee", "cat"]
    assert store.ids == store.paths == NAMES
    assert (store.shard_offsets, store.manifest.dtype, store.manifest.image_root) == ([0, 4, 8, 11], "float32", "root")
    store.verify()


@pytest.mark.parametrize("name", ["saved", "x.parquet"])
@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_floating_types(tmp_path: Path, name: str, kind: str) -> None:
    path = save_dataset(dataset_of(ROWS.astype(kind), kind=kind), tmp_path / name)
    store = import_dataset(path, tmp_path / "s")
    assert np.array_equal(store.embeddings().numpy(), ROWS.astype(kind).astype(np.float32))
    assert store.manifest.dtype == ("float16" if kind == "float16" else "float32")


def test_bytes_with_a_scale(tmp_path: Path) -> None:
    rows = np.arange(1, 45, dtype=np.uint8).reshape(11, 4)
    store = import_dataset(
        save_dataset(dataset_of(rows, kind="uint8"), tmp_path / "x.parquet"), tmp_path / "s", scale=0.5
    )
    assert store.manifest.dtype == "uint8"
    assert torch.equal(store.embeddings(), torch.from_numpy(rows) * 0.5)


def test_chosen_columns(tmp_path: Path) -> None:
    more = {"z": (List(Value("float32")), list(-ROWS)), "y": (Value("int8"), LABELS[::-1])}
    more |= {"number": (Value("int32"), list(range(11))), "file": (Value("string"), [None, *NAMES[1:]])}
    path = save_dataset(dataset_of(**more), tmp_path / "x.parquet")
    keys = {"embeddings_key": "z", "labels_key": "y", "ids_key": "number", "paths_key": "file"}
    store = import_dataset(path, tmp_path / "s", rows_per_shard=5, **keys)
    assert np.array_equal(store.embeddings().numpy(), -ROWS)
    assert store.labels().tolist() == LABELS[::-1]
    assert store.class_names is None
    assert store.ids == [str(i) for i in range(11)]
    assert store.paths == [None, *NAMES[1:]]
    store = import_dataset(path, tmp_path / "t", labels_key="", paths_key="", embeddings_key="z")
    assert (store.has_labels, store.ids[:2], store.paths[0]) == (False, ["0", "1"], None)


def test_files_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array(LABELS[::-1]))
    (tmp_path / "ids.txt").write_text("\n".join(f"id {i}" for i in range(11)), encoding="utf-8")
    path, files = save_dataset(dataset_of(), tmp_path / "saved"), {"labels_path": tmp_path / "y.npy"}
    store = import_dataset(path, tmp_path / "s", rows_per_shard=4, ids_path=tmp_path / "ids.txt", **files)
    assert store.labels().tolist() == LABELS[::-1]
    assert store.class_names is None
    assert (store.ids, store.paths) == ([f"id {i}" for i in range(11)], NAMES)


@pytest.mark.parametrize("kind", ["named", "numbers", "bool"])
def test_several_labels_a_row(tmp_path: Path, kind: str) -> None:
    expected = np.random.default_rng(3).random((11, 3)) < 0.4
    expected[2] = False
    lists: Sequence[Any] = expected.tolist() if kind == "bool" else [row.nonzero()[0].tolist() for row in expected]
    feature = {"named": ClassLabel(names=list("abc")), "numbers": Value("int16"), "bool": Value("bool")}[kind]
    path = save_dataset(dataset_of(label=(List(feature), lists)), tmp_path / "x.parquet")
    options = {"class_names": list("abc")} if kind == "numbers" else {}
    store = import_dataset(path, tmp_path / "s", rows_per_shard=4, **options)
    assert np.array_equal(store.labels().numpy(), expected)
    assert store.class_names == (None if kind == "bool" else list("abc"))


def test_splits(tmp_path: Path) -> None:
    two = DatasetDict({"train": dataset_of(), "test": dataset_of(-ROWS)})
    two.save_to_disk(tmp_path / "two")
    DatasetDict({"only": dataset_of()}).save_to_disk(tmp_path / "one")
    (tmp_path / "files").mkdir()
    for name, part in two.items():
        part.to_parquet(tmp_path / "files" / f"{name}-00000.parquet")
    for name in ("two", "files"):
        store = import_dataset(tmp_path / name, tmp_path / f"out {name}", split="test")
        assert np.array_equal(store.embeddings().numpy(), -ROWS)
    assert len(import_dataset(tmp_path / "one", tmp_path / "out one")) == 11


def test_rows_that_were_chosen_and_shuffled(tmp_path: Path) -> None:
    chosen = dataset_of().select([7, 1, 5, 3, 9])
    store = import_dataset(save_dataset(chosen, tmp_path / "saved"), tmp_path / "s", rows_per_shard=2)
    assert np.array_equal(store.embeddings().numpy(), ROWS[[7, 1, 5, 3, 9]])
    assert store.paths == [NAMES[i] for i in (7, 1, 5, 3, 9)]


def test_lines_of_json_in_a_folder_do_not_say_their_types(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    lines = [json.dumps({"embedding": row.tolist(), "label": i % 3}) + "\n" for i, row in enumerate(ROWS)]
    (tmp_path / "folder" / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    store = import_dataset(tmp_path / "folder", tmp_path / "s")
    assert np.array_equal(store.embeddings().numpy(), ROWS)
    assert store.labels().tolist() == LABELS


def test_only_the_columns_that_are_needed_are_read_a_shard_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[str]]] = []
    read = monoloss.data.importers.hf_datasets.matrix

    def counting(column: pa.ChunkedArray, name: str, first_row: int) -> np.ndarray:
        seen.append((first_row, len(column)))
        return read(column, name, first_row)

    monkeypatch.setattr(monoloss.data.importers.hf_datasets, "matrix", counting)
    table, tables = [], monoloss.data.importers.hf_datasets.arrow_tables

    def watching(*arguments: Any) -> Any:
        for part in tables(*arguments):
            table.append(part.column_names)
            yield part

    monkeypatch.setattr(monoloss.data.importers.hf_datasets, "arrow_tables", watching)
    import_dataset(save_dataset(dataset_of(), tmp_path / "x.parquet"), tmp_path / "s", rows_per_shard=4)
    assert seen == [(0, 4), (4, 4), (8, 3)]
    assert table == [["embedding", "label", "path"]] * 3


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.IterableDatasetDict({"train": dataset_of().to_iterable_dataset()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    store = import_dataset("hf-hub:user/name", tmp_path / "s", split="train", subset="small", rows_per_shard=4)
    assert asked == [(("user/name", "small"), {"streaming": True})]
    assert np.array_equal(store.embeddings().numpy(), ROWS)


@pytest.mark.door
@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"embeddings_key": "z"}, "embeddings_key: got 'z'; expected one of the keys of"),
        (
            {},
            {"embeddings_key": "caption"},
            "column caption: got a column of string; expected a column of lists of num",
        ),
        ({}, {"embeddings_key": "label"}, "column label: got a column of int64; expected a column of lists"),
        ({}, {"labels_key": "caption"}, "column caption: got a column of string; expected integers (a ClassLabel is)"),
        ({}, {"ids_key": "embedding"}, "column embedding: got a column of list"),
        ({}, {"ids_key": "label"}, "ids: got '0' twice (rows 0 and 3)"),
        ({}, {"split": "test"}, "split: got 'test'; expected one of the splits of"),
        ({}, {"subset": "small"}, "subset: got 'small'; expected none:"),
        ({}, {"rows_per_shard": 4, "labels_path": "short.txt"}, "labels: got 2 rows; expected as many as embeddings"),
        (
            {},
            {"rows_per_shard": 4, "labels_path": "long.txt"},
            "labels: got 20 rows; expected as many as embeddings has",
        ),
        ({"label": (ClassLabel(names=["a"]), [0] * 10 + [-1])}, {}, "labels: got -1 (row 10, id"),
        ({"label": (Value("int64"), [0] * 10 + [None])}, {"rows_per_shard": 4}, "column label: got nothing in row 10"),
        ({"label": (Value("float32"), [0.0] * 11)}, {}, "column label: got a column of float"),
        ({"label": (List(Value("int64")), [[0]] * 11)}, {}, "column label: got lists of integers without class names"),
        (
            {"label": (List(Value("int64")), [[0]] * 9 + [[1], [2, 7]])},
            {"class_names": ["a", "b"], "rows_per_shard": 4},
            "column label: got 2 (row 10); expected labels from 0 to 1",
        ),
        (
            {"embedding": (List(Value("float32")), [[1.0]] * 9 + [[1.0, 2.0]] * 2)},
            {},
            "got 2 values (row 9); expected 1",
        ),
        (
            {"embedding": (List(Value("float32")), [[1.0, 2.0]] * 8 + [[1.0, None]] * 3)},
            {"rows_per_shard": 5},
            "column embedding: got a missing value (row 8)",
        ),
        ({"embedding": (List(Value("float32")), [[1.0]] * 10 + [None])}, {}, "column embedding: got nothing in row 10"),
        ({"embedding": (List(Value("float32")), [[]] * 11)}, {}, "embeddings: got shape (11, 0)"),
        ({"embedding": (List(Value("float32")), [[1.0]] * 10 + [[0.0]])}, {}, "embeddings: got only zeros once stored"),
        ({"embedding": (List(Value("int32")), [[1]] * 11)}, {}, "embeddings: got torch.int32 rows to store as float32"),
        ({"embeddings": (Value("int32"), [1] * 11)}, {}, "embeddings_key: got no choice between embeddings and embedd"),
        ({"path": (Value("string"), [None] * 11)}, {}, "ids: got None (row 0); expected strings"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("0\n" * 20, encoding="ascii")
    (tmp_path / "short.txt").write_text("0\n" * 2, encoding="ascii")
    assert message in refused(save_dataset(dataset_of(**columns), tmp_path / "x.parquet"), tmp_path, **options)


@pytest.mark.door
def test_without_a_column_of_embeddings(tmp_path: Path) -> None:
    path = save_dataset(without(dataset_of(), "embedding"), tmp_path / "x.parquet")
    message = refused(path, tmp_path)
    assert message == (
        f"{path}: got the keys label, path, caption; expected embeddings_key, or one of the keys embeddings, features, "
        "embedding, feature"
    )


@pytest.mark.door
def test_several_splits_need_a_choice(tmp_path: Path) -> None:
    DatasetDict({"train": dataset_of(), "test": dataset_of()}).save_to_disk(tmp_path / "two")
    assert refused(tmp_path / "two", tmp_path).startswith("split: got None; expected one of the splits of")
    save_dataset(dataset_of(), tmp_path / "one")
    assert refused(tmp_path / "one", tmp_path, split="x").startswith("split: got 'x'; expected none:")


@pytest.mark.door
def test_unreadable_datasets_are_named(tmp_path: Path) -> None:
    content = save_dataset(dataset_of(), tmp_path / "x.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(content[:-30])
    (tmp_path / "text.arrow").write_text("1, 2, 3\n" * 100, encoding="ascii")
    (tmp_path / "empty").mkdir()
    damaged = bytearray(content)
    damaged[4:30] = bytes(26)  # where its first page says what it is
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    pyarrow.parquet.write_table(pa.table({"embedding": pa.array([], pa.list_(pa.float32()))}), tmp_path / "no.parquet")
    save_dataset(dataset_of().select([]), tmp_path / "none")
    torn = save_dataset(dataset_of(), tmp_path / "torn")
    (torn / "state.json").write_text("{", encoding="ascii")
    for name in ("torn.parquet", "text.arrow", "empty", "damaged.parquet", "torn"):
        message = refused(tmp_path / name, tmp_path)
        assert message.startswith(f"{tmp_path / name}: got a dataset that cannot be read ("), message
    for name in ("none", "no.parquet"):
        assert refused(tmp_path / name, tmp_path).startswith(f"{tmp_path / name}: got ")
    (tmp_path / "x.csv").write_text("a,b\n", encoding="ascii")
    assert "x.csv: got a file of another kind; expected a folder of save_to_disk" in refused(
        tmp_path / "x.csv", tmp_path
    )
    assert "absent: got no such file or folder" in refused(tmp_path / "absent", tmp_path)
    assert refused("hf-hub:nobody/nothing", tmp_path).startswith("hf-hub:nobody/nothing: got a dataset that cannot be")


@pytest.mark.door
def test_a_folder_with_a_script_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    script = f"open({str(tmp_path / 'hit')!r}, 'w')\n"
    (tmp_path / "folder" / "folder.py").write_text(script, encoding="utf-8")
    refused(tmp_path / "folder", tmp_path)
    assert not (tmp_path / "hit").exists()
