from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monoloss.data import store_rows, store_writer
from monoloss.data.store import FeatureStore
from monoloss.data.store_format import MANIFEST, SkippedFile
from monoloss.data.store_writer import FeatureStoreWriter
from monoloss.errors import InputError

ODD_IDS = [
    "plain",
    "",
    "a\nb",
    'quote " \\',
    "ünï/çödé 图",
    "\u2028\u0085\x1c\r",
    "\x00",
    "{}",
    "\udc80 undecodable",
    "🙂",
]


def rows_of(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Ten rows in four shards: 3, 3, 3, 1."""
    labels, ids = torch.arange(10) % 4, [f"image {i}" for i in range(10)]
    return FeatureStore.create(tmp_path / "store", rows_of(10), labels, ids, rows_per_shard=3)


# Round trips


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("load", [False, True])
def test_floating_rows_come_back_as_stored(tmp_path: Path, dtype: str, load: bool) -> None:
    rows = rows_of(10)
    store = FeatureStore.create(tmp_path / "s", rows, dtype=dtype, rows_per_shard=4)
    if load:
        assert store.load() is store
    expected = rows.to(getattr(torch, dtype)).float()
    assert store.embeddings().dtype == torch.float32
    assert torch.equal(store.embeddings(), expected)
    assert torch.equal(store.rows(torch.tensor([9, 0, 0, 4])), expected[[9, 0, 0, 4]])
    assert store.manifest.dtype == dtype
    assert store.n_bytes == rows.numel() * getattr(torch, dtype).itemsize


@pytest.mark.parametrize("load", [False, True])
def test_bytes_stay_bytes_with_their_scale(tmp_path: Path, load: bool) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (10, 5), dtype=np.uint8)
    store = FeatureStore.create(tmp_path / "s", rows, scale=0.02, rows_per_shard=4)
    if load:
        store.load()
    expected = torch.from_numpy(rows).float() * 0.02
    assert torch.equal(store.embeddings(), expected)
    assert torch.equal(store.rows(torch.tensor([7, 1])), expected[[7, 1]])
    assert (store.manifest.dtype, store.manifest.scale) == ("uint8", 0.02)
    assert store.n_bytes == 50


def test_floating_rows_are_rounded_to_the_nearest_byte(tmp_path: Path) -> None:
    rows = torch.tensor([[0.0, 0.24, 0.26, 127.5]])
    store = FeatureStore.create(tmp_path / "s", rows, dtype="uint8", scale=0.5)
    assert store.embeddings().tolist() == [[0.0, 0.0, 0.5, 127.5]]


@pytest.mark.parametrize(
    ("given_type", "stored"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float32"), (">f4", "float32"), (">f2", "float16")],
)
def test_the_stored_type_follows_the_array(tmp_path: Path, given_type: str, stored: str) -> None:
    rows = rows_of(4).numpy().astype(given_type)
    store = FeatureStore.create(tmp_path / "s", rows)
    assert store.manifest.dtype == stored
    assert np.array_equal(store.embeddings().numpy(), rows.astype(np.float32))


@pytest.mark.parametrize("change", [lambda x: x.T.copy().T, lambda x: x[::-1], lambda x: x[:, ::2]])
def test_any_memory_layout(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    rows = change(rows_of(6, 4).numpy())
    rows.setflags(write=False)
    assert np.array_equal(FeatureStore.create(tmp_path / "a", rows, rows_per_shard=4).embeddings().numpy(), rows)
    tensor = change(rows_of(6, 4).numpy()).copy()
    transposed = torch.from_numpy(np.ascontiguousarray(tensor.T)).T.requires_grad_()
    stored = FeatureStore.create(tmp_path / "b", transposed, rows_per_shard=4).embeddings()
    assert np.array_equal(stored.numpy(), tensor)


def test_labels_and_ids_stay_in_row_order(store: FeatureStore) -> None:
    assert store.ids == [f"image {i}" for i in range(10)]
    assert store.paths == [None] * 10
    assert store.labels().tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert store.labels(2, 8).tolist() == [2, 3, 0, 1, 2, 3]
    assert store.labels().dtype == torch.int64
    assert (len(store), store.width, store.n_classes, store.class_names) == (10, 5, 4, None)
    assert (store.has_labels, store.multi_label, store.has_thumbnails) == (True, False, False)
    assert store.shard_offsets == [0, 3, 6, 9, 10]


@pytest.mark.parametrize("integer", [np.int16, np.uint8, np.uint16, np.int64])
def test_labels_of_any_integer_type(tmp_path: Path, integer: type) -> None:
    labels = np.array([0, 200, 3], dtype=integer)
    store = FeatureStore.create(tmp_path / "s", rows_of(3), labels)
    assert store.labels().tolist() == [0, 200, 3]
    assert store.n_classes == 201


def test_without_labels_and_ids(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "s", rows_of(5), rows_per_shard=2)
    assert store.ids == ["0", "1", "2", "3", "4"]
    assert (store.has_labels, store.n_classes) == (False, 0)
    assert [batch.labels for batch in store.batches(5)] == [None] * 3


def test_ids_and_paths_may_hold_anything(tmp_path: Path) -> None:
    paths = [None if i % 3 == 0 else f"{name}.png" for i, name in enumerate(ODD_IDS)]
    store = FeatureStore.create(tmp_path / "s", rows_of(len(ODD_IDS)), ids=ODD_IDS, paths=paths, rows_per_shard=3)
    assert store.ids == ODD_IDS
    assert store.paths == paths


def test_several_labels_a_row_or_none(tmp_path: Path) -> None:
    labels = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    store = FeatureStore.create(tmp_path / "s", rows_of(6), labels, class_names=["a", "b", "a"], rows_per_shard=4)
    assert (store.multi_label, store.n_classes, store.class_names) == (True, 3, ["a", "b", "a"])
    assert store.labels().dtype == torch.bool
    for start in range(7):
        for stop in range(start, 7):
            assert torch.equal(store.labels(start, stop), labels[start:stop])
    assert torch.equal(torch.cat([batch.labels for batch in store.batches(3)]), labels)


def test_a_shard_without_any_label_of_several(tmp_path: Path) -> None:
    labels = torch.zeros(4, 2, dtype=torch.bool)
    labels[3, 1] = True
    store = FeatureStore.create(tmp_path / "s", rows_of(4), labels, rows_per_shard=2)
    assert torch.equal(store.labels(), labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_thumbnails(tmp_path: Path, channels: int) -> None:
    pictures = torch.randint(0, 256, (7, 2, 4, channels), dtype=torch.uint8)
    store = FeatureStore.create(tmp_path / "s", rows_of(7), thumbnails=pictures, rows_per_shard=3)
    assert store.has_thumbnails
    order = torch.tensor([6, 0, 3, 3])
    assert torch.equal(store.thumbnails(order), pictures[order])


def test_encoder_and_image_root_are_kept(tmp_path: Path) -> None:
    encoder = {"name": "vit", "weights": "openai", "preprocessing": {"size": (224, 224), "crop": 0.9}}
    store = FeatureStore.create(tmp_path / "s", rows_of(3), encoder=encoder, image_root="images/é")
    assert store.manifest.encoder == {**encoder, "preprocessing": {"size": [224, 224], "crop": 0.9}}
    assert store.manifest.image_root == "images/é"


@settings(max_examples=30)
@given(data=st.data())
def test_any_split_into_shards_reads_the_same(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    rows, labels = rows_of(n, 3), torch.arange(n) * 7 % 5
    ids = data.draw(st.lists(st.text(max_size=4), min_size=n, max_size=n, unique=True))
    with tempfile.TemporaryDirectory() as folder:
        per_shard = data.draw(st.integers(1, n + 1))
        store = FeatureStore.create(Path(folder, "s"), rows, labels, ids, rows_per_shard=per_shard)
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        indices = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), dtype=torch.int64)
        batch_size = data.draw(st.integers(1, n + 1))
        for _ in range(2):
            assert torch.equal(store.embeddings(start, stop), rows[start:stop])
            assert torch.equal(store.labels(start, stop), labels[start:stop])
            assert torch.equal(store.rows(indices), rows[indices])
            batches = list(store.batches(batch_size))
            assert torch.equal(torch.cat([batch.embeddings for batch in batches]), rows)
            assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)
            store.load()
        assert store.ids == ids
        store.verify()


# What the manifest says


def test_the_mean_is_that_of_the_unit_rows(tmp_path: Path) -> None:
    rows = rows_of(10, 4).numpy() * np.arange(1, 11)[:, None]  # norms that differ: the mean of the rows is another one
    store = FeatureStore.create(tmp_path / "s", rows, rows_per_shard=3)
    expected = np.zeros(4)
    for row in rows.astype(np.float32).astype(np.float64):
        expected += row / np.sqrt((row * row).sum())
    np.testing.assert_allclose(store.mean.numpy(), expected / 10, rtol=0, atol=1e-15)
    assert store.mean.dtype == torch.float64
    assert not np.allclose(store.mean.numpy(), rows.mean(axis=0), atol=1e-2)


def test_the_mean_of_bytes_does_not_depend_on_the_scale(tmp_path: Path) -> None:
    rows = torch.randint(0, 256, (10, 5), dtype=torch.uint8)
    means = [FeatureStore.create(tmp_path / str(scale), rows, scale=scale).mean for scale in (0.02, 1.0)]
    torch.testing.assert_close(means[0], means[1], rtol=1e-6, atol=0)


@pytest.mark.door
def test_rows_are_checked_and_summed_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FeatureStore.create(tmp_path / "whole", rows_of(10))
    monkeypatch.setattr(store_rows, "_BLOCK", 3)
    blocks = FeatureStore.create(tmp_path / "blocks", rows_of(10))
    torch.testing.assert_close(blocks.mean, whole.mean, rtol=1e-14, atol=0)
    assert blocks.manifest.norms == whole.manifest.norms
    assert torch.equal(blocks.embeddings(), rows_of(10))
    with pytest.raises(InputError, match=r"only zeros once stored as float32 \(row 7, id '7'\)"):
        FeatureStore.create(tmp_path / "bad", with_row(7, 0.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unit_rows_are_recognised(tmp_path: Path, dtype: str) -> None:
    unit = torch.nn.functional.normalize(rows_of(10, 64))
    assert FeatureStore.create(tmp_path / "a", unit, dtype=dtype, rows_per_shard=3).normalised
    unit[7] *= 1.01
    assert not FeatureStore.create(tmp_path / "b", unit, dtype=dtype, rows_per_shard=3).normalised


def test_the_fingerprint_changes_with_a_row_a_label_or_an_id(tmp_path: Path) -> None:
    rows, labels, ids = rows_of(4), torch.zeros(4, dtype=torch.int64), list("abcd")
    other_rows, other_labels = rows.clone(), labels.clone()
    other_rows[3, 0] += 1e-6
    other_labels[0] = 1
    variants = [(rows, labels, ids), (other_rows, labels, ids), (rows, other_labels, ids), (rows, labels, list("abce"))]
    prints = [FeatureStore.create(tmp_path / str(i), *each).fingerprint for i, each in enumerate(variants)]
    assert len(set(prints)) == 4
    assert FeatureStore.create(tmp_path / "again", rows, labels, ids).fingerprint == prints[0]


def test_repr_and_pickle(store: FeatureStore) -> None:
    assert repr(store) == f"FeatureStore({str(store.folder)!r}: 10 x 5 float32, 4 classes, 4 shards)"
    data = pickle.dumps(store.load())
    assert len(data) < 500  # the folder travels, not the rows
    copy = pickle.loads(data)
    assert torch.equal(copy.embeddings(), store.embeddings())


# Reading


def test_batches_read_every_row_once_in_order_and_never_cross_a_shard(store: FeatureStore) -> None:
    batches = list(store.batches(2))
    assert [batch.start for batch in batches] == [0, 2, 3, 5, 6, 8, 9]
    assert [len(batch.embeddings) for batch in batches] == [2, 1, 2, 1, 2, 1, 1]
    assert torch.equal(torch.cat([batch.embeddings for batch in batches]), rows_of(10))
    assert torch.cat([batch.labels for batch in batches]).tolist() == store.labels().tolist()


@pytest.mark.parametrize("load", [False, True])
def test_what_is_read_is_a_copy(store: FeatureStore, load: bool) -> None:
    if load:
        store.load()
    store.embeddings(0, 2).zero_()
    store.rows(torch.tensor([0, 1])).zero_()
    store.labels(1, 3).zero_()
    assert torch.equal(store.embeddings(), rows_of(10))
    assert store.labels(0, 4).tolist() == [0, 1, 2, 3]
    store.verify()


def test_opening_reads_no_rows(tmp_path: Path) -> None:
    folder = FeatureStore.create(tmp_path / "s", torch.ones(2000, 1000)).folder

    def resident() -> int:
        return sum(int(line.split()[1]) for line in Path("/proc/self/smaps").read_text().splitlines() if "Rss" in line)

    if not Path("/proc/self/smaps").exists():
        pytest.skip("asks Linux for the memory in use")
    FeatureStore.open(folder).embeddings(0, 1)
    before = resident()
    store = FeatureStore.open(folder)
    assert store.embeddings(1999, 2000).sum() == 1000
    assert resident() - before < 4000  # of 8000 kB


def test_a_moved_and_read_only_store_opens(store: FeatureStore, tmp_path: Path) -> None:
    moved = store.folder.rename(tmp_path / "moved")
    for file in moved.iterdir():
        file.chmod(0o444)
    again = FeatureStore.open(moved)
    again.verify()
    assert torch.equal(again.embeddings(), rows_of(10))
    assert again.fingerprint == store.fingerprint


@pytest.mark.door
def test_reading_outside_the_store_is_refused(store: FeatureStore) -> None:
    for start, stop in [(-1, 2), (0, 11), (3, 2)]:
        for read in (store.embeddings, store.labels):
            with pytest.raises(InputError, match=rf"start, stop: got {start}, {stop}; needed 0 <= start <= stop <= 10"):
                read(start, stop)
    for loaded in (store, store.load()):
        for indices in ([0, 10], [-1, 3]):
            with pytest.raises(
                InputError, match=r"indices: got values from .* needed integers of shape \(n,\) from 0 to 9"
            ):
                loaded.rows(torch.tensor(indices))
        with pytest.raises(InputError, match=r"indices: got torch\.float32 of shape"):
            loaded.rows(torch.tensor([0.0]))
    with pytest.raises(InputError, match="batch_size: got 0"):
        store.batches(0)
    with pytest.raises(InputError, match=r"thumbnails: got .* a store without; needed a store that was written with"):
        store.thumbnails(torch.tensor([0]))


@pytest.mark.door
def test_asking_for_labels_that_are_not_there(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "s", rows_of(3))
    with pytest.raises(
        InputError, match=r"labels: got .*, a store without labels; needed a store that was written with"
    ):
        store.labels()


# Bad input writes nothing


def with_row(row: int, value: float) -> Tensor:
    rows = rows_of(10)
    rows[row] = value
    return rows


BAD: list[tuple[dict[str, Any], str]] = [
    ({"embeddings": with_row(7, 0.0)}, r"embeddings: got only zeros once stored as float32 \(row 7, id '7'\); needed"),
    ({"embeddings": with_row(4, float("nan"))}, r"embeddings: got NaN or inf \(row 4, id '4'\); needed finite rows"),
    ({"embeddings": with_row(9, -float("inf"))}, r"embeddings: got NaN or inf \(row 9, id '9'\); needed finite rows"),
    ({"embeddings": with_row(8, 1e5), "dtype": "float16"}, r"a value outside float16 \(row 8.*from -65504 to 65504"),
    ({"embeddings": with_row(8, 1e-9), "dtype": "float16"}, r"only zeros once stored as float16 \(row 8"),
    ({"embeddings": rows_of(10).double() * 1e300}, r"a value outside float32 \(row 0"),
    ({"dtype": "uint8", "scale": 0.5}, r"a value outside uint8 \(row 0.*needed values from 0 to 127.5"),
    ({"embeddings": with_row(6, 200).abs(), "dtype": "uint8", "scale": 0.5}, r"a value outside uint8 \(row 6"),
    ({"embeddings": with_row(6, float("nan")).abs() + 1, "dtype": "uint8", "scale": 0.5}, r"NaN or inf \(row 6"),
    ({"embeddings": torch.ones(3, 2, dtype=torch.uint8)}, "scale: got None; needed a number for dtype 'uint8'"),
    ({"embeddings": torch.ones(3, 2, dtype=torch.uint8), "dtype": "float32"}, "torch.uint8 rows to store as float32"),
    ({"embeddings": torch.ones(3, 2, dtype=torch.int32)}, "embeddings: got torch.int32 rows"),
    ({"embeddings": np.array([["a", "b"]])}, "embeddings: got dtype <U1"),
    ({"embeddings": [[1.0, 2.0]]}, "embeddings: got list; needed a torch tensor or a NumPy array"),
    ({"embeddings": torch.ones(3)}, r"embeddings: got shape \(3,\); needed \(rows, width\)"),
    ({"embeddings": torch.ones(0, 3)}, r"embeddings: got shape \(0, 3\)"),
    ({"embeddings": torch.ones(3, 0)}, r"embeddings: got shape \(3, 0\)"),
    ({"scale": 0.1}, "scale: got 0.1; needed a number for dtype 'uint8' and None for every other"),
    ({"dtype": "uint8", "scale": 0.0}, "scale: got 0.0; needed a number above 0"),
    ({"dtype": "uint8", "scale": float("inf")}, "scale: got inf; needed a number above 0"),
    ({"dtype": "float8"}, "dtype: got 'float8'; needed one of 'float16', 'bfloat16', 'float32', 'uint8'"),
    ({"rows_per_shard": 0}, "rows_per_shard: got 0; needed an integer at least 1"),
    ({"labels": torch.zeros(9, dtype=torch.int64)}, "labels: got 9 rows; needed as many as embeddings has, 10"),
    ({"ids": list("abc")}, "ids: got 3 rows; needed as many as embeddings has, 10"),
    ({"paths": list("abc")}, "paths: got 3 rows"),
    ({"thumbnails": torch.zeros(9, 2, 2, 3, dtype=torch.uint8)}, "thumbnails: got 9 rows"),
    ({"ids": list("abcdefghib")}, r"ids: got 'b' twice \(rows 1 and 9\); needed an id of its own"),
    ({"ids": [*"abcdefghi", 3]}, r"ids: got 3 \(row 9\); needed strings"),
    ({"labels": torch.tensor([0] * 7 + [-1, 0, 0])}, r"labels: got -1 \(row 7, id '7'\); needed labels from 0"),
    ({"labels": torch.arange(10), "class_names": list("abcdefgh")}, r"labels: got 8 \(row 8.*from 0 to 7"),
    ({"labels": torch.zeros(10)}, r"labels: got torch.float32 of shape \(rows\); needed integers"),
    ({"labels": torch.zeros(10, dtype=torch.bool)}, r"labels: got torch.bool of shape \(rows\)"),
    ({"labels": torch.zeros(10, 2, dtype=torch.int64)}, r"labels: got torch.int64 of shape \(rows, 2\)"),
    (
        {"labels": torch.zeros(10, 2, dtype=torch.bool), "class_names": ["a"]},
        "labels: got 2 columns; needed one for each",
    ),
    ({"labels": [0] * 10}, "labels: got list"),
    ({"class_names": ["a"]}, "class_names: got names without labels"),
    ({"labels": torch.zeros(10, dtype=torch.int64), "class_names": []}, r"class_names: got \[\]"),
    ({"thumbnails": torch.zeros(10, 2, 2, 3)}, "thumbnails: got torch.float32"),
    (
        {"thumbnails": torch.zeros(10, 2, 2, 2, dtype=torch.uint8)},
        r"thumbnails: got torch.uint8 of shape \(rows, 2, 2, 2\)",
    ),
    ({"encoder": {"name": "vit"}}, r"encoder: got the keys \['name'\]; needed name, weights and preprocessing"),
    ({"encoder": {"name": 1, "weights": {1}, "preprocessing": 0}}, "encoder: got Object of type set"),
]


@pytest.mark.door
@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"embeddings": rows_of(10), "rows_per_shard": 4, **change}
    with pytest.raises(InputError, match=message):
        FeatureStore.create(tmp_path / "new" / "store", **arguments)
    assert everything_in(tmp_path) == []


@pytest.mark.door
def test_a_folder_that_is_not_empty_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    before = everything_in(tmp_path)
    for write in (lambda: FeatureStore.create(store.folder, rows_of(2)), lambda: FeatureStoreWriter(store.folder)):
        with pytest.raises(InputError, match="store: got a folder that is not empty; needed a folder that is empty or"):
            write()
    assert everything_in(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert len(FeatureStore.create(tmp_path / "empty", rows_of(2))) == 2


# Interrupted writing


def stop_at_call(monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]) -> None:
    calls = []
    save_file = store_writer.save_file

    def failing(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls.append(path)
        if len(calls) == number:
            path.write_bytes(b"half a shard")
            raise error
        save_file(tensors, path, metadata)

    monkeypatch.setattr(store_writer, "save_file", failing)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_in_the_second_shard_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    stop_at_call(monkeypatch, 2, error)
    with pytest.raises(error):
        FeatureStore.create(tmp_path / "s", rows_of(10), rows_per_shard=3)
    assert everything_in(tmp_path) == []


@pytest.mark.door
def test_a_writer_that_fails_leaves_an_unfinished_folder_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, ids = rows_of(10), [f"image {i}" for i in range(10)]

    def write(folder: Path, *, resume: bool) -> None:
        writer = FeatureStoreWriter(folder, rows_per_shard=3, resume=resume)
        for index in range(4):
            if index not in writer.written:
                part = slice(3 * index, 3 * index + 3)
                writer.write_shard(index, rows[part], ids[part])
        writer.finish(n_shards=4)

    write(tmp_path / "whole", resume=False)
    stop_at_call(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "resumed", resume=True)
    lines = "shard-00001.jsonl"  # harmless: written again with its shard
    assert everything_in(tmp_path / "resumed") == ["shard-00000.jsonl", "shard-00000.safetensors", lines]
    with pytest.raises(InputError, match=r"resumed: got a folder without manifest\.json; needed a store that has been"):
        FeatureStore.open(tmp_path / "resumed")
    (tmp_path / "resumed" / ".shard-00001.safetensors.0123abcd.tmp").mkdir()  # what a kill would leave
    write(tmp_path / "resumed", resume=True)
    assert everything_in(tmp_path / "resumed") == everything_in(tmp_path / "whole")
    for name in everything_in(tmp_path / "whole"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(InputError, match="resumed: got a finished store; needed an unfinished one"):
        write(tmp_path / "resumed", resume=True)


def test_shards_come_in_any_order_from_several_writers(tmp_path: Path) -> None:
    rows, labels, ids = rows_of(10), torch.arange(10), [str(i) for i in range(10)]
    ranks = [FeatureStoreWriter(tmp_path / "s", rows_per_shard=3, resume=True) for _ in range(2)]
    for index in (3, 1, 0, 2):
        part = slice(3 * index, 3 * index + 3)
        ranks[index % 2].write_shard(index, rows[part], ids[part], labels[part])
    ranks[1].finish()
    whole = FeatureStore.create(tmp_path / "whole", rows, labels, ids, rows_per_shard=3)
    for name in everything_in(tmp_path / "whole"):
        assert (tmp_path / "s" / name).read_bytes() == (whole.folder / name).read_bytes()


def test_skipped_files_and_a_shard_without_rows(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=2, image_root="root")
    none = torch.zeros(0, dtype=torch.int64)
    bad = [
        SkippedFile(0, "a.png", "truncated"),
        SkippedFile(1, "b\n.png", "no image"),
        SkippedFile(3, "d.png", "empty"),
    ]
    writer.write_shard(0, torch.empty(0, 5), [], none, skipped=bad[:2])
    writer.write_shard(1, rows_of(1), ["c"], torch.tensor([4]), paths=["c.png"], skipped=bad[2:])
    writer.write_shard(2, rows_of(2, seed=1), ["e", "f"], torch.tensor([1, 0]))
    writer.finish()
    store = FeatureStore.open(tmp_path / "s")
    assert store.ids == ["c", "e", "f"]
    assert store.paths == ["c.png", None, None]
    assert store.skipped == bad
    assert store.manifest.n_skipped == 3
    assert store.shard_offsets == [0, 0, 1, 3]
    assert store.rows(torch.tensor([2, 0])).tolist() == torch.cat([rows_of(2, seed=1)[1:], rows_of(1)]).tolist()
    assert [batch.start for batch in store.batches(5)] == [0, 1]
    assert store.labels().tolist() == [4, 1, 0]
    assert store.n_classes == 5
    assert torch.equal(store.load().embeddings(), torch.cat([rows_of(1), rows_of(2, seed=1)]))


@pytest.mark.door
def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=2)
    writer.write_shard(0, rows_of(2), ["a", "b"])
    with pytest.raises(InputError, match="shard 1: got width 4; needed 5, as in shard 0"):
        writer.write_shard(1, rows_of(2, 4), ["c", "d"])
    with pytest.raises(InputError, match="shard 1: got labels 'single'; needed None, as in shard 0"):
        writer.write_shard(1, rows_of(2), ["c", "d"], torch.tensor([0, 1]))
    with pytest.raises(InputError, match="index: got 0, which is written already"):
        writer.write_shard(0, rows_of(2), ["c", "d"])
    with pytest.raises(InputError, match=r"embeddings: got shape \(3, 5\); needed \(rows, width\) with at most 2 rows"):
        writer.write_shard(1, rows_of(3), ["c", "d", "e"])
    assert writer.written == [0]
    writer.write_shard(2, rows_of(2), ["e", "a"])
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: got no such shard; needed shards 0 to 2"):
        writer.finish()
    with pytest.raises(InputError, match=r"shard-00003\.safetensors: got no such shard|shard-00001"):
        writer.finish(n_shards=4)
    writer.write_shard(1, rows_of(2), ["c", "d"])
    with pytest.raises(InputError, match=r"shard-00002\.safetensors: got a shard too many; needed shards 0 to 1"):
        writer.finish(n_shards=2)
    with pytest.raises(InputError, match=r"ids: got 'a' twice \(shards 0 and 2\); needed an id of its own"):
        writer.finish()
    assert not (tmp_path / "s" / MANIFEST).exists()


@pytest.mark.door
def test_resuming_with_other_arguments_or_in_a_strange_folder(tmp_path: Path) -> None:
    FeatureStoreWriter(tmp_path / "s", dtype="float16").write_shard(0, rows_of(2), ["a", "b"])
    with pytest.raises(
        InputError, match=r"shard-00000\.safetensors: got a shard with dtype 'float16'; needed 'float32'"
    ):
        FeatureStoreWriter(tmp_path / "s", resume=True)
    (tmp_path / "s" / "letter.txt").write_text("dear ...")
    with pytest.raises(InputError, match=r"letter\.txt: got a file that is no part of a store"):
        FeatureStoreWriter(tmp_path / "s", dtype="float16", resume=True)


@pytest.mark.door
def test_a_store_needs_rows(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s")
    with pytest.raises(InputError, match="got no such shard; needed shards 0 to 0"):
        writer.finish()
    writer.write_shard(0, torch.empty(0, 5), [])
    with pytest.raises(InputError, match="got a store without rows; needed at least one row"):
        writer.finish()


# Damaged stores


def change_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}))


def swap(folder: Path, suffix: str) -> None:
    first, second = folder / f"shard-00000.{suffix}", folder / f"shard-00001.{suffix}"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def set_size(folder: Path, name: str) -> None:
    """Make the manifest agree with the size of a file that has been cut, so that its own header has to tell."""
    content = json.loads((folder / MANIFEST).read_text())
    for shard in content["shards"]:
        if name in shard["n_bytes"]:
            shard["n_bytes"][name] = (folder / name).stat().st_size
    (folder / MANIFEST).write_text(json.dumps(content))


def cut_and_hide(folder: Path) -> None:
    truncate(folder / "shard-00002.safetensors")
    set_size(folder, "shard-00002.safetensors")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: (f / MANIFEST).unlink(),
        r"store: got a folder without manifest\.json; needed a store that has been fin",
    ),
    (lambda f: truncate(f / MANIFEST), r"manifest\.json: got a file that is not JSON"),
    (lambda f: change_manifest(f, format_version=2), r"manifest\.json: got format_version 2; needed format_version 1"),
    (lambda f: change_manifest(f, surprise=1), r"manifest\.json: got no manifest of a store .*surprise"),
    (lambda f: change_manifest(f, shards=[{}]), r"manifest\.json: got no manifest of a store"),
    (lambda f: change_manifest(f, n_rows=11), r"manifest\.json: got figures that contradict each other"),
    (lambda f: change_manifest(f, mean=[0.0]), r"manifest\.json: got figures that contradict each other"),
    (lambda f: change_manifest(f, dtype="float16"), r"shard-00000\.safetensors: got a shard of another store"),
    (
        lambda f: truncate(f / "shard-00002.safetensors"),
        r"shard-00002\.safetensors: got \d+ bytes; needed the \d+ that",
    ),
    (lambda f: truncate(f / "shard-00001.jsonl"), r"shard-00001\.jsonl: got \d+ bytes; needed the \d+ that manifest"),
    (cut_and_hide, r"shard-00002\.safetensors: got no shard of a store"),
    (lambda f: (f / "shard-00003.safetensors").unlink(), r"shard-00003\.safetensors: got no such file; needed the"),
    (lambda f: (f / "shard-00000.jsonl").unlink(), r"shard-00000\.jsonl: got no such file; needed the"),
    (lambda f: (swap(f, "safetensors"), swap(f, "jsonl")), r"shard-00000\.safetensors: got shard 1; needed shard 0"),
    (shutil.rmtree, r"store/manifest\.json: got No such file or directory"),
]


@pytest.mark.door
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_store_does_not_open(store: FeatureStore, damage: Callable[[Path], object], message: str) -> None:
    damage(store.folder)
    with pytest.raises(InputError, match=message):
        FeatureStore.open(store.folder)


@pytest.mark.door
def test_a_shard_of_another_store_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    ids = [f"other {i}" for i in range(10)]  # as long as "image {i}", so every size agrees
    other = FeatureStore.create(tmp_path / "other", rows_of(10), torch.arange(10) % 4, ids, rows_per_shard=3)
    shutil.copy(other.folder / "shard-00001.safetensors", store.folder)
    with pytest.raises(InputError, match=r"store/shard-00001\.safetensors: got a shard of another store"):
        FeatureStore.open(store.folder)


@pytest.mark.door
def test_verify_names_every_changed_file(store: FeatureStore) -> None:
    store.verify()
    for name in ("shard-00001.safetensors", "shard-00002.jsonl"):
        content = bytearray((store.folder / name).read_bytes())
        content[-3] ^= 1
        (store.folder / name).write_bytes(content)
    again = FeatureStore.open(store.folder)
    with pytest.raises(
        InputError, match=r"got changed contents in shard-00001\.safetensors, shard-00002\.jsonl; needed"
    ):
        again.verify()


@pytest.mark.door
def test_swapped_lines_are_noticed_when_ids_are_read(store: FeatureStore) -> None:
    swap(store.folder, "jsonl")
    with pytest.raises(
        InputError, match=r"shard-00000\.jsonl: got changed contents; needed the file as it was written"
    ):
        _ = FeatureStore.open(store.folder).ids


def test_loads_by_itself_only_what_is_small(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    monkeypatch.setattr(type(store._shards), "load", lambda _, device: loads.append(device))
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 4 * store.n_bytes - 1}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert store.load_if_small() is store
    assert not loads
    pages["SC_PHYS_PAGES"] += 1
    store.load_if_small()
    assert loads == [store.device]


def test_what_is_loaded_stays(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.load()
    monkeypatch.setattr(type(store._shards), "load", lambda *_: pytest.fail("loaded again"))
    store.load_if_small()


@pytest.mark.door
@pytest.mark.parametrize("field", ["mean", "n_classes", "norms", "scale"])
def test_verify_compares_the_manifest_with_the_shards(store: FeatureStore, field: str) -> None:
    changed = {"mean": [0.5] * store.width, "n_classes": 2, "norms": [1.0, 1.0], "scale": 2.0}[field]
    manifest = json.loads((store.folder / "manifest.json").read_text(encoding="utf-8"))
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, field: changed}), encoding="utf-8")
    with pytest.raises(InputError, match="manifest"):
        FeatureStore(store.folder).verify()


@pytest.mark.door
@pytest.mark.parametrize(
    "change", [{"n_classes": "x"}, {"norms": "x"}, {"norms": None}, {"mean": None}, {"width": None}]
)
def test_a_manifest_of_other_types_is_refused(store: FeatureStore, change: dict[str, object]) -> None:
    manifest = json.loads((store.folder / "manifest.json").read_text(encoding="utf-8"))
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, **change}), encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json"):
        FeatureStore(store.folder)
