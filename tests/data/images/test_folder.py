"""Folders of images: which rows they give, in which order, with which labels."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from monoloss.data.images import open_images
from monoloss.data.images.open import SourceImage, UnreadableImage, decode_image
from monoloss.errors import InputError
from support.image_files import broken_files, good_files, write, write_odd_folder
from support.image_sources import PIXEL, folder, refused


def test_good_ones_have_their_label_and_bad_ones_are_named(tmp_path: Path) -> None:
    pictures, reasons = write_odd_folder(tmp_path)
    assert len(reasons) >= 12
    assert len(good_files()) + len(broken_files()) == len(pictures) + len(reasons)
    source = open_images(f"imagefolder:{tmp_path}")
    seen, bad = {}, {}
    for image in source.images():
        try:
            seen[image.id] = np.asarray(decode_image(image.content))
            assert image.label == {"a": 0, "b": 1}[image.id[0]]
        except UnreadableImage as error:
            bad[image.id] = error.reason
    assert bad == reasons
    assert seen.keys() == pictures.keys()
    for name, picture in pictures.items():
        assert np.abs(seen[name].astype(int) - picture).max() <= 3, name


def test_rows_labels_and_order(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.png", "a b/1.PNG", "a/deep/er/1.jpeg", "a/z.png", "A/1.png"]
    root = folder(tmp_path / "x", *names)
    (root / "empty class").mkdir()
    write(root / "a" / "notes.txt", b"")
    write(root / "classes.csv", b"")
    source = open_images(f"imagefolder:{root}")
    assert source.description == f"imagefolder:{root}"
    assert (source.labels, source.class_names) == ("single", ["A", "a", "a b", "b", "empty class"])
    assert (source.n_images, source.image_root, source.n_other_files) == (6, str(root), 2)
    images = list(source.images())
    assert [image.id for image in images] == sorted(names)
    assert images[1] == SourceImage(1, "a b/1.PNG", "a b/1.PNG", 2, str(root / "a b/1.PNG"))
    assert [image.label for image in images] == [0, 2, 1, 1, 3, 3]
    for start in range(8):
        for stop in (None, *range(8)):
            assert list(source.images(start, stop)) == images[start:stop]


def test_as_an_independent_listing_says(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    folder(tmp_path, *{f"c{generator.integers(20)}/{generator.integers(10**6)}.jpg" for _ in range(200)})
    listed = sorted(os.path.relpath(path, tmp_path) for path in tmp_path.glob("*/*.jpg"))
    classes = sorted({name.split("/")[0] for name in listed})
    source = open_images(f"imagefolder:{tmp_path}")
    assert [(image.path, image.label) for image in source.images()] == [
        (name, classes.index(name.split("/")[0])) for name in listed
    ]


def test_splits(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", "train/a/1.png", "train/b/1.png", "val/b/2.png")
    source = open_images(f"imagefolder:{root}", split="val")
    assert [image.path for image in source.images()] == ["b/2.png"]
    assert (source.image_root, source.class_names) == (str(root / "val"), ["b"])
    everything = open_images(f"imagefolder:{root}", label_column="")
    assert ([image.label for image in everything.images()], everything.labels) == ([None] * 3, None)


@pytest.mark.door
@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "val", "docs"], "train, val"),
        (["Test", "a", "b", "training"], "Test, training"),
        (["train"], "train"),
    ],
)
def test_splits_are_no_classes(tmp_path: Path, names: list[str], splits: str) -> None:
    root = folder(tmp_path / "x", *(f"{name}/c/1.png" for name in names))
    assert refused(f"imagefolder:{root}") == f"split: got None; expected one of the splits of {root}: {splits}"
    assert open_images(f"imagefolder:{root}", split=names[0]).n_images == 1
    assert open_images(f"imagefolder:{root}", label_column="").n_images == len(names)


def test_one_class_may_be_called_test(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", "apple/1.png", "bread/1.png", "test/1.png")
    assert open_images(f"imagefolder:{root}").class_names == ["apple", "bread", "test"]


def test_without_classes(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", "1.png", "2.png")
    (root / "empty").mkdir()
    source = open_images(f"imagefolder:{root}")
    assert (source.labels, source.class_names) == (None, None)
    assert [(image.id, image.label) for image in source.images()] == [("1.png", None), ("2.png", None)]


def test_odd_names_and_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "x"
    odd = ["a/new\nline.png", "a/ü图🙂.png", "a/.png.png", "a/quote\"\\'.png", "a/ .png", "a/x.tar.png"]
    folder(root, *odd, "a/.hidden.png", ".git/1.png", "__MACOSX/a/1.png")
    raw = os.fsencode(root) + b"/a/\xff\xfe.png"
    with open(raw, "wb") as file:  # noqa: PTH123 - bytes
        file.write(PIXEL)
    source = open_images(f"imagefolder:{root}")
    names = [image.id for image in source.images()]
    assert names == sorted([*(name for name in odd if name != "a/.png.png"), "a/\udcff\udcfe.png"])
    assert source.class_names == ["a"]
    for image in source.images():
        assert decode_image(image.content).size == (24, 16)


def test_links(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", "a/1.png")
    folder(tmp_path / "elsewhere", "2.png", "deep/3.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again").symlink_to(root)
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "4.png").symlink_to(root / "a" / "1.png")
    (root / "a" / "broken.png").symlink_to(root / "nothing")
    (root / "a" / "loop.png").symlink_to(root / "a" / "loop.png")
    os.mkfifo(root / "a" / "pipe.png")
    source = open_images(f"imagefolder:{root}")
    names = ["1", "4", "broken", "loop", "pipe"]
    assert [image.id for image in source.images()] == [*(f"a/{name}.png" for name in names), "b/2.png", "b/deep/3.png"]
    bad = []
    for image in source.images():
        try:
            decode_image(image.content)
        except UnreadableImage:
            bad.append(image.id)
    assert bad == ["a/broken.png", "a/loop.png", "a/pipe.png"]


@pytest.mark.door
def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", "train/a/1.png", "val/a/1.png")
    write(root / "val" / "a.txt", b"")
    spec = f"imagefolder:{root}"
    assert refused(spec) == f"split: got None; expected one of the splits of {root}: train, val"
    assert refused(spec, split="test") == f"split: got 'test'; expected one of the folders in {root}: train, val"
    assert refused(spec, split="..").startswith("split: got '..'; expected one of the folders in")
    assert refused(f"{spec}/nothing") == f"{root}/nothing: got no such folder; expected a folder of images"
    assert refused(f"{spec}/val/a.txt") == f"{root}/val/a.txt: got a file; expected a folder of images"
    (tmp_path / "empty").mkdir()
    assert refused(f"imagefolder:{tmp_path}/empty").startswith(
        f"{tmp_path}/empty: got no image; expected image files ("
    )
    write(tmp_path / "empty" / "a" / "x.txt", b"")
    assert "got no image (1 other files); expected" in refused(f"imagefolder:{tmp_path}/empty")
    folder(tmp_path / "mixed", "a/1.png", "over\nthere.png")
    assert "mixed: got images beside class folders ('over\\nthere.png'); expected images in class f" in refused(
        f"imagefolder:{tmp_path}/mixed"
    )
    folder(tmp_path / "many", *(f"{i:03}/1.png" for i in range(30)))
    assert refused(f"imagefolder:{tmp_path}/many", split="x").endswith("007, 008, 009 and 20 more")


@pytest.mark.door
def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "x", "a/1.png", "b/1.png")
    scandir = os.scandir

    def refuse(path: os.PathLike[str]) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = f"{root}/b: got a folder that cannot be read (Permission denied); expected a readable one"
    assert refused(f"imagefolder:{root}") == message


@pytest.mark.door
def test_positions_from_0(tmp_path: Path) -> None:
    source = open_images(f"imagefolder:{folder(tmp_path, 'a/1.png')}")
    with pytest.raises(InputError, match="start: got -1"):
        next(source.images(-1))


@pytest.mark.slow
@pytest.mark.real_data
def test_tiny_imagenet(tmp_path: Path) -> None:
    archive = Path(os.environ["REAL_DATA"]) / "tiny_imagenet" / "images.tar"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
        listed = sorted(name.removeprefix("tiny_imagenet/val/") for name in tar.getnames() if "/val/" in name)
    listed = [name for name in listed if name.endswith(".JPEG")]
    source = open_images(f"imagefolder:{tmp_path}/tiny_imagenet", split="val")
    classes = sorted({name.split("/")[0] for name in listed})
    assert (source.n_images, source.class_names) == (2000, classes)
    for image, name in zip(source.images(), listed, strict=True):
        assert (image.id, image.label) == (name, classes.index(name.split("/")[0]))
        assert decode_image(image.content).size == (64, 64)
