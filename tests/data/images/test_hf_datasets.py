"""Images in Hugging Face datasets, written here and read without any network."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from monoloss.data.images import ImageSource, open_images
from monoloss.data.images.open import UnreadableImage, decode_image
from monoloss.errors import InputError
from support.image_files import encoded, write
from support.image_sources import refused
from support.saved_datasets import save_dataset

N = 70  # more than are read at a time
PICTURES = [encoded(np.full((2, 3, 3), i, np.uint8)) for i in range(N)]
LABELS = [i % 3 for i in range(N)]
SEVERAL = [[j for j in range(3) if (i >> j) % 2] for i in range(N)]
CLASSES = ["ant", "bee", "cat"]


pytestmark = pytest.mark.usefixtures("own_cache")


def dataset_of(**columns: Any) -> Dataset:
    """A dataset of `image`, `label` and a caption; `columns` go over them, None takes one away."""
    content = {
        "image": (Image(), [{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(PICTURES)]),
        "label": (ClassLabel(names=CLASSES), LABELS),
        "caption": (Value("string"), ["x"] * N),
    }
    kept = {name: column for name, column in (content | columns).items() if column is not None}
    features = Features({name: feature for name, (feature, _) in kept.items()})
    return Dataset.from_dict({name: values for name, (_, values) in kept.items()}, features=features)


def written(dataset: Dataset, path: Path) -> str:
    return f"dataset:{save_dataset(dataset, path)}"


def values_of(source: ImageSource, start: int = 0, stop: int | None = None) -> list[int]:
    return [int(np.asarray(decode_image(image.content))[0, 0, 0]) for image in source.images(start, stop)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["saved", "odd [1] *.parquet", "x.arrow"])
def test_same_rows_and_labels(tmp_path: Path, name: str, streaming: bool) -> None:
    spec = written(dataset_of(), tmp_path / name)
    source = open_images(spec, streaming=streaming)
    assert (source.description, source.image_root) == (spec, None)
    assert (source.labels, source.class_names) == ("single", CLASSES)
    assert source.n_images == (None if streaming and name != "saved" else N)
    images = list(source.images())
    assert [image.content for image in images] == PICTURES
    assert [image.position for image in images] == list(range(N))
    assert [image.id for image in images] == [str(i) for i in range(N)]
    assert [image.path for image in images] == [f"{i}.png" for i in range(N)]
    assert [image.label for image in images] == LABELS


@pytest.mark.parametrize("streaming", [False, True])
def test_from_anywhere(tmp_path: Path, streaming: bool) -> None:
    source = open_images(written(dataset_of(), tmp_path / "x.parquet"), streaming=streaming)
    for start in (0, 1, 31, 32, 33, N - 1, N, N + 5):
        for stop in (None, 0, 32, 40, N, N + 9):
            assert values_of(source, start, stop) == list(range(N))[start:stop], (start, stop)


def test_several_files_in_a_stream_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for i in range(3):
        dataset_of().select(range(i * 20, i * 20 + 20)).to_parquet(tmp_path / "x" / f"train-{i:05}-of-00003.parquet")
    for streaming in (False, True):
        source = open_images(f"dataset:{tmp_path}/x", streaming=streaming)
        assert values_of(source) == list(range(60))
        assert values_of(source, 19, 42) == list(range(19, 42))


def test_rows_that_were_chosen_and_shuffled(tmp_path: Path) -> None:
    chosen = dataset_of().select([7, 1, 65, 3])
    assert values_of(open_images(written(chosen, tmp_path / "saved")), 1) == [1, 65, 3]


@pytest.mark.parametrize("streaming", [False, True])
def test_several_labels(tmp_path: Path, streaming: bool) -> None:
    dataset = dataset_of(label=(List(ClassLabel(names=CLASSES)), [row[::-1] * 2 for row in SEVERAL]))
    source = open_images(written(dataset, tmp_path / "x.parquet"), streaming=streaming)
    assert (source.labels, source.class_names) == ("multi", CLASSES)
    assert [image.label for image in source.images()] == [tuple(row) for row in SEVERAL]


def test_labels_of_other_kinds(tmp_path: Path) -> None:
    def labels(name: str, column: Any, **options: Any) -> tuple[Any, ...]:
        source = open_images(written(dataset_of(label=column), tmp_path / f"{name}.parquet"), **options)
        return source.labels, source.class_names, [image.label for image in source.images()]

    assert labels("numbers", (Value("int16"), LABELS)) == ("single", None, LABELS)
    strings = (Value("string"), [["cat", "ant", "bee"][i] for i in LABELS])
    assert labels("strings", strings) == ("single", CLASSES, [(i + 2) % 3 for i in LABELS])
    assert labels("none", None) == (None, None, [None] * N)
    assert labels("left out", (ClassLabel(names=["a"]), [-1] * N), label_column="") == (None, None, [None] * N)


def test_chosen_columns(tmp_path: Path) -> None:
    other = [{"bytes": picture, "path": None} for picture in PICTURES[::-1]]
    fine = (ClassLabel(names=["x", "y"]), [i % 2 for i in range(N)])
    dataset = dataset_of(other=(Image(), other), fine=fine, key=(Value("int32"), [i * i for i in range(N)]))
    spec = written(dataset, tmp_path / "x.parquet")
    options = {"image_column": "other", "label_column": "fine", "id_column": "key"}
    for streaming in (False, True):
        source = open_images(spec, streaming=streaming, **options)
        assert values_of(source) == list(range(N))[::-1]
        assert source.class_names == ["x", "y"]
        assert [image.id for image in source.images(68)] == ["4624", "4761"]
        assert [image.path for image in source.images(68)] == [None, None]


def test_columns_that_do_not_say_that_they_are_images(tmp_path: Path) -> None:
    table = pa.table({"jpg": PICTURES, "label": LABELS})
    pyarrow.parquet.write_table(table, tmp_path / "bytes.parquet")
    cells = [{"bytes": picture, "path": None} for picture in PICTURES]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pyarrow.parquet.write_table(pa.table({"picture": pa.array(cells, kind)}), tmp_path / "cells.parquet")
    for name in ("bytes", "cells"):
        for streaming in (False, True):
            source = open_images(f"dataset:{tmp_path}/{name}.parquet", streaming=streaming)
            assert values_of(source) == list(range(N))


def test_images_that_are_files(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "x" / CLASSES[i % 2] / f"{i}.png", PICTURES[i])
    for streaming in (False, True):
        source = open_images(f"dataset:{tmp_path}/x", streaming=streaming)
        assert values_of(source) == [0, 2, 1]
        assert [image.label for image in source.images()] == [0, 0, 1]
        assert source.class_names == ["ant", "bee"]


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_and_missing_images_are_rows(tmp_path: Path, streaming: bool) -> None:
    cells = [{"bytes": picture, "path": None} for picture in PICTURES[:5]]
    cells[1]["bytes"], cells[2]["bytes"], cells[3] = PICTURES[1][:-30], b"", None
    dataset = Dataset.from_dict({"image": cells}, features=Features({"image": Image()}))
    source = open_images(written(dataset, tmp_path / "x.parquet"), streaming=streaming)
    seen = []
    for image in source.images():
        try:
            seen.append(decode_image(image.content).size)
        except UnreadableImage as error:
            seen.append(error.reason)
    assert seen == [(3, 2), "truncated", "empty", "empty", (3, 2)]


def test_images_are_not_decoded_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = written(dataset_of(), tmp_path / "x.parquet")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "decode_example", refuse)
    for streaming in (False, True):
        assert len(list(open_images(spec, streaming=streaming).images())) == N


def test_splits(tmp_path: Path) -> None:
    two = DatasetDict({"train": dataset_of(), "test": dataset_of().select([5, 6])})
    two.save_to_disk(tmp_path / "two")
    (tmp_path / "files").mkdir()
    for name, part in two.items():
        part.to_parquet(tmp_path / "files" / f"{name}-00000.parquet")
    for name in ("two", "files"):
        for streaming in (False, True):
            assert values_of(open_images(f"dataset:{tmp_path}/{name}", split="test", streaming=streaming)) == [5, 6]


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        if options["streaming"]:
            return datasets.IterableDatasetDict({"train": dataset_of().to_iterable_dataset()})
        return DatasetDict({"train": dataset_of()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    for streaming in (False, True):
        source = open_images("hf-hub:user/name", split="train", subset="small", streaming=streaming)
        assert asked.pop() == (("user/name", "small"), {"streaming": streaming})
        assert values_of(source, 40) == list(range(40, N))
        assert source.n_images == (None if streaming else N)


def test_a_stream_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As archives give them: not in tables, and images that were decoded already."""

    def examples() -> Iterator[dict[str, Any]]:
        for i in range(N):
            yield {"image": PIL.Image.open(io.BytesIO(PICTURES[i])), "label": i % 3}

    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    stream = datasets.IterableDataset.from_generator(examples, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDatasetDict({"train": stream}))
    source = open_images("hf-hub:user/name", streaming=True)
    assert values_of(source, 30, 40) == list(range(30, 40))
    assert [image.label for image in source.images(68)] == [2, 0]


