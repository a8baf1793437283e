"""Where the images of a store's rows come from, and how they fit into a square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monoloss.data.images.row_images import Pictures, fitted, pictures_of
from monoloss.data.store import FeatureStore
from monoloss.data.store.writer import FeatureStoreWriter
from monoloss.errors import InputError
from support.reports import N, grey_thumbnails, image_files, some_store


def test_pixels_stay_sharp_where_they_fill_whole_ones():
    small = np.array([[[0], [255]], [[255], [0]]], dtype=np.uint8)
    assert fitted(small, 64).shape == (64, 64, 1)
    assert set(np.unique(fitted(small, 64))) == {0, 255}
    assert fitted(small, 64)[0, 31:33, 0].tolist() == [0, 255]
    assert len(np.unique(fitted(small, 63))) > 2


def test_the_middle_square_is_shown():
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 15:25] = 200
    assert fitted(wide, 10).min() > 150
    assert fitted(wide.transpose(1, 0, 2), 10).min() > 150
    assert fitted(wide[:, :, :1], 5).shape == (5, 5, 1)


def read(pictures: Pictures | None, rows: list[int], cell: int = 8) -> list[float | None]:
    assert pictures is not None
    return [None if one is None else float(one.mean()) for one in pictures.read(torch.tensor(rows), cell)]


def test_thumbnails_come_before_the_image_root_and_a_named_folder_before_both(tmp_path):
    paths = image_files(tmp_path / "root", range(N))
    Path(tmp_path / "other" / "some").mkdir(parents=True)
    Image.new("L", (9, 9), 250).save(tmp_path / "other" / "some" / "5.png")
    root = str(tmp_path / "root")
    both = some_store(tmp_path / "both", paths=paths, image_root=root, thumbnails=255 - grey_thumbnails())
    bare = some_store(tmp_path / "bare", paths=paths, image_root=root)
    assert read(pictures_of(both), [0, 5]) == [245, 235]
    assert read(pictures_of(bare), [0, 5]) == [10, 20]
    assert read(pictures_of(both, tmp_path / "other"), [4, 5]) == [None, 250]
    (tmp_path / "root").rename(tmp_path / "gone")
    assert pictures_of(bare) is None
    assert pictures_of(some_store(tmp_path / "none")) is None


def test_patches_have_the_image_that_they_are_of(tmp_path):
    paths = image_files(tmp_path / "root", range(4))
    writer = FeatureStoreWriter(tmp_path / "store", rows_per_shard=4, patch_grid=(2, 3))
    pictures = torch.from_numpy(255 - grey_thumbnails(4))
    writer.write_shard(0, torch.rand(4, 6, 5), paths, paths=paths, thumbnails=pictures)
    writer.finish(1)
    store = FeatureStore(tmp_path / "store")
    assert read(pictures_of(store), [0, 5, 6, 23]) == [245, 245, 243, 239]
    assert read(pictures_of(store, tmp_path / "root"), [0, 5, 6, 23]) == [10, 10, 12, 16]


def test_files_that_are_gone_broken_or_outside_are_counted(tmp_path):
    paths: list[str | None] = list(image_files(tmp_path / "root", range(N)))
    (tmp_path / "root" / "some" / "1.png").write_bytes(b"no image")
    (tmp_path / "root" / "some" / "2.png").unlink()
    Image.new("L", (9, 9), 250).save(tmp_path / "secret.png")
    (tmp_path / "root" / "some" / "4.png").unlink()
    (tmp_path / "root" / "some" / "4.png").symlink_to(tmp_path / "secret.png")
    paths[3], paths[5] = "../secret.png", None
    store = some_store(tmp_path / "store", paths=paths)
    pictures = pictures_of(store, tmp_path / "root")
    assert read(pictures, [0, 1, 2, 3, 4, 5, 6]) == [10, None, None, None, None, None, 22]


@pytest.mark.door
def test_no_such_folder_of_images(tmp_path):
    store = some_store(tmp_path / "store", paths=[f"{row}.png" for row in range(N)])
    with pytest.raises(InputError, match=r"images: got .*nowhere, which is no folder"):
        pictures_of(store, tmp_path / "nowhere")
