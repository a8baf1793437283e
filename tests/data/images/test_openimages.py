"""OpenImages: the official CSV files and a folder of images, written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from monoloss.data.images import open_images
from support.image_files import write
from support.image_sources import PIXEL, refused

CLASSES = 'LabelName,DisplayName\n/m/03,Person\n/m/01,"Dog, small"\n/g/02,Bass\n/m/04,Bass\n'
LABELS = """ImageID,Source,LabelName,Confidence
b2,verification,/m/01,1
a1,verification,/m/03,1
a1,verification,/m/01,0
b2,crowdsource-verification,/m/01,1
elsewhere,verification,/m/99,1
b2,verification,/m/03,1.0
c3,verification,/m/04,0
b2,machine,/m/04,0.9
"""
BOXES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded
a1,xclick,/m/03,1,0,1,0,1,0
a1,xclick,/m/03,1,0.5,1,0,1,0
c3,xclick,/g/02,1,0,1,0,1,0
a1,xclick,/m/04,1,0,1,0,1,0
"""


def folder(root: Path, classes: str = CLASSES, labels: str = LABELS, names: Sequence[str] = ("b2", "c3", "a1")) -> str:
    for name in names:
        write(root / "train" / f"{name}.jpg", PIXEL)
    write(root / "oidv7-class-descriptions.csv", classes.encode())
    write(root / "oidv7-train-annotations-human-imagelabels.csv", labels.encode())
    return f"openimages:{root}"


def test_each_image_once_with_its_positive_labels(tmp_path: Path) -> None:
    source = open_images(folder(tmp_path), split="train")
    assert (source.labels, source.n_images, source.image_root) == ("multi", 3, str(tmp_path / "train"))
    assert source.class_names == ["Person", "Dog, small", "Bass (/g/02)", "Bass (/m/04)"]
    images = list(source.images())
    assert [(image.id, image.label) for image in images] == [("a1.jpg", (0,)), ("b2.jpg", (0, 1)), ("c3.jpg", ())]
    assert list(source.images(1, 2)) == images[1:2]


def test_boxes_likewise(tmp_path: Path) -> None:
    spec = folder(tmp_path)
    boxes = write(tmp_path / "train-annotations-bbox.csv", BOXES.encode())
    source = open_images(spec, split="train", labels_path=str(boxes))
    assert [image.label for image in source.images()] == [(0, 3), (), (2,)]
    (tmp_path / "oidv7-train-annotations-human-imagelabels.csv").unlink()
    assert [image.label for image in open_images(spec, split="train").images()] == [(0, 3), (), (2,)]


def test_older_files_windows_ends_and_folders_in_any_depth(tmp_path: Path) -> None:
    for name in ("a/a1.jpg", "b/b2.png"):
        write(tmp_path / "images" / name, PIXEL)
    older = CLASSES.partition("\n")[2].replace("\n", "\r\n")
    classes = write(tmp_path / "names.csv", b"\xef\xbb\xbf" + older.encode())
    labels = write(tmp_path / "labels.csv", ("\ufeff" + LABELS.replace("\n", "\r\n")).encode())
    options = {"labels_path": str(labels), "classes_path": str(classes)}
    source = open_images(f"openimages:{tmp_path}/images", **options)
    assert [(image.id, image.label) for image in source.images()] == [("a/a1.jpg", (0,)), ("b/b2.png", (0, 1))]


def test_val_and_validation_are_one(tmp_path: Path) -> None:
    spec = folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "validation")
    for name in ("oidv7-val", "validation"):
        write(tmp_path / f"{name}-annotations-human-imagelabels.csv", LABELS.encode())
        assert open_images(spec, split="validation").n_images == 3
        (tmp_path / f"{name}-annotations-human-imagelabels.csv").unlink()


def test_columns_in_another_order(tmp_path: Path) -> None:
    turned = "".join(",".join(line.split(",")[::-1]) + "\n" for line in LABELS.splitlines())
    source = open_images(folder(tmp_path, labels=turned), split="train")
    assert [image.label for image in source.images()] == [(0,), (0, 1), ()]