def test_images_behind_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", PICTURES[9])
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    cells = [
        {"bytes": None, "path": f"zip://a.png::{tmp_path}/x.zip"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ]
    stream = Dataset.from_dict({"image": cells}, features=Features({"image": Image()})).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDatasetDict({"train": stream}))
    source = open_images("hf-hub:user/name", streaming=True)
    assert [image.content for image in source.images()] == [PICTURES[9], str(tmp_path / "a.png")]


@pytest.mark.door
@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": None}, {}, "x.parquet: got no images in the columns label, caption; expected a column of images"),
        (
            {"two": (Value("binary"), PICTURES)},
            {"image_column": "z"},
            "image_column: got 'z'; expected a column of image",
        ),
        ({}, {"image_column": "label"}, "image_column: got 'label', ClassLabel("),
        (
            {"two": (Image(), [{"bytes": b"", "path": None}] * N)},
            {},
            "image_column: got no choice between image and two in",
        ),
        ({}, {"label_column": "z"}, "label_column: got 'z'; expected one of the keys of"),
        ({}, {"id_column": "z"}, "id_column: got 'z'; expected one of the columns of"),
        ({}, {"id_column": "label"}, "id_column: got '0' twice (rows 0 and 3); expected an id of its own"),
        ({}, {"split": "test"}, "split: got 'test'; expected one of the splits of"),
        (
            {"label": (ClassLabel(names=["a"]), [0] * 50 + [-1] * 20)},
            {},
            "column label: got -1 (row 50); expected labels f",
        ),
        ({"label": (Value("int64"), [0] * 69 + [None])}, {}, "column label: got nothing in row 69"),
        ({"label": (Value("string"), ["a"] * 69 + [None])}, {}, "column label: got nothing in row 69"),
        ({"label": (Value("float32"), [0.0] * N)}, {}, "column label: got a column of float32; expected a ClassLabel"),
        (
            {"label": (List(Value("int64")), [[0]] * N)},
            {},
            "column label: got lists without class names; expected lists",
        ),
        (
            {"label": None, "fine": (ClassLabel(names=["a"]), [0] * N), "coarse": (ClassLabel(names=["a"]), [0] * N)},
            {},
            "label_column: got no choice between fine and coarse in",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, columns: dict[str, Any], options: Any, message: str) -> None:
    spec = written(dataset_of(**columns), tmp_path / "x.parquet")
    assert message in refused(spec, **options)


