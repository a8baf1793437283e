"""Feature stores: what comes back is what was written."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from support import bounds, gpu_streams
from support.gpu_streams import GPU, OnGpu
from support.stores import ODD_IDS, rows_of


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


def test_the_mean_is_that_of_the_unit_rows(tmp_path: Path) -> None:
    rows = rows_of(10, 4).numpy() * np.arange(1, 11)[:, None]  # norms that differ: the mean of the rows is another one
    store = FeatureStore.create(tmp_path / "s", rows, rows_per_shard=3)
    expected = np.zeros(4)
    for row in rows.astype(np.float32).astype(np.float64):
        expected += row / np.sqrt((row * row).sum())
    error = bounds.of_sum(10 + 4, 1.0, torch.float64)  # of 10 rows, each divided by the root of 4 squares
    np.testing.assert_allclose(store.mean.numpy(), expected / 10, rtol=0, atol=error)
    assert store.mean.dtype == torch.float64
    assert not np.allclose(store.mean.numpy(), rows.mean(axis=0), atol=1e-2)


def test_the_mean_of_bytes_does_not_depend_on_the_scale(tmp_path: Path) -> None:
    rows = torch.randint(0, 256, (10, 5), dtype=torch.uint8)
    means = [FeatureStore.create(tmp_path / str(scale), rows, scale=scale).mean for scale in (0.02, 1.0)]
    torch.testing.assert_close(means[0], means[1], rtol=1e-6, atol=0)


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


def test_a_moved_and_read_only_store_opens(store: FeatureStore, tmp_path: Path) -> None:
    moved = store.folder.rename(tmp_path / "moved")
    for file in moved.iterdir():
        file.chmod(0o444)
    again = FeatureStore(moved)
    again.verify()
    assert torch.equal(again.embeddings(), rows_of(10))
    assert again.fingerprint == store.fingerprint


@pytest.mark.door
def test_reading_outside_the_store_is_refused(store: FeatureStore) -> None:
    for start, stop in [(-1, 2), (0, 11), (3, 2)]:
        for read in (store.embeddings, store.labels):
            with pytest.raises(
                InputError, match=rf"start, stop: got {start}, {stop}; expected 0 <= start <= stop <= 10"
            ):
                read(start, stop)
    for loaded in (store, store.load()):
        for indices in ([0, 10], [-1, 3]):
            with pytest.raises(
                InputError, match=r"indices: got values from .* expected integers of shape \(n,\) from 0 to 9"
            ):
                loaded.rows(torch.tensor(indices))
        with pytest.raises(InputError, match=r"indices: got torch\.float32 of shape"):
            loaded.rows(torch.tensor([0.0]))
    with pytest.raises(InputError, match="batch_size: got 0"):
        store.batches(0)
    with pytest.raises(InputError, match=r"thumbnails: got .* a store without thumbnails; expected a store that was"):
        store.thumbnails(torch.tensor([0]))


@pytest.mark.door
def test_asking_for_labels_that_are_not_there(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "s", rows_of(3))
    with pytest.raises(
        InputError, match=r"labels: got .*, a store without labels; expected a store that was written with"
    ):
        store.labels()


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


@pytest.mark.parametrize("multi", [False, True])
def test_reading_a_store_that_a_gpu_holds_waits_for_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multi: bool
) -> None:
    labels = torch.eye(10, dtype=torch.bool) if multi else torch.arange(10)
    store = FeatureStore.create(tmp_path / "s", rows_of(10), labels, rows_per_shard=4)
    expected = store.rows(torch.tensor([7, 1])), store.embeddings(2, 5), store.labels(2, 9)
    gpu = gpu_streams.install(monkeypatch)
    shards = store.load()._shards
    shards._loaded, shards.device = shards._loaded.as_subclass(OnGpu), GPU  # the stand-in refuses to wait for a copy
    given = store.rows(torch.tensor([7, 1])), store.embeddings(2, 5), store.labels(2, 9)
    assert all(torch.equal(on_gpu.values(), kept) for on_gpu, kept in zip(given, expected, strict=True))
    assert gpu.log == ["compute copies to the GPU"] * 2  # numbers of rows, and labels
