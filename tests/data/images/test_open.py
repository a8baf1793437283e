"""Descriptions of sources: their kinds, paths and options."""

from __future__ import annotations

from pathlib import Path

import pytest

from monoloss.data.images import open_images
from support.image_sources import folder, refused


def test_a_relative_path_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "x", "a/1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in ("imagefolder:x", "imagefolder:~/x", "imagefolder:x/", "imagefolder:./a/../x"):
        source = open_images(spec)
        assert (source.description, source.image_root) == (spec, str(tmp_path / "x"))
        assert Path(next(iter(source.images())).content).is_absolute()


@pytest.mark.door
@pytest.mark.parametrize("spec", ["", "x", "imagefolder:", "images:x", ":x", "/data/images"])
def test_kinds_of_sources(spec: str) -> None:
    assert refused(spec) == (
        f"images: got {spec!r}; expected imagefolder:PATH, dataset:PATH, hf-hub:USER/NAME, openimages:PATH, "
        "cifar10:PATH or cifar100:PATH"
    )


@pytest.mark.door
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "imagefolder",
            {"image_column": "x"},
            "image_column: got 'x'; expected none: it is an option of dataset and hf",
        ),
        (
            "imagefolder",
            {"label_column": "x"},
            "label_column: got 'x'; expected none, or a dataset: imagefolder has no",
        ),
        ("openimages", {"label_column": ""}, "label_column: got ''; expected none, or a dataset: openimages has no"),
        ("imagefolder", {"streaming": True}, "streaming: got True; expected none"),
        ("openimages", {"id_column": "x"}, "id_column: got 'x'; expected none"),
        ("dataset", {"subset": "x"}, "subset: got 'x'; expected none: it is an option of hf-hub"),
        ("imagefolder", {"labels_path": "x"}, "labels_path: got 'x'; expected none: it is an option of openimages"),
        ("hf-hub", {"classes_path": "x"}, "classes_path: got 'x'; expected none: it is an option of openimages"),
    ],
)
def test_options_of_other_kinds_are_refused(
    tmp_path: Path, kind: str, options: dict[str, object], message: str
) -> None:
    assert refused(f"{kind}:{folder(tmp_path, 'a/1.png')}", **options).startswith(message)


def test_an_empty_label_column_leaves_out_the_labels_of_a_folder(tmp_path: Path) -> None:
    spec = f"imagefolder:{folder(tmp_path, 'a/1.png', '2.png')}"
    source = open_images(spec, label_column="")
    assert [(image.id, image.label) for image in source.images()] == [("2.png", None), ("a/1.png", None)]
