"""A run that was stopped is resumed by the same command and ends with the same bytes; another command is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from monoloss.data.images import open_images
from monoloss.data.images.source import SourceImage
from monoloss.errors import InputError
from support.extraction import FakeEncoder, ListSource, contents_of, png, silent, write_images

N_CALLS = 7  # of the encoder: shards of 4, 4, 4 and 2 images in batches of 3


def stopping(call: int) -> Callable[[int, Tensor], Tensor]:
    def on_call(number: int, rows: Tensor) -> Tensor:
        if number == call:
            raise KeyboardInterrupt
        return rows

    return on_call


def folder_of(tmp_path: Path) -> Any:
    if not (tmp_path / "images").exists():
        names = write_images(tmp_path / "images", 14)
        (tmp_path / "images" / names[5]).write_bytes(b"broken")
    return open_images(f"imagefolder:{tmp_path / 'images'}")


def stream(_: Path) -> ListSource:
    return ListSource(14, stream=True, labels="multi", contents={5: b"broken"})


def begun(tmp_path: Path, source: Any, call: int = 4, **options: Any) -> Path:
    """A store with the shards that were written before a call of the encoder: by default the first two."""
    with pytest.raises(KeyboardInterrupt):
        silent(source, FakeEncoder(on_call=stopping(call)), tmp_path / "s", **options)
    return tmp_path / "s"


@pytest.mark.parametrize("source", [folder_of, stream])
@pytest.mark.parametrize("call", range(N_CALLS))
def test_stopped_at_any_batch(tmp_path: Path, source: Callable[[Path], Any], call: int) -> None:
    options = {"thumbnails": 2}
    whole = silent(source(tmp_path), FakeEncoder(), tmp_path / "whole", **options)
    folder = begun(tmp_path, source(tmp_path), call, **options)
    (folder / ".shard-00003.safetensors.0123abcd.tmp").mkdir()  # what a kill leaves
    encoder = FakeEncoder()
    again = silent(source(tmp_path), encoder, folder, **options)
    assert contents_of(folder) == contents_of(whole.folder)
    assert again.fingerprint == whole.fingerprint
    assert encoder.calls == N_CALLS - (call // 2) * 2  # nothing is encoded again but the shard that was stopped


@pytest.mark.parametrize("missing", [[0], [1, 2], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize("source", [folder_of, stream])
def test_any_missing_shards(tmp_path: Path, missing: list[int], source: Callable[[Path], Any]) -> None:
    whole = silent(source(tmp_path), FakeEncoder(), tmp_path / "whole")
    shutil.copytree(whole.folder, tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    for shard in missing:
        (tmp_path / "s" / f"shard-0000{shard}.safetensors").unlink()
    silent(source(tmp_path), FakeEncoder(), tmp_path / "s")
    assert contents_of(tmp_path / "s") == contents_of(whole.folder)


def metadata(**changes: Any) -> FakeEncoder:
    return FakeEncoder(metadata={**FakeEncoder().metadata, **changes})


OTHER_RUNS: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (lambda: metadata(name="other"), {}, "encoder.name 'fake'; expected 'other', as in this run"),
    (lambda: metadata(weights={"random": 1}), {}, "encoder.weights.random 0; expected 1"),
    (
        lambda: metadata(preprocessing={"input_size": [3, 8, 8]}),
        {},
        r"encoder.preprocessing.input_size \[3, 4, 4\]; expected \[3, 8, 8\]",
    ),
    (FakeEncoder, {"dtype": "float16"}, "dtype 'float32'; expected 'float16'"),
    (FakeEncoder, {"rows_per_shard": 5}, "rows_per_shard 4; expected 5"),
    (FakeEncoder, {"thumbnails": 3}, r"thumbnails None; expected \[3, 3, 3\]"),
    (lambda: FakeEncoder(patches=True), {}, r"patch_grid None; expected \[2, 2\]"),
]


@pytest.mark.door
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(("encoder", "options", "message"), OTHER_RUNS)
def test_another_run_is_refused(
    tmp_path: Path, encoder: Callable[[], Any], options: dict[str, Any], message: str, finished: bool
) -> None:
    source = folder_of(tmp_path)
    folder = silent(source, FakeEncoder(), tmp_path / "s").folder if finished else begun(tmp_path, source)
    before = contents_of(folder)
    where = (
        r"manifest\.json: got a finished store with " if finished else r"shard-00000\.safetensors: got a shard with "
    )
    with pytest.raises(InputError, match=where + message) as caught:
        silent(source, encoder(), folder, **options)
    assert "\n" not in str(caught.value)
    assert contents_of(folder) == before


def add_in_front(images: Path) -> None:
    (images / "class 0" / "!.png").write_bytes(png((1, 2, 3)))


def rename(images: Path) -> None:
    (images / "class 0" / "003.png").rename(images / "class 0" / "004.png")


def rename_broken(images: Path) -> None:
    (images / "class 1" / "001.png").rename(images / "class 1" / "002.png")


def remove_many(images: Path) -> None:
    for name in ("class 1", "class 2"):
        shutil.rmtree(images / name)


def relabel(images: Path) -> None:
    (images / "a class").mkdir()
    (images / "a class" / "zz.png").write_bytes(png((1, 2, 3)))


@pytest.mark.door
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", [add_in_front, rename, rename_broken, remove_many, relabel])
def test_other_images_are_refused(tmp_path: Path, change: Callable[[Path], None], finished: bool) -> None:
    source = folder_of(tmp_path)
    folder = silent(source, FakeEncoder(), tmp_path / "s").folder if finished else begun(tmp_path, source)
    change(tmp_path / "images")
    before, encoder = contents_of(folder), FakeEncoder()
    with pytest.raises(InputError, match=r"imagefolder:.*got .*images; expected|position|shard|class_names") as caught:
        silent(folder_of(tmp_path), encoder, folder)
    assert "\n" not in str(caught.value)
    assert encoder.calls == 0
    assert contents_of(folder) == before


@pytest.mark.door
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"prefix": "line "},
            r"list: got 'line 0' at position 0; expected 'row 0', as in .*shard-00000.jsonl: a store",
        ),
        ({"labels": "single"}, "labels None; expected 'single'|class_names None; expected"),
        ({"n": 6}, "list: got (2|6) images(; expected enough to fill .*shard-00001| for shard 1; expected 4, as in)"),
        ({"n": 3}, "list: got 3 images(; expected enough to fill| for shard 0; expected 4, as in)"),
    ],
)
def test_other_rows_of_a_data_set_are_refused(tmp_path: Path, stream: bool, other: Any, message: str) -> None:
    folder = begun(tmp_path, ListSource(14, stream=stream))
    before = [name for name in contents_of(folder) if name.endswith("safetensors")]
    with pytest.raises(InputError, match=message):
        silent(ListSource(**{"n": 14, "stream": stream, **other}), FakeEncoder(), folder)
    assert not (folder / "manifest.json").exists()
    assert [name for name in contents_of(folder) if name.endswith("safetensors")][: len(before)] == before


class Relabelled(ListSource):
    """Another label for the last image of the first shard; all else is the same."""

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SourceImage]:
        for image in super().images(start, stop):
            if image.position == 3:
                yield image._replace(label=1 if self.labels == "single" else (1,))
            else:
                yield image


@pytest.mark.door
@pytest.mark.parametrize("state", ["unfinished", "finished", "a stream"])
@pytest.mark.parametrize(("labels", "got", "expected"), [("single", 1, 0), ("multi", r"\(1,\)", r"\(\)")])
def test_other_labels_alone_are_refused(tmp_path: Path, labels: Any, state: str, got: object, expected: object) -> None:
    options: dict[str, Any] = {"labels": labels, "stream": state == "a stream"}
    source, encoder = ListSource(14, **options), FakeEncoder()
    folder = silent(source, encoder, tmp_path / "s").folder if state == "finished" else begun(tmp_path, source)
    before = contents_of(folder)
    message = f"label={got}.* at position 3; expected .*label={expected}.*, as in .*shard-00000.jsonl"
    with pytest.raises(InputError, match=message):
        silent(Relabelled(14, **options), FakeEncoder(), folder)
    assert contents_of(folder) == before
    assert contents_of(silent(ListSource(14, **options), FakeEncoder(), folder).folder).keys() >= before.keys()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("images/train/", None), ("images", "train")),
        (("images", "train"), ("{here}/images/train", None)),
        (("{here}/images", "train"), ("./images/../images/train", None)),
    ],
)
def test_another_spelling_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any, then: Any, finished: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images" / "train", 14)

    def options(place: str, split: str | None) -> dict[str, Any]:
        spec = f"imagefolder:{place.format(here=tmp_path)}"
        return {"source": open_images(spec, split=split), "origin": spec if split is None else f"{spec}, split {split}"}

    begins, resumes = options(*first), options(*then)
    whole = silent(encoder=FakeEncoder(), out=tmp_path / "whole", **begins)
    if finished:
        silent(encoder=FakeEncoder(), out=tmp_path / "s", **begins)
    else:
        begun(tmp_path, begins["source"], origin=begins["origin"])
    store = silent(encoder=FakeEncoder(), out=tmp_path / "s", **resumes)
    assert store.manifest.source == begins["origin"] != resumes["origin"]
    assert contents_of(tmp_path / "s") == contents_of(whole.folder)


@pytest.mark.door
@pytest.mark.parametrize("finished", [False, True])
def test_another_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    for place in ("a", "b"):
        write_images(tmp_path / place / "images", 14)
    monkeypatch.chdir(tmp_path / "a")
    source = open_images("imagefolder:images")
    folder = silent(source, FakeEncoder(), tmp_path / "s").folder if finished else begun(tmp_path, source)
    before = contents_of(folder)
    with pytest.raises(
        InputError, match=r"with source 'imagefolder:images'; expected 'imagefolder:.*/b/images', as in"
    ):
        silent(open_images(f"imagefolder:{tmp_path}/b/images"), FakeEncoder(), folder)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(InputError, match=r"with image_root '.*/a/images'; expected '.*/b/images', as in this run"):
        silent(open_images("imagefolder:images"), FakeEncoder(), folder)
    assert contents_of(folder) == before


@pytest.mark.door
@pytest.mark.parametrize("finished", [False, True])
def test_another_origin_without_an_image_root_is_refused(tmp_path: Path, finished: bool) -> None:
    source = ListSource(14)
    folder = silent(source, FakeEncoder(), tmp_path / "s").folder if finished else begun(tmp_path, source)
    with pytest.raises(InputError, match="with source 'list'; expected 'elsewhere', as in this run"):
        silent(source, FakeEncoder(), folder, origin="elsewhere")


@pytest.mark.door
def test_a_stream_that_has_become_shorter(tmp_path: Path) -> None:
    folder = begun(tmp_path, ListSource(14, stream=True))
    with pytest.raises(InputError, match=r"list: got 4 images; expected enough to fill .*shard-00001\.safetensors"):
        silent(ListSource(4, stream=True), FakeEncoder(), folder)


def test_a_finished_store_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = silent(folder_of(tmp_path), FakeEncoder(), tmp_path / "s")
    before, encoder = contents_of(store.folder), FakeEncoder()
    again = silent(folder_of(tmp_path), encoder, tmp_path / "s", progress=True)
    assert (again.fingerprint, encoder.calls) == (store.fingerprint, 0)
    assert contents_of(store.folder) == before
    assert capsys.readouterr().err.strip().endswith("s is finished already: 13 images")


def test_other_batches_and_workers_resume(tmp_path: Path) -> None:
    whole = silent(folder_of(tmp_path), FakeEncoder(), tmp_path / "whole")
    folder = begun(tmp_path, folder_of(tmp_path))
    silent(folder_of(tmp_path), FakeEncoder(), folder, batch_size=1, workers=1)
    assert contents_of(folder) == contents_of(whole.folder)  # the encoder here takes each image by itself


@pytest.mark.door
def test_damaged_and_strange_folders(tmp_path: Path) -> None:
    folder = begun(tmp_path, folder_of(tmp_path))
    (folder / "letter.txt").write_text("dear ...")
    with pytest.raises(InputError, match=r"letter\.txt: got a file that is no part of a store"):
        silent(folder_of(tmp_path), FakeEncoder(), folder)
    (folder / "letter.txt").unlink()
    (folder / "shard-00000.safetensors").rename(folder / "shard-00002.safetensors")
    with pytest.raises(InputError, match=r"shard-00002\.safetensors: got shard 0; expected shard 2"):
        silent(folder_of(tmp_path), FakeEncoder(), folder)
    (folder / "shard-00002.safetensors").rename(folder / "shard-00000.safetensors")
    lines = folder / "shard-00001.jsonl"
    lines.write_text(lines.read_text().replace("001", "009"))
    with pytest.raises(InputError, match=r"shard-00001\.jsonl: got changed contents"):
        silent(folder_of(tmp_path), FakeEncoder(), folder)
    shard = folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: got no shard of a store"):
        silent(folder_of(tmp_path), FakeEncoder(), folder)


@pytest.mark.door
def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = silent(folder_of(tmp_path), FakeEncoder(), tmp_path / "s").folder
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "format_version": 9}))
    with pytest.raises(InputError, match=r"manifest\.json: got format_version 9; expected format_version 1"):
        silent(folder_of(tmp_path), FakeEncoder(), folder)
