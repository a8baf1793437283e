"""``monoloss import``, called in-process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import lmdb
import numpy as np
import pytest
import torch

from monoloss.cli import main
from monoloss.data.store import FeatureStore

ROWS = np.random.default_rng(4).normal(size=(9, 4)).astype(np.float32)
LABELS = [i % 3 for i in range(9)]
NAMES = [f"n{i}/{i}.jpg" for i in range(9)]
KINDS = {"npz": "x.npz", "npy": "x.npy", "lmdb": "x.lmdb", "pt": "x.pt", "dataset": "x.parquet"}
WITH_COLUMNS = ["npz", "pt", "dataset"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a source of a kind in the working folder, with the files that may stand beside it; gives its name."""
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", np.array(LABELS[::-1]))
    for name, lines in {"ids.txt": [f"id {i}" for i in range(9)], "paths.txt": NAMES, "names.txt": "abc"}.items():
        Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def make(kind: str) -> str:
        columns = {"features": ROWS, "labels": LABELS, "paths": NAMES, "other": -ROWS}
        if kind == "npz":
            np.savez("x.npz", **columns)
        elif kind == "npy":
            np.save("x.npy", ROWS)
        elif kind == "lmdb":
            entries = {str(i): row.tobytes() for i, row in enumerate(ROWS)} | {"__len__": b"9", "__shape__": b"(4,)"}
            with lmdb.open("x.lmdb", map_size=1 << 20) as environment, environment.begin(write=True) as writing:
                for key, value in entries.items():
                    writing.put(key.encode(), value)
        elif kind == "pt":
            torch.save(columns | {"features": torch.from_numpy(ROWS), "other": torch.from_numpy(-ROWS)}, "x.pt")
        else:
            lists = {"features": list(ROWS), "other": list(-ROWS)}
            kinds = {name: datasets.List(datasets.Value("float32")) for name in lists}
            features = datasets.Features(kinds | {"labels": datasets.Value("int64"), "paths": datasets.Value("string")})
            datasets.disable_progress_bars()
            datasets.Dataset.from_dict(columns | lists, features=features).to_parquet("x.parquet")
            datasets.enable_progress_bars()
        return KINDS[kind]

    return make


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["import", *argv, "--out", "s", "--progress", "false"])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def imported(capsys: pytest.CaptureFixture[str], *argv: str) -> FeatureStore:
    code, _, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    return FeatureStore("s")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("monoloss: ")
    assert len(err.splitlines()) == 1
    assert not [*Path().glob("s"), *Path().glob(".s.*")]
    return err.removeprefix("monoloss: ").strip()


