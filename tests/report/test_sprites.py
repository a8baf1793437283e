"""Sheets of images: each image in its cell, from thumbnails and from files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, features

from monoloss.data.images.row_images import Pictures, pictures_of
from monoloss.report.sprites import sheet_of, write_sheets
from support.reports import N, cell_of, image_files, some_store

EVALUATION_FILE = {"per_sheet": 256, "sheet_columns": 16, "sheet_suffix": "webp"}


def test_every_row_is_in_its_cell(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (600, 2, 2, 3), dtype=np.uint8)
    rows = torch.arange(600)[torch.randperm(600, generator=torch.Generator().manual_seed(0))][:530].sort().values
    done = []
    pictures = Pictures(lambda rows, _: list(images[rows.numpy()]))
    assert write_sheets(tmp_path / "s" / "store-0", pictures, rows, 16, done.append) == []
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "s").rename(folder / "images")
    assert sorted(file.name for file in (folder / "images" / "store-0").iterdir()) == [
        "sheet-0000.webp", "sheet-0001.webp", "sheet-0002.webp",
    ]  # fmt: skip
    assert sum(done) == 530
    for item in (0, 1, 15, 16, 255, 256, 300, 511, 512, 529):
        cell = cell_of(folder, {**EVALUATION_FILE, "cell": 16}, "store-0", item).astype(float)
        expected = images[rows[item]].astype(float).repeat(8, 0).repeat(8, 1)
        errors = [
            np.abs(cell.mean((0, 1)) - images[rows[other]].mean((0, 1))).sum() for other in range(530) if other != item
        ]
        assert np.abs(cell.mean((0, 1)) - expected.mean((0, 1))).sum() < 25, item
        assert np.median(errors) > 50
    with Image.open(folder / "images" / "store-0" / "sheet-0002.webp") as last:
        assert last.size == (256, 32)  # 18 images in two lines


def test_a_sheet_is_grey_where_there_is_no_image():
    sheet = sheet_of([None, np.full((4, 4, 1), 7, dtype=np.uint8)], 4)
    assert sheet.shape == (4, 64, 3)
    assert (sheet[:, 4:8] == 7).all()
    assert (np.delete(sheet, range(4, 8), 1) == 128).all()


def test_without_webp_sheets_are_jpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda _: False)
    pictures = Pictures(lambda rows, _: [np.full((8, 8, 3), 90, dtype=np.uint8) for _ in rows])
    write_sheets(tmp_path / "images", pictures, torch.arange(3), 8)
    with Image.open(tmp_path / "images" / "sheet-0000.jpg") as image:
        assert image.format == "JPEG"
        assert abs(np.asarray(image)[2, 2].astype(int) - 90).max() < 4


def test_an_error_in_a_thread_is_not_lost(tmp_path):
    def fail(_rows: torch.Tensor, _cell: int) -> list[None]:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_sheets(tmp_path / "images", Pictures(fail), torch.arange(600), 8)


def test_files_that_cannot_be_read_are_told(tmp_path):
    paths = image_files(tmp_path / "root", range(N))
    for row in (1, 4):
        (tmp_path / "root" / paths[row]).write_bytes(b"no image")
    pictures = pictures_of(some_store(tmp_path / "store", paths=paths), tmp_path / "root")
    assert write_sheets(tmp_path / "images", pictures, torch.arange(7), 8) == [1, 4]
