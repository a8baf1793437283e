"""What all importers share: files beside the source, the choice of keys, options of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss.data.importers.options import (
    ColumnFiles,
    import_progress,
    no_embeddings,
    store_options,
    strings,
    write_array,
)
from monoloss.data.importers.torch import import_pt
from monoloss.data.store.stream import RowColumns
from monoloss.errors import InputError
from support.stores import rows_of

NO_KEYS: dict[str, str | None] = dict.fromkeys(("embeddings_key", "labels_key", "ids_key", "paths_key"))
NO_FILES = ColumnFiles(None, None, None)


def test_columns_from_npy_and_text_files(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([2, 0]))
    np.save(tmp_path / "ids.npy", np.array([7, 8]))
    (tmp_path / "ids.npy").rename(tmp_path / "IDS.NPY")
    (tmp_path / "labels.txt").write_text("2\n0\n", encoding="utf-8")
    (tmp_path / "paths.txt").write_bytes("é.png\r\nb.png".encode())
    for name in ("labels.npy", "labels.txt"):
        files = ColumnFiles.read({"labels_path": tmp_path / name, "ids_path": tmp_path / "IDS.NPY"})
        assert (files.labels.tolist(), files.ids, files.paths) == ([2, 0], ["7", "8"], None)
    assert ColumnFiles.read({"paths_path": tmp_path / "paths.txt"}).paths == ["é.png", "b.png"]
    assert ColumnFiles.read({"progress": True}) == NO_FILES


def test_files_go_before_the_columns_of_a_source() -> None:
    source: dict[str, Any] = {"labels": np.array([0, 1]), "ids": ["a", "b"], "paths": ["a.png", None]}
    assert NO_FILES.beside(**source) == RowColumns(**source)
    labels, ids, paths, _ = ColumnFiles(np.array([1, 0]), ["c", "d"], ["c.png", "d.png"]).beside(**source)
    assert (labels.tolist(), ids, paths) == ([1, 0], ["c", "d"], ["c.png", "d.png"])
    assert NO_FILES.beside(paths=["a.png", "b.png"]).ids == ["a.png", "b.png"]
    assert NO_FILES.beside() == RowColumns()


def test_a_part_of_the_files() -> None:
    files = ColumnFiles(np.arange(4), list("abcd"), None).part(1, 3)
    assert (files.labels.tolist(), files.ids, files.paths) == ([1, 2], ["b", "c"], None)


def test_keys_are_chosen_for_columns_without_a_file() -> None:
    present_keys = ["features", "targets", "ids", "other"]
    assert NO_FILES.choose_keys(NO_KEYS, present_keys, "x") == ("features", "targets", "ids", None)
    given = {**NO_KEYS, "paths_key": "other", "ids_key": ""}
    assert NO_FILES.choose_keys(given, present_keys, "x") == ("features", "targets", None, "other")
    labelled = ColumnFiles(np.arange(2), None, None)
    assert labelled.choose_keys(NO_KEYS, present_keys, "x") == ("features", None, "ids", None)


def test_options_of_the_store_are_picked_out() -> None:
    options: dict[str, Any] = {"labels_path": "x", "ids_path": "y", "paths_path": "z", "progress": True, "scale": 0.5}
    assert store_options(options, "uint8") == {"dtype": "uint8", "scale": 0.5}
    assert store_options({"dtype": "float16"}, "float32") == {"dtype": "float16"}


@pytest.mark.parametrize(
    "values", [np.array(["1", "2"]), np.array([b"1", b"2"]), np.array([1, 2]), np.array([1, 2], dtype=np.uint8)]
)
def test_strings(values: np.ndarray) -> None:
    assert strings(values, "ids") == ["1", "2"]


def test_an_array_becomes_a_store_of_its_type(tmp_path: Path) -> None:
    for name, rows in [("half", rows_of(5).half()), ("double", rows_of(5).double())]:
        store = write_array(tmp_path / name, rows, RowColumns(ids=list("abcde")), {"rows_per_shard": 2})
        assert torch.equal(store.embeddings(), rows.float())
        assert store.manifest.dtype == {"half": "float16", "double": "float32"}[name]
        assert (store.ids, store.shard_offsets) == (list("abcde"), [0, 2, 4, 5])


def test_progress_is_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (False, True):
        with import_progress({"progress": shown}, 4) as advance:
            advance(4)
        assert ("importing" in capsys.readouterr().err) == shown


@pytest.mark.door
def test_files_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("0\n1.5\n", encoding="ascii")
    with pytest.raises(InputError, match=r"labels\.txt: got '1\.5' on line 2; expected an integer on each line"):
        ColumnFiles.read({"labels_path": tmp_path / "labels.txt"})
    (tmp_path / "labels.txt").write_text(f"{2**63}\n", encoding="ascii")
    with pytest.raises(InputError, match=r"labels\.txt: got '9223372036854775808' on line 1; expected an integer"):
        ColumnFiles.read({"labels_path": tmp_path / "labels.txt"})
    np.save(tmp_path / "ids.npy", np.ones((2, 1)))
    with pytest.raises(InputError, match=r"ids: got float64 of shape \(2, 1\); expected strings or integers of shape"):
        ColumnFiles.read({"ids_path": tmp_path / "ids.npy"})


@pytest.mark.door
def test_a_source_without_embeddings() -> None:
    expected = "x: got the keys a, b; expected embeddings_key, or one of the keys embeddings, features"
    assert str(no_embeddings("x", ["a", "b"])) == expected
    with pytest.raises(InputError) as error:
        NO_FILES.choose_keys(NO_KEYS, ["a", "b"], "x")
    assert str(error.value) == expected
    assert "got the keys (none); expected" in str(no_embeddings("x", []))


@pytest.mark.door
def test_a_key_and_a_file_for_the_same_column(tmp_path: Path) -> None:
    torch.save({"features": rows_of(7, 4), "labels": [0] * 7}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"labels_key: got 'labels' beside the file y\.npy; expected one of the two"):
        import_pt(tmp_path / "x.pt", tmp_path / "s", labels_key="labels", labels_path="y.npy")
    assert not (tmp_path / "s").exists()
