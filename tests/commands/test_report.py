"""``monoloss report``, called in-process: from a run to pages, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from monoloss.cli import main
from support.reports import grey_thumbnails, image_files, page_data, some_evaluations, some_store


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a store and a run of two evaluations on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    store = some_store(tmp_path / "val", thumbnails=grey_thumbnails(), paths=image_files(tmp_path / "root", range(90)))
    for evaluation in some_evaluations(store, n_examples=2):
        evaluation.save(tmp_path / "run" / "evaluations" / evaluation.name)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["report", "--progress", "false", *argv])
    return code, *capsys.readouterr()


def test_a_run_becomes_pages(work, capsys):
    logs = work / "run" / "logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("base/loss,mono/loss,step\n2.0,3.0,0\n1.0,2.0,1\n", encoding="utf-8")
    code, out, err = run(capsys, "run", "--out", "pages", "--title", "Mine", "--baseline", "mono", "--image_size", "16")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"Open {(work / 'pages' / 'index.html').resolve()}"]
    data = page_data(work / "pages")
    assert [(one["name"], one["baseline"]) for one in data["runs"]] == [("base", False), ("mono", True)]
    assert data["stores"]["store-0"]["cell"] == 16
    assert "training" in {figure["id"] for figure in data["figures"]}
    assert "Mine" in (work / "pages" / "index.html").read_text(encoding="utf-8")


def test_several_folders_and_images_of_the_users_own(work, capsys):
    shutil.copytree(work / "run", work / "again")
    code, _, err = run(capsys, "run", "again/evaluations/mono", "--out", "pages", "--images", "root")
    assert (code, err) == (0, "")
    names = [one["name"] for one in page_data(work / "pages")["runs"]]
    assert names == ["base", "run-mono", "again-mono"]


def test_a_store_that_has_moved(work, capsys):
    (work / "val").rename(work / "elsewhere")
    code, out, _ = run(capsys, "run", "--out", "pages")
    assert code == 0
    assert "The store val is not at its recorded path" in out
    assert page_data(work / "pages")["stores"]["store-0"]["cell"] is None
    code, out, _ = run(capsys, "run", "--out", "pages", "--store", "elsewhere")
    assert code == 0
    assert "recorded path" not in out
    assert page_data(work / "pages")["stores"]["store-0"]["cell"] == 64


def test_help_names_the_options(capsys):
    assert main(["report", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--out", "--images", "--baseline", "--title", "--image_size", "--store", "PATH [PATH ...]"):
        assert option in text


@pytest.mark.parametrize("argv", [[], ["run"], ["--out", "pages"], ["run", "--out", "pages", "--image_size", "x"]])
def test_unusable_arguments_end_with_2(work, capsys, argv):
    assert run(capsys, *argv)[0] == 2


@pytest.mark.door
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere", "--out", "pages"], ["nowhere", "no such folder"]),
        (["val", "--out", "pages"], ["val", "no evaluation"]),
        (["run", "--out", "val"], ["out", "an earlier report's"]),
        (["run", "--out", "pages", "--baseline", "x"], ["baseline", "'x'", "base, mono"]),
        (["run", "--out", "pages", "--store", "nowhere"], ["nowhere"]),
        (["run", "--out", "pages", "--images", "nowhere"], ["images", "nowhere", "no folder"]),
        (["run", "--out", "pages", "--image_size", "0"], ["image_size", "0", "8"]),
    ],
)
def test_refused_in_one_sentence(work, capsys, argv, words):
    before = sorted(work.rglob("*"))
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("monoloss: ")
    assert len(err.strip().splitlines()) == 1
    for word in ("got", "expected", *words):
        assert word in err
    assert sorted(work.rglob("*")) == before
