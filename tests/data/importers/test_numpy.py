"""NumPy files: which arrays are read, and how wrong ones are named."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss.data.importers.numpy import import_npy, import_npz
from monoloss.errors import InputError
from support.stores import everything_in

ROWS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0, 2, 2], dtype=np.int16)
NAMES = [f"folder/é {i}.png" for i in range(7)]


@pytest.mark.parametrize("embeddings_key", ["embeddings", "features"])
@pytest.mark.parametrize("labels_key", ["labels", "targets"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_usual_keys_are_found(tmp_path: Path, embeddings_key: str, labels_key: str, save: Any) -> None:
    save(tmp_path / "x.npz", **{embeddings_key: ROWS, labels_key: LABELS, "paths": NAMES, "other": 1})
    store = import_npz(tmp_path / "x.npz", tmp_path / "s", rows_per_shard=3, image_root="root")
    assert np.array_equal(store.embeddings().numpy(), ROWS)
    assert store.labels().tolist() == LABELS.tolist()
    assert store.ids == store.paths == NAMES
    assert (store.n_classes, store.manifest.image_root, store.shard_offsets) == (3, "root", [0, 3, 6, 7])


def test_given_keys_go_before_usual_ones(tmp_path: Path) -> None:
    arrays = {"embeddings": -ROWS, "a": ROWS, "labels": LABELS, "b": LABELS[::-1], "ids": NAMES, "c": np.arange(7)}
    np.savez(tmp_path / "x.npz", **arrays)
    store = import_npz(tmp_path / "x.npz", tmp_path / "s", embeddings_key="a", labels_key="b", ids_key="c")
    assert np.array_equal(store.embeddings().numpy(), ROWS)
    assert store.labels().tolist() == LABELS[::-1].tolist()
    assert store.ids == ["0", "1", "2", "3", "4", "5", "6"]


def test_ids_and_paths_beside_each_other(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", embeddings=ROWS, paths=NAMES, ids=np.array([b"id-%d" % i for i in range(7)]))
    store = import_npz(tmp_path / "x.npz", tmp_path / "s")
    assert store.ids == [f"id-{i}" for i in range(7)]
    assert store.paths == NAMES
    assert not store.has_labels


def test_bytes_with_a_scale_and_several_labels_a_row(tmp_path: Path) -> None:
    rows, labels = np.arange(1, 29, dtype=np.uint8).reshape(7, 4), np.eye(7, 5, dtype=bool)
    np.savez(tmp_path / "x.npz", features=rows, labels=labels)
    store = import_npz(tmp_path / "x.npz", tmp_path / "s", scale=0.5, class_names=list("abcde"))
    assert store.manifest.dtype == "uint8"
    assert torch.equal(store.embeddings(), torch.from_numpy(rows) * 0.5)
    assert torch.equal(store.labels(), torch.from_numpy(labels))
    assert store.class_names == list("abcde")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy(tmp_path: Path, order: Any, dtype: type) -> None:
    np.save(tmp_path / "x.npy", np.asarray(ROWS, dtype=dtype, order=order))
    np.save(tmp_path / "y.npy", LABELS)
    np.save(tmp_path / "i.npy", np.array(NAMES))
    files = {"labels_path": tmp_path / "y.npy", "ids_path": tmp_path / "i.npy"}
    store = import_npy(tmp_path / "x.npy", tmp_path / "s", rows_per_shard=3, **files)
    assert np.array_equal(store.embeddings().numpy(), ROWS.astype(dtype).astype(np.float32))
    assert store.labels().tolist() == LABELS.tolist()
    assert store.ids == NAMES


def test_a_large_npy_is_read_a_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    copied: list[tuple[int, ...]] = []
    array = np.array

    def counting_array(values: Any, **options: Any) -> np.ndarray:
        assert isinstance(values, np.memmap)
        copied.append(values.shape)
        return array(values, **options)

    monkeypatch.setattr("monoloss.data.array_files.array", counting_array)
    store = import_npy(tmp_path / "x.npy", tmp_path / "s", rows_per_shard=3)
    assert copied == [(3, 4), (3, 4), (1, 4)]
    assert np.array_equal(store.embeddings().numpy(), ROWS)


@pytest.mark.door
@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            {"x": ROWS, "y": LABELS},
            {},
            r"x\.npz: got the keys x, y; expected embeddings_key, or one of the keys embeddings, f",
        ),
        ({"x": ROWS}, {"embeddings_key": "z"}, r"embeddings_key: got 'z'; expected one of the keys of .*x\.npz: x"),
        (
            {"features": ROWS},
            {"labels_key": "y"},
            r"labels_key: got 'y'; expected one of the keys of .*x\.npz: features",
        ),
        ({"features": ROWS, "embeddings": ROWS}, {}, "embeddings_key: got no choice between embeddings and features"),
        (
            {"features": ROWS, "labels": np.array(["a", 1], dtype=object)},
            {},
            r"x\.npz: got an unreadable array 'labels'",
        ),
        ({"features": ROWS, "ids": ROWS[:, 0]}, {}, r"ids: got float32 of shape \(7,\); expected strings or integers"),
        ({"features": ROWS, "paths": ["a"] * 7}, {}, r"ids: got 'a' twice \(rows 0 and 1\)"),
        ({"features": ROWS, "labels": LABELS[:3]}, {}, "labels: got 3 rows; expected as many as embeddings has, 7"),
        ({"features": ROWS.astype(np.uint8) + 1}, {}, "scale: got None; expected a number for dtype 'uint8'"),
        ({"features": ROWS[0]}, {}, r"embeddings: got shape \(4,\); expected \(rows, width\)"),
    ],
)
def test_what_is_wrong_in_an_npz_is_named(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        import_npz(tmp_path / "x.npz", tmp_path / "s", **options)
    assert everything_in(tmp_path) == ["x.npz"]


def damaged_npz(path: Path) -> None:
    """Right in its directory, wrong in the bytes of its array."""
    np.savez(path, features=ROWS)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("features.npy").header_offset
    content[start + 200] ^= 255
    path.write_bytes(content)


@pytest.mark.door
def test_unreadable_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", ROWS)
    np.savez(tmp_path / "archive.npz", features=ROWS)
    damaged_npz(tmp_path / "damaged.npz")
    (tmp_path / "short.npy").write_bytes((tmp_path / "array.npy").read_bytes()[:-1])
    (tmp_path / "short.npz").write_bytes((tmp_path / "archive.npz").read_bytes()[:-30])
    (tmp_path / "text").write_text("1, 2, 3")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    before = everything_in(tmp_path)
    cases = [
        (import_npz, "array.npy", "got a single array; expected an .npz file"),
        (import_npy, "archive.npz", "got an archive of arrays; expected an .npy file"),
        (import_npz, "damaged.npz", "got an unreadable array 'features'"),
        (import_npz, "short.npz", "got an unreadable archive"),
        (import_npz, "absent.npz", "got No such file or directory"),
        (import_npy, "short.npy", "got an unreadable array"),
        (import_npz, "text", "got an unreadable archive"),
        (import_npy, "text", "got an unreadable array"),
        (import_npy, "pickle.npy", "got an unreadable array"),
    ]
    for read, name, message in cases:
        with pytest.raises(InputError) as error:
            read(tmp_path / name, tmp_path / "s")
        assert str(error.value).startswith(f"{tmp_path / name}: {message}"), name
    assert everything_in(tmp_path) == before


@pytest.mark.real_data
def test_tiny_imagenet_validation_features(tmp_path: Path) -> None:
    path = Path(os.environ["REAL_DATA"]) / "tiny_imagenet" / "mobilenetv2_val.npz"
    store = import_npz(path, tmp_path / "s", scale=0.019077831879258156, rows_per_shard=4096)
    with np.load(path) as arrays:
        features, labels, paths = arrays["features"], arrays["labels"], arrays["paths"]
    assert (len(store), store.width, store.n_classes, store.manifest.dtype) == (10_000, 1280, 200, "uint8")
    assert store.labels().tolist() == labels.tolist()
    assert store.ids == store.paths == paths.tolist()
    assert len(set(store.ids)) == 10_000
    rows = torch.tensor([9999, 0, 4096])
    expected = features[rows.numpy()].astype(np.float32) * np.float32(0.019077831879258156)
    np.testing.assert_allclose(store.rows(rows).numpy(), expected, rtol=1e-6)
    assert sum(len(batch.embeddings) for batch in store.batches(1000)) == 10_000
    n, unit_sum = len(store), store.mean * len(store)
    assert ((unit_sum @ unit_sum - n) / (n * (n - 1))).item() == pytest.approx(0.485, abs=0.01)
    assert not store.normalised
    store.verify()