@pytest.mark.door
def test_what_a_stream_says_before_and_on_the_way(tmp_path: Path) -> None:
    spec = written(dataset_of(label=(Value("string"), ["a"] * N)), tmp_path / "x.parquet")
    assert "column label: got labels that are strings, in a stream; expected" in refused(spec, streaming=True)
    spec = written(dataset_of(label=(ClassLabel(names=["a"]), [-1] * N)), tmp_path / "y.parquet")
    assert "column label: got -1 (row 0); expected labels from 0" in refused(spec, streaming=True)
    spec = written(dataset_of(label=(Value("int64"), [0] * 60 + [None] * 10)), tmp_path / "z.parquet")
    with pytest.raises(InputError, match="column label: got nothing in row 60"):
        list(open_images(spec, streaming=True).images(40))


@pytest.mark.door
def test_datasets_without_rows_or_not_there(tmp_path: Path) -> None:
    spec = f"dataset:{tmp_path / 'none.parquet'}"
    pyarrow.parquet.ParquetWriter(tmp_path / "none.parquet", dataset_of().features.arrow_schema).close()
    assert f"{spec}: got a dataset without rows; expected at least one row" in refused(spec, streaming=True)
    assert "none.parquet: got a dataset that cannot be read (" in refused(spec)  # the package says why
    (tmp_path / "empty").mkdir()
    for streaming in (False, True):
        assert "absent: got no such file or folder" in refused(f"dataset:{tmp_path}/absent", streaming=streaming)
        assert "empty: got a dataset that cannot be read (" in refused(f"dataset:{tmp_path}/empty", streaming=streaming)
        assert refused("hf-hub:nobody/nothing", streaming=streaming).startswith(
            "hf-hub:nobody/nothing: got a dataset that cannot be read ("
        )
    torn = (tmp_path / "x.parquet").absolute()
    written(dataset_of(), torn)
    torn.write_bytes(torn.read_bytes()[:-30])
    for streaming in (False, True):
        assert f"{torn}: got a dataset that cannot be read (" in refused(f"dataset:{torn}", streaming=streaming)


@pytest.mark.door
def test_several_splits_need_a_choice(tmp_path: Path) -> None:
    DatasetDict({"train": dataset_of(), "test": dataset_of()}).save_to_disk(tmp_path / "two")
    assert refused(f"dataset:{tmp_path}/two").endswith("two: train, test")
