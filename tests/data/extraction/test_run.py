"""Extraction: every row belongs to its image, whatever some of the images are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monoloss.data.extraction.run import Extraction
from monoloss.data.images import open_images
from monoloss.data.store.format import SkippedFile
from monoloss.errors import InputError
from support.extraction import ROW_ERROR, WIDTH, FakeEncoder, ListSource, color_of, png, row_of, silent, write_images


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_labels_ids_and_thumbnails_are_those_of_the_folder(tmp_path: Path, workers: int) -> None:
    names = write_images(tmp_path / "images", 14)
    source = open_images(f"imagefolder:{tmp_path / 'images'}")
    store = silent(source, FakeEncoder(), tmp_path / "s", thumbnails=5, workers=workers)
    assert store.ids == store.paths == names
    assert store.labels().tolist() == [int(name[6]) for name in names]
    assert store.class_names == ["class 0", "class 1", "class 2"]
    assert store.shard_offsets == [0, 4, 8, 12, 14]
    expected = np.array([row_of(color_of(number)) for number in range(14)])
    np.testing.assert_allclose(store.embeddings().numpy(), expected, rtol=0, atol=ROW_ERROR)
    thumbnails = store.thumbnails(torch.arange(14))
    assert thumbnails.shape == (14, 5, 5, 3)
    assert [tuple(picture[2, 2].tolist()) for picture in thumbnails] == [color_of(number) for number in range(14)]
    assert store.manifest.encoder == FakeEncoder().metadata
    assert store.manifest.source == f"imagefolder:{tmp_path / 'images'}"
    assert store.manifest.image_root == str(tmp_path / "images")
    store.verify()


def test_broken_files_are_listed_and_shift_nothing(tmp_path: Path) -> None:
    names = write_images(tmp_path / "images", 14)
    broken = {0: b"", 2: b"no image", 4: b"x", 5: b"x", 6: b"x", 7: b"x", 13: png((1, 2, 3))[:40]}
    for number, content in broken.items():
        (tmp_path / "images" / names[number]).write_bytes(content)
    source = open_images(f"imagefolder:{tmp_path / 'images'}")
    store = silent(source, FakeEncoder(), tmp_path / "s", thumbnails=2)
    good = [number for number in range(14) if number not in broken]
    assert store.ids == [names[number] for number in good]
    assert store.labels().tolist() == [int(names[number][6]) for number in good]
    np.testing.assert_allclose(store.embeddings().numpy(), [row_of(color_of(n)) for n in good], rtol=0, atol=ROW_ERROR)
    assert [(file.position, file.path) for file in store.skipped] == [(n, names[n]) for n in broken]
    assert [file.reason for file in store.skipped[:2]] == ["empty", "not an image in a known format"]
    assert store.shard_offsets == [0, 2, 2, 6, 7]  # the second shard has no row at all
    assert len(store.thumbnails(torch.arange(7))) == 7
    store.verify()


@pytest.mark.parametrize("labels", ["single", "multi", None])
def test_labels_of_every_kind(tmp_path: Path, labels: Any) -> None:
    source = ListSource(7, labels=labels, contents={3: b"x"})
    store = silent(source, FakeEncoder(), tmp_path / "s")
    kept = [0, 1, 2, 4, 5, 6]
    assert store.ids == [f"row {n}" for n in kept]
    assert store.skipped == [SkippedFile(3, "row 3", "not an image in a known format")]
    if labels == "single":
        assert store.labels().tolist() == [n % 3 for n in kept]
    elif labels == "multi":
        assert store.labels().tolist() == [[n % 3 > 0, n % 3 > 1, False] for n in kept]
    assert store.has_labels == (labels is not None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
def test_stored_types(tmp_path: Path, dtype: str) -> None:
    encoder = FakeEncoder(on_call=lambda _, rows: rows.abs())
    scale = 0.02 if dtype == "uint8" else None
    store = silent(ListSource(9), encoder, tmp_path / "s", dtype=dtype, scale=scale)
    assert (store.manifest.dtype, store.manifest.scale) == (dtype, scale)
    expected = np.abs([row_of(color_of(n)) for n in range(9)])
    atol = (0.01 if scale else 0.0) + ROW_ERROR  # half a step
    np.testing.assert_allclose(store.embeddings().numpy(), expected, rtol=1e-2, atol=atol)


@pytest.mark.door
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "uint8"}, "scale: got None; expected a number for dtype 'uint8', where value = scale"),
        ({"scale": 0.1}, "scale: got 0.1; expected None for dtype 'float32'; only 'uint8' has a scale"),
        ({"dtype": "uint8", "scale": -1.0}, "scale: got -1.0; expected a number above 0"),
        ({"dtype": "float64"}, "dtype: got 'float64'"),
        ({"batch_size": 0}, "batch_size: got 0; expected an integer at least 1"),
        ({"workers": -1}, "workers: got -1; expected an integer at least 0"),
        ({"thumbnails": 0}, "thumbnails: got 0; expected an integer at least 1"),
        ({"rows_per_shard": 0}, "rows_per_shard: got 0; expected an integer at least 1"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        silent(ListSource(3), FakeEncoder(), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.door
def test_sources_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="list: got no images; expected at least one image"):
        silent(ListSource(0), FakeEncoder(), tmp_path / "s")
    with pytest.raises(InputError, match="list: got no images; expected at least one image"):
        silent(ListSource(0, stream=True), FakeEncoder(), tmp_path / "s")
    for _ in range(2):  # as long as the folder is there
        with pytest.raises(
            InputError, match=r"s: got a store without rows \(2 files were .*jsonl.*; expected .* delete"
        ):
            silent(ListSource(2, contents={0: b"x", 1: b"x"}), FakeEncoder(), tmp_path / "s")
    source = ListSource(3, labels="multi")
    source.class_names = None
    with pytest.raises(InputError, match="list: got several labels an image without class names"):
        silent(source, FakeEncoder(), tmp_path / "t")


def test_the_shards_of_patches_are_smaller(tmp_path: Path) -> None:
    plain, patches = FakeEncoder(), FakeEncoder(patches=True)
    patches.width = plain.width = 2**18
    sizes = [Extraction(ListSource(3), each, tmp_path / "s")._rows_per_shard for each in (plain, patches)]
    assert sizes == [256, 64]
    plain.width = WIDTH
    assert Extraction(ListSource(3), plain, tmp_path / "s")._rows_per_shard == 4096


def test_the_shards_of_large_thumbnails_are_smaller(tmp_path: Path) -> None:
    def rows_per_shard(thumbnails: int | None) -> int:
        return Extraction(ListSource(3), FakeEncoder(), tmp_path / "s", thumbnails=thumbnails)._rows_per_shard

    assert [rows_per_shard(size) for size in (None, 100, 300, 20_000)] == [4096, 4096, 994, 1]
    assert rows_per_shard(300) * 3 * 300**2 <= 2**28


@pytest.mark.door
def test_two_at_once_in_one_folder(tmp_path: Path) -> None:
    refused = []

    def other_process(number: int, rows: Tensor) -> Tensor:
        if number == 0:
            with pytest.raises(InputError, match="a folder in which another process is extracting") as caught:
                silent(ListSource(6), FakeEncoder(), tmp_path / "s")
            refused.append(caught)
        return rows

    store = silent(ListSource(6), FakeEncoder(on_call=other_process), tmp_path / "s")
    assert len(refused) == 1
    assert store.n_rows == 6
