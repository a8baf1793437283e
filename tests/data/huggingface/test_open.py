"""Hugging Face datasets written here, opened without any network: their splits, columns and tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from monoloss.data.huggingface.open import (
    arrow_tables,
    choose_split,
    class_names_of,
    features_of,
    open_dataset,
    reading_dataset,
)
from monoloss.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")


def numbers(n: int = 5, first: int = 0) -> Dataset:
    features = Features({"number": Value("int64"), "label": ClassLabel(names=["ant", "bee"])})
    return Dataset.from_dict({"number": list(range(first, first + n)), "label": [0] * n}, features=features)


def rows_of_split(path: Path, split: str | None = None, *, streaming: bool = True) -> list[int]:
    dataset = choose_split(open_dataset(path, None, streaming=streaming), split, path)
    return [number for table in arrow_tables(dataset, 2, path) for number in table["number"].to_pylist()]


@pytest.mark.parametrize("streaming", [True, False])
def test_files_and_folders_are_opened(tmp_path: Path, streaming: bool) -> None:
    numbers().to_parquet(tmp_path / "odd [1] *.parquet")
    numbers().save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    numbers().to_parquet(tmp_path / "files" / "train.parquet")
    for name in ("odd [1] *.parquet", "saved", "files"):
        assert rows_of_split(tmp_path / name, streaming=streaming) == [0, 1, 2, 3, 4]


def test_a_split_is_chosen(tmp_path: Path) -> None:
    DatasetDict({"train": numbers(), "test": numbers(2, 7)}).save_to_disk(tmp_path / "two")
    DatasetDict({"only": numbers(2, 7)}).save_to_disk(tmp_path / "one")
    assert rows_of_split(tmp_path / "two", "test") == [7, 8]
    assert rows_of_split(tmp_path / "one") == rows_of_split(tmp_path / "one", "only") == [7, 8]
    single = numbers()
    assert choose_split(single, None, "x") is single


def test_tables_hold_a_batch_each() -> None:
    assert [table["number"].to_pylist() for table in arrow_tables(numbers(), 2, "x")] == [[0, 1], [2, 3], [4]]
    assert list(arrow_tables(numbers().select([]), 2, "x")) == []


def test_types_that_are_not_declared_are_read_off_the_first_row() -> None:
    def rows() -> Iterator[dict[str, object]]:
        yield from ({"number": i, "name": "x"} for i in range(3))

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None
    assert features_of(stream, "x") == Features({"number": Value("int64"), "name": Value("string")})
    assert features_of(numbers(), "x") is not None


def test_names_of_classes() -> None:
    label = ClassLabel(names=["ant", "bee"])
    features = Features(
        {"label": label, "labels": List(label), "number": Value("int64"), "numbers": List(Value("int64"))}
    )
    assert class_names_of(features, "label") == class_names_of(features, "labels") == ["ant", "bee"]
    assert class_names_of(features, "number") is class_names_of(features, "numbers") is class_names_of(features, None)


@pytest.mark.door
def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n", encoding="ascii")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    for name, subset, message in [
        (
            "x.csv",
            None,
            r"x\.csv: got a file of another kind; expected a folder of save_to_disk, \.parquet or \.arrow f",
        ),
        ("absent", None, "absent: got no such file or folder; expected a folder of save_to_disk"),
        ("x.csv", "small", r"subset: got 'small'; expected none: .*x\.csv is not on the Hub"),
    ]:
        with pytest.raises(InputError, match=message):
            open_dataset(tmp_path / name, subset)
    with pytest.raises(InputError, match=r"torn\.parquet: got a dataset that cannot be read \(.*; expected a readable"):
        rows_of_split(tmp_path / "torn.parquet")
    with pytest.raises(InputError, match="x: got a dataset without rows; expected at least one row"):
        features_of(datasets.IterableDataset.from_generator(lambda: iter(())), "x")


@pytest.mark.door
def test_splits_that_are_absent_or_not_chosen() -> None:
    two = DatasetDict({"train": numbers(), "test": numbers()})
    for split in (None, "z"):
        with pytest.raises(InputError, match=f"split: got {split!r}; expected one of the splits of x: train, test"):
            choose_split(two, split, "x")
    with pytest.raises(InputError, match="split: got 'z'; expected none: x holds a single split"):
        choose_split(numbers(), "z", "x")


@pytest.mark.door
def test_errors_of_the_package_name_the_dataset() -> None:
    before = datasets.logging.get_verbosity()
    message = r"^x: got a dataset that cannot be read \(first line\); expected a readable"
    with pytest.raises(InputError, match=message), reading_dataset("x"):
        raise ValueError("first line\nsecond line")
    with pytest.raises(InputError, match=r"^key: got 'a'; expected 'b'"), reading_dataset("x"):
        raise InputError("key", "'a'", "'b'")
    assert datasets.logging.get_verbosity() == before
