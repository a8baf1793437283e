"""Files of torch.save: columns, path -> row, bare tensors; nothing else is unpickled."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss.data.importers.torch import import_pt
from monoloss.errors import InputError
from support.pickles import Touches
from support.stores import everything_in, rows_of

ROWS = rows_of(7, 4)
NAMES = [f"folder/é {i}.png" for i in range(7)]
LABELS = [0, 2, 1, 1, 0, 2, 2]


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refused(path: Path, **options: Any) -> str:
    before = everything_in(path.parent)
    with pytest.raises(InputError) as error:
        import_pt(path, path.parent / "s", **options)
    assert everything_in(path.parent) == before
    return str(error.value)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("key", ["features", "embeddings"])
def test_columns(tmp_path: Path, key: str, as_zip: bool) -> None:
    content = {key: ROWS, "paths": NAMES, "labels": LABELS, "epoch": 3}
    path = saved(tmp_path / "x.pt", content, _use_new_zipfile_serialization=as_zip)
    store = import_pt(path, tmp_path / "s", rows_per_shard=3, image_root="root", class_names=list("abc"))
    assert torch.equal(store.embeddings(), ROWS)
    assert store.labels().tolist() == LABELS
    assert store.ids == store.paths == NAMES
    assert (store.shard_offsets, store.manifest.image_root, store.class_names) == ([0, 3, 6, 7], "root", list("abc"))


def test_given_keys_go_before_usual_ones(tmp_path: Path) -> None:
    content = {"features": -ROWS, "a": ROWS, "labels": LABELS, "b": torch.eye(7, 5, dtype=torch.bool), "c": NAMES}
    path = saved(tmp_path / "x.pt", content | {"ids": torch.arange(7)})
    store = import_pt(path, tmp_path / "s", embeddings_key="a", labels_key="b", paths_key="c")
    assert torch.equal(store.embeddings(), ROWS)
    assert torch.equal(store.labels(), torch.eye(7, 5, dtype=torch.bool))
    assert (store.ids, store.paths) == ([str(i) for i in range(7)], NAMES)
    assert not import_pt(path, tmp_path / "t", labels_key="").has_labels


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_row_for_each_path(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    path = saved(tmp_path / "x.pt", kind((name, row.reshape(shape)) for name, row in zip(NAMES, ROWS, strict=True)))
    store = import_pt(path, tmp_path / "s", rows_per_shard=2)
    assert torch.equal(store.embeddings(), ROWS)
    assert store.ids == store.paths == NAMES


def test_a_row_for_each_number(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {7 - i: row for i, row in enumerate(ROWS)})
    store = import_pt(path, tmp_path / "s")
    assert torch.equal(store.embeddings(), ROWS)
    assert store.ids == ["7", "6", "5", "4", "3", "2", "1"]
    assert store.paths == [None] * 7


def test_a_single_tensor_with_files_beside_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", torch.nn.Parameter(ROWS))
    np.save(tmp_path / "y.npy", np.array(LABELS))
    (tmp_path / "paths.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    files = {"labels_path": tmp_path / "y.npy", "paths_path": tmp_path / "paths.txt"}
    store = import_pt(path, tmp_path / "s", rows_per_shard=3, **files)
    assert torch.equal(store.embeddings(), ROWS)
    assert store.labels().tolist() == LABELS
    assert store.ids == store.paths == NAMES
    assert import_pt(path, tmp_path / "t").ids == [str(i) for i in range(7)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_types(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved(tmp_path / "x.pt", ROWS.to(dtype)[:, ::2].t().contiguous().t())  # rows that do not lie in a piece
    store = import_pt(path, tmp_path / "s")
    assert torch.equal(store.embeddings(), ROWS.to(dtype)[:, ::2].float())
    own = str(dtype).removeprefix("torch.")
    assert store.manifest.dtype == ("float32" if own == "float64" else own)


def test_bytes_with_a_scale(tmp_path: Path) -> None:
    rows = torch.arange(1, 29, dtype=torch.uint8).reshape(7, 4)
    store = import_pt(saved(tmp_path / "x.pt", {"features": rows}), tmp_path / "s", scale=0.5)
    assert store.manifest.dtype == "uint8"
    assert torch.equal(store.embeddings(), rows * 0.5)


def test_rows_are_memory_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, asked = torch.load, []

    def counting(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", counting)
    import_pt(saved(tmp_path / "x.pt", ROWS), tmp_path / "s")
    import_pt(saved(tmp_path / "y.pt", ROWS, _use_new_zipfile_serialization=False), tmp_path / "t")
    assert [(options["weights_only"], options["mmap"]) for options in asked] == [(True, True), (True, False)]


@pytest.mark.door
@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("where", ["alone", "beside", "as a key"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, where: str, as_zip: bool) -> None:
    trap: Any = Touches(tmp_path / "hit")
    content = {"alone": trap, "beside": {"features": ROWS, "paths": NAMES, "x": trap}, "as a key": {trap: ROWS}}
    path = saved(tmp_path / "x.pt", content[where], _use_new_zipfile_serialization=as_zip)
    message = refused(path)
    assert message.startswith(f"{path}: got a pickle with ")
    assert "nothing of it was executed; expected a file of torch.save with nothing but tensors" in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "hit").exists()
    torch.load(path, weights_only=False)  # the trap works
    assert (tmp_path / "hit").exists()


@pytest.mark.door
def test_nobody_is_advised_to_execute_a_file(tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "x.pt", {"features": os.system}))
    assert "weights_only" not in message
    assert f"a pickle with {os.system.__module__}.system in it" in message


@pytest.mark.door
@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"x": ROWS, "y": [1]}, {}, "x.pt: got the keys x, y; expected embeddings_key, or one of the keys embeddings"),
        ({"x": ROWS}, {"embeddings_key": "z"}, "embeddings_key: got 'z'; expected one of the keys of"),
        ({"features": ROWS}, {"labels_key": "z"}, "labels_key: got 'z'; expected one of the keys of"),
        ({"features": ROWS, "embeddings": ROWS}, {}, "embeddings_key: got no choice between embeddings and features"),
        ({"features": ROWS.tolist()}, {}, "embeddings: got a list; expected a tensor of shape (rows, width)"),
        ({"features": ROWS, "labels": ["a"] * 7}, {}, "labels: got a list that is no tensor"),
        ({"features": ROWS, "labels": LABELS[:3]}, {}, "labels: got 3 rows; expected as many as embeddings has, 7"),
        ({"features": ROWS, "labels": torch.ones(7)}, {}, "labels: got torch.float32 of shape (rows)"),
        ({"features": ROWS, "paths": [None] * 7}, {}, "paths: got a list; expected a list of strings or integers"),
        ({"features": ROWS, "paths": ["a"] * 7}, {}, "ids: got 'a' twice (rows 0 and 1)"),
        ({"features": ROWS.to(torch.uint8) + 1}, {}, "scale: got None; expected a number for dtype 'uint8'"),
        ({"features": ROWS.to_sparse()}, {}, "x.pt: got a tensor of layout torch.sparse_coo"),
        (ROWS[0], {}, "embeddings: got shape (4,); expected (rows, width)"),
        (ROWS.long(), {}, "embeddings: got torch.int64 rows to store as float32"),
        (ROWS, {"labels_key": "y"}, "labels_key: got 'y'; expected no key:"),
        ({"a": ROWS[0], "b": ROWS[1]}, {"ids_key": "y"}, "ids_key: got 'y'; expected no key:"),
        ({"a": ROWS[0], "b": ROWS[1, :3]}, {}, "'b': got torch.float32 of shape (3,); expected a row of shape (4,)"),
        ({"a": ROWS[0], "b": ROWS[1].double()}, {}, "'b': got torch.float64 of shape (4,)"),
        ({"a": ROWS[0], "b": ROWS[:2]}, {}, "'b': got torch.float32 of shape (2, 4)"),
        ({"a": torch.tensor(1.0)}, {}, "'a': got torch.float32 of shape ()"),
        ({"a": ROWS[0], "b": ROWS[1] * torch.nan}, {}, "embeddings: got NaN or inf (row 1, id 'b')"),
        ([ROWS], {}, "x.pt: got a list; expected a dict of columns"),
        ({}, {}, "x.pt: got the keys (none)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, options: dict[str, Any], message: str) -> None:
    assert message in refused(saved(tmp_path / "x.pt", content), **options)


@pytest.mark.door
def test_unreadable_files_are_named(tmp_path: Path) -> None:
    content = saved(tmp_path / "x.pt", {"features": ROWS}).read_bytes()
    old = saved(tmp_path / "y.pt", {"features": ROWS}, _use_new_zipfile_serialization=False).read_bytes()
    for name, part in {
        "short": content[:-100],
        "half": content[: len(content) // 2],
        "old": old[:-20],
        "old half": old[: len(old) // 2],
        "empty": b"",
        "text": b"1, 2, 3\n" * 100,
    }.items():
        (tmp_path / f"{name}.pt").write_bytes(part)
        message = refused(tmp_path / f"{name}.pt")
        assert message.startswith(f"{tmp_path / name}.pt: got an unreadable file;"), message
        assert len(message.splitlines()) == 1
    assert refused(tmp_path / "absent.pt").startswith(f"{tmp_path}/absent.pt: got No such file or directory")
