"""``monoloss extract``, called in-process, and what ``monoloss info`` says about its stores."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from monoloss.cli import main
from monoloss.data.store import FeatureStore
from support.disk_limit import file_size_limit
from support.extraction import contents_of, write_images
from support.image_files import NEEDLE, broken_files

MODEL = ("--encoder", "resnet10t", "--pretrained", "false", "--image_size", "32")


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fourteen files in three classes, two of them broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    names = write_images(tmp_path / "images" / "train", 14)
    for number in (3, 9):
        (tmp_path / "images" / "train" / names[number]).write_bytes(b"broken")
    return names


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    source = ("--images", "imagefolder:images", "--split", "train", "--out", "s", "--workers", "0")
    code = main(["extract", *MODEL, *source, "--progress", "false", *argv])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    return err.removeprefix("monoloss: ").strip()


def test_a_folder(capsys: pytest.CaptureFixture[str], images: list[str]) -> None:
    code, out, err = run(capsys, "--rows_per_shard", "5", "--thumbnails", "4", "--dtype", "float16")
    assert (code, err) == (0, "")
    store = FeatureStore("s")
    kept = [name for number, name in enumerate(images) if number not in (3, 9)]
    assert (store.ids, store.paths) == (kept, kept)
    assert store.labels().tolist() == [int(name[6]) for name in kept]
    assert (store.manifest.dtype, store.manifest.thumbnails, store.width) == ("float16", [4, 4, 3], 512)
    assert store.manifest.source == "imagefolder:images, split train"
    assert store.manifest.encoder is not None
    assert store.manifest.encoder["weights"] == {"random": 0}
    assert main(["info", "s"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(out.rstrip())
    for words in (
        "images from",
        "imagefolder:images, split train",
        "resnet10t, weights.random 0",
        "files without a row",
    ):
        assert words in said
    assert run(capsys, "--rows_per_shard", "5", "--thumbnails", "4", "--dtype", "float16") == (0, out, "")


def test_every_skipped_file_and_every_class(capsys: pytest.CaptureFixture[str], images: list[str]) -> None:
    for name in images[:7]:
        Path("images", "train", name).write_bytes(b"broken")
    run(capsys)
    assert main(["info", "s"]) == 0
    short = capsys.readouterr().out
    assert "8: 8 not an image in a known format" in short
    assert "... and 3 more: monoloss info s --skipped" in short
    assert images[9] not in short
    assert main(["info", "s", "--skipped", "--classes", "--verify"]) == 0
    whole = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in whole.splitlines()}
    for number in (*range(7), 9):
        assert f"{images[number]} not an image in a known format" in lines
    assert {"class 0 0", "class 1 2", "class 2 4"} <= lines
    assert "more: monoloss info" not in whole


def test_needles_are_skipped(capsys: pytest.CaptureFixture[str], images: list[str]) -> None:
    needles = {images[0]: "needle.png", images[7]: "upright needle.png"}
    for name, sample in needles.items():
        Path("images", "train", name).write_bytes(broken_files()[sample][0])
    code, _, err = run(capsys, "--rows_per_shard", "5", "--thumbnails", "4")
    assert (code, err) == (0, "")
    store = FeatureStore("s")
    assert store.ids == [name for number, name in enumerate(images) if number not in (0, 3, 7, 9)]
    assert {file.path: file.reason for file in store.skipped if file.path in needles} == dict.fromkeys(needles, NEEDLE)


@pytest.mark.door
@pytest.mark.parametrize(
    ("limit", "file"),
    [(50, "shard-00000.jsonl"), (5000, "shard-00000.safetensors"), (8500, "manifest.json")],
)
def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str], limit: int, file: str) -> None:
    options = ("--rows_per_shard", "2", "--dtype", "float16")
    with file_size_limit(limit):
        said = refused(capsys, *options)
    assert said == f"s/{file}: got File too large; expected a place that can hold it"
    there = contents_of(Path("s"))
    assert run(capsys, *options)[0] == 0
    after = contents_of(Path("s"))
    assert there.items() <= after.items()  # nothing torn
    assert file not in there
    assert run(capsys, *options, "--out", "whole")[0] == 0
    assert contents_of(Path("whole")) == after


@pytest.mark.door
def test_no_space_left_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("monoloss.files.tensors.save_file", fail)
        said = refused(capsys)
    assert said == "s/shard-00000.safetensors: got No space left on device; expected a place that can hold it"
    assert list(contents_of(Path("s"))) == ["shard-00000.jsonl"]
    assert run(capsys)[0] == 0


def test_another_spelling_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    before = contents_of(Path("s"))
    Path("s", "manifest.json").unlink()
    again = ("--images", f"imagefolder:{Path.cwd()}/images/train/", "--out", "s", "--workers", "0")
    assert main(["extract", *MODEL, *again, "--progress", "false"]) == code == 0
    assert capsys.readouterr().out == out
    assert contents_of(Path("s")) == before


def test_patches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--patches", "true")
    assert code == 0
    store = FeatureStore("s")
    assert store.patch_grid is not None
    height, width = store.patch_grid
    assert store.n_rows == 12 * height * width
    assert f"{height} x {width} of each of 12 images" in out


@pytest.mark.door
def test_another_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys)
    before = contents_of(Path("s"))
    assert refused(capsys, "--dtype", "float16").startswith(
        "s/manifest.json: got a finished store with dtype 'float32'"
    )
    assert "encoder.preprocessing.crop_" in refused(capsys, "--crop", "squash")
    assert "encoder.preprocessing.output" in refused(capsys, "--output", "layer:layer2")
    Path("images", "train", "class 0", "new.png").write_bytes(b"x")
    assert "15 images; expected 14, as in s, which is finished" in refused(capsys)
    assert contents_of(Path("s")) == before


@pytest.mark.door
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dtype", "uint8"], "scale: got None; expected a number for dtype 'uint8'"),
        (["--device", "tpu9"], "device: got 'tpu9'"),
        (["--split", "absent"], "split: got 'absent'; expected one of"),
        (["--streaming", "true"], "streaming: got True; expected none"),
        (["--encoder", "resnet10x"], "encoder"),
        (["--images", "images"], "images: got 'images'; expected imagefolder:PATH"),
        (["--output", "layer:nowhere"], "output: got 'layer:nowhere', no layer of this model"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in refused(capsys, *argv)
    assert not Path("s").exists()


@pytest.mark.door
@pytest.mark.parametrize("package", ["timm", "PIL"])
def test_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("monoloss.data.e", "monoloss.data.im", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(capsys) == f"{package}: got no such package; expected pip install 'monoloss[vision]'"


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("monoloss.data.store.writer.FeatureStoreWriter.finish", interrupted)
        code, out, err = run(capsys, "--rows_per_shard", "5")
    assert (code, out) == (130, "")
    assert err.splitlines() == ["monoloss: the same command resumes s", "monoloss: interrupted"]
    assert run(capsys, "--rows_per_shard", "5")[0] == 0


@pytest.mark.door
def test_info_of_an_unfinished_store(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys)
    Path("s", "manifest.json").unlink()
    assert main(["info", "s"]) == 2
    assert "s: got a folder without manifest.json; expected a store that has been finished" in capsys.readouterr().err
    for flag in ("--skipped", "--classes"):
        (Path("e") / "evaluation.json").parent.mkdir(exist_ok=True)
        Path("e", "evaluation.json").write_text("{}")
        assert main(["info", "e", flag]) == 2
        assert "which is no feature store" in capsys.readouterr().err