def test_as_a_slow_count_says(tmp_path: Path) -> None:
    names = [f"{i:03}" for i in range(40)]
    classes = "".join(f"/m/{i:02},c{i}\n" for i in range(13))
    rows = [(i * 7 % 45, i * i % 13, int(i % 3 > 0)) for i in range(400)]
    labels = "ImageID,Source,LabelName,Confidence\n" + "".join(f"{i:03},x,/m/{c:02},{p}\n" for i, c, p in rows)
    source = open_images(folder(tmp_path, classes, labels, names), split="train")
    for image in source.images():
        expected = {c for i, c, p in rows if p and f"{i:03}.jpg" == image.id}
        assert image.label == tuple(sorted(expected))


@pytest.mark.door
@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (
            CLASSES,
            "ImageID,Source,Label\n",
            "imagelabels.csv: got the columns ImageID, Source, Label; expected ImageID, La",
        ),
        (CLASSES, "", "imagelabels.csv: got the columns (none); expected ImageID, LabelName, Confidence"),
        (CLASSES, LABELS + "a1,x\n", "got line 10: a1, x; expected ImageID, LabelName, Confidence in each row"),
        (CLASSES, LABELS + "a1,x,/m/01,yes\n", "got line 10: a1, x, /m/01, yes; expected"),
        (CLASSES, LABELS + "\n", "got an empty line 10; expected"),
        (CLASSES, LABELS + "a1,x,/m/77,1\n", "got the class '/m/77' (line 10); expected classes that"),
        (
            CLASSES,
            LABELS.partition("\n")[0] + "\nz,x,/m/01,1\n",
            "got rows of no image in the folder; expected the labels",
        ),
        (LABELS, LABELS, "class-descriptions.csv: got 4 columns on line 1; expected MID and display name in each row"),
        ("name,mid\nPerson,/m/01\n", LABELS, "got 'name' on line 1; expected MID and display name in each row, such"),
        (CLASSES + "/m/01,Cat\n", LABELS, "got the class /m/01 twice (line 6); expected each class once"),
        ("", LABELS, "class-descriptions.csv: got a file without classes; expected MID"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, classes: str, labels: str, message: str) -> None:
    assert message in refused(folder(tmp_path, classes, labels), split="train")


@pytest.mark.door
def test_files_that_are_missing_or_no_csv(tmp_path: Path) -> None:
    spec = folder(tmp_path / "x")
    assert refused(spec, split="test").startswith("labels_path: got no such file in ")
    labels = tmp_path / "x" / "test-annotations-bbox.csv"
    write(labels, BOXES.encode())
    assert refused(spec, split="test") == f"split: got 'test'; expected one of the folders in {tmp_path}/x: train"
    assert refused(spec, split="train", classes_path="none.csv").startswith(
        "none.csv: got No such file or directory; e"
    )
    write(labels, b"\xff\xfe\x00")
    assert "got an unreadable CSV file (" in refused(spec, split="train", labels_path=str(labels))
    write(labels, LABELS.encode() + b'"' + b"x" * 200_000)
    assert "got an unreadable CSV file (field larger" in refused(spec, split="train", labels_path=str(labels))
    write(tmp_path / "x" / "class-descriptions.csv", CLASSES.encode())
    assert refused(spec, split="train").startswith(
        "classes_path: got no choice between class-descriptions.csv, oidv7-class-descriptions.csv in"
    )
    assert refused(f"openimages:{tmp_path}/none").startswith(f"{tmp_path}/none: got no such folder")


@pytest.mark.door
def test_two_files_of_one_image(tmp_path: Path) -> None:
    spec = folder(tmp_path)
    write(tmp_path / "train" / "more" / "a1.png", PIXEL)
    message = f"{tmp_path}/train: got the image a1 twice (a1.jpg, more/a1.png); expected each image once"
    assert refused(spec, split="train") == message