@pytest.mark.parametrize("named", ["auto", "given"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(source: Any, capsys: pytest.CaptureFixture[str], kind: str, named: str) -> None:
    name = Path(source(kind))
    if named == "given" and kind != "dataset":  # whose kind of file its name alone tells
        name = name.rename("nameless")
    store = imported(capsys, str(name), *(["--kind", kind] if named == "given" else []))
    assert np.array_equal(store.embeddings().numpy(), ROWS)
    if kind in WITH_COLUMNS:
        assert store.labels().tolist() == LABELS
        assert store.ids == store.paths == NAMES


def test_a_folder_of_a_dataset(source: Any, capsys: pytest.CaptureFixture[str]) -> None:
    table = datasets.load_dataset("parquet", data_files=source("dataset"), split="train", streaming=True)
    datasets.disable_progress_bars()
    part = datasets.Dataset.from_list(list(table))
    datasets.DatasetDict({"train": part, "val": part.select(range(5))}).save_to_disk("folder")
    datasets.enable_progress_bars()
    assert len(imported(capsys, "folder", "--split", "val")) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_for_every_kind(source: Any, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    argv = ["--labels", "y.npy", "--ids", "ids.txt", "--paths", "paths.txt", "--class_names", "names.txt"]
    argv += ["--encoder", "clip", "--image_root", "images", "--dtype", "float16", "--rows_per_shard", "4"]
    store = imported(capsys, source(kind), *argv)
    assert np.array_equal(store.embeddings().numpy(), ROWS.astype(np.float16).astype(np.float32))
    assert store.labels().tolist() == LABELS[::-1]
    assert (store.ids, store.paths) == ([f"id {i}" for i in range(9)], NAMES)
    assert (store.class_names, store.manifest.image_root) == (["a", "b", "c"], "images")
    assert store.manifest.encoder == {"name": "clip", "weights": None, "preprocessing": None}
    assert (store.manifest.dtype, store.shard_offsets) == ("float16", [0, 4, 8, 9])


@pytest.mark.parametrize("kind", WITH_COLUMNS)
def test_columns_by_name(source: Any, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    store = imported(capsys, source(kind), "--embeddings", "other", "--labels", "", "--ids", "paths", "--paths", "")
    assert np.array_equal(store.embeddings().numpy(), -ROWS)
    assert (store.has_labels, store.ids, store.paths[0]) == (False, NAMES, None)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes(source: Any, capsys: pytest.CaptureFixture[str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROWS", np.arange(1, 37, dtype=np.float32).reshape(9, 4) / 4)
    store = imported(capsys, source(kind), "--dtype", "uint8", "--scale", "0.25")
    assert store.manifest.dtype == "uint8"
    assert np.array_equal(store.embeddings().numpy(), np.arange(1, 37).reshape(9, 4) / 4)


def test_ends_with_what_info_prints(source: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, source("npz"))
    assert main(["info", "s"]) == 0
    assert out == capsys.readouterr().out
    assert "feature store" in out


def test_progress_bar(source: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", source("lmdb"), "--out", "s", "--rows_per_shard", "4"]) == 0
    streams = capsys.readouterr()
    assert "9/9 rows" in streams.err
    assert "9/9" not in streams.out


@pytest.mark.door
@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        (
            "npy",
            ["--embeddings", "x"],
            "embeddings: got 'x' for a source of kind npy; expected it for npz, pt, dataset",
        ),
        ("lmdb", ["--embeddings", "x"], "embeddings: got 'x' for a source of kind lmdb"),
        ("npz", ["--split", "train"], "split: got 'train' for a source of kind npz; expected it for dataset only"),
        ("pt", ["--subset", "x"], "subset: got 'x' for a source of kind pt; expected it for dataset only"),
        (
            "npy",
            ["--labels", "y"],
            "labels: got 'y'; expected an .npy or .txt file: a source of kind npy holds nothing",
        ),
        ("lmdb", ["--paths", ""], "paths: got ''; expected an .npy or .txt file"),
        ("npz", ["--ids", "x"], "ids_key: got 'x'; expected one of the keys of x.npz: features, labels, paths, other"),
        ("pt", ["--embeddings", "x"], "embeddings_key: got 'x'; expected one of the keys of x.pt"),
        ("dataset", ["--labels", "x"], "labels_key: got 'x'; expected one of the keys of x.parquet"),
        ("npz", ["--dtype", "uint8"], "scale: got None; expected a number for dtype 'uint8'"),
        ("npz", ["--scale", "0.5"], "scale: got 0.5; expected None for dtype 'float32'; only 'uint8' has a scale"),
        ("npy", ["--class_names", "names.txt"], "class_names: got names without labels"),
        ("npz", ["--class_names", "ids.txt", "--labels", ""], "class_names: got names without labels"),
        ("npz", ["--class_names", "absent.txt"], "absent.txt: got No such file or directory"),
        ("npz", ["--kind", "npy"], "x.npz: got an archive of arrays; expected an .npy file"),
        ("npy", ["--kind", "npz"], "x.npy: got a single array; expected an .npz file"),
        ("npy", ["--kind", "lmdb"], "x.npy: got data that cannot be read as LMDB"),
        ("npy", ["--kind", "pt"], "x.npy: got an unreadable file"),
        ("npy", ["--kind", "dataset"], "x.npy: got a file of another kind; expected a folder of save_to_disk"),
        ("npz", ["--rows_per_shard", "0"], "rows_per_shard: got 0; expected an integer at least 1"),
    ],
)
def test_what_means_nothing_is_one_sentence(
    source: Any, capsys: pytest.CaptureFixture[str], kind: str, argv: list[str], message: str
) -> None:
    assert refused(capsys, source(kind), *argv).startswith(message)


@pytest.mark.door
def test_sources_that_are_not_there_or_not_known(source: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "absent.npz").startswith("absent.npz: got no such file or folder; expected a file, a folder")
    assert refused(capsys, "names.txt").startswith("kind: got 'auto' for names.txt; expected npz, npy, lmdb, pt")
    assert refused(capsys, "hf-hub:nobody/none").startswith("hf-hub:nobody/none: got a dataset that cannot be read")


@pytest.mark.door
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_folder_is_left_alone(source: Any, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    name = source(kind)
    Path("s").mkdir()
    Path("s/thesis.txt").write_text("years of work", encoding="utf-8")
    code, out, err = run(capsys, name)
    assert (code, out) == (2, "")
    assert "s: got a folder that is not empty" in err
    assert [file.name for file in Path("s").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("argv", [["x.npy"], ["--out", "s"], ["x.npy", "--out", "s", "--kind", "csv"]])
def test_unusable_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", *argv]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_leaves_nothing(
    source: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    name = source(kind)
    monkeypatch.setattr("monoloss.data.store.writer.FeatureStoreWriter.finish", interrupted)
    assert run(capsys, name)[0] == 130
    assert not [*Path().glob("s"), *Path().glob(".s.*")]


@pytest.mark.door
@pytest.mark.parametrize(("kind", "package"), [("lmdb", "lmdb"), ("dataset", "datasets")])
def test_missing_extra(
    source: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    name = source(kind)
    for module in ("importers.lmdb",) if kind == "lmdb" else ("importers.hf_datasets", "huggingface.open"):
        monkeypatch.delitem(sys.modules, f"monoloss.data.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(capsys, name) == f"{package}: got no such package; expected pip install 'monoloss[interop]'"
