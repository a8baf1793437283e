"""Batches of images: none crosses a shard, and no image that fails stops the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from monoloss.data.extraction.batches import (
    ImagePreparation,
    ShardBatches,
    default_workers,
    shard_images,
    skipped_file,
    thumbnail,
)
from monoloss.data.images.source import SourceImage
from monoloss.data.store.format import SkippedFile
from monoloss.errors import InputError
from support.extraction import FakeEncoder, ListSource, color_of, silent, to_pixels


@pytest.mark.parametrize("n", [1, 4, 5, 11])
@pytest.mark.parametrize("stream", [False, True])
def test_batches_never_cross_a_shard(n: int, stream: bool) -> None:
    checked = []
    source = ListSource(n, stream=stream)
    batches = ShardBatches(source, 4, 3, lambda shard: shard != 1, lambda *args: checked.append(args))
    parts = [[image.position for image in batch] for batch in batches]
    assert [position for part in parts for position in part] == [
        position for position in range(n) if position // 4 != 1
    ]
    assert all(len({position // 4 for position in part}) == 1 and len(part) <= 3 for part in parts)
    assert batches.n_seen == n
    listed = [[image.position for image in images] for _, images in checked]
    assert listed == ([list(range(4, min(n, 8)))] if stream and n > 4 else [])


@pytest.mark.door
def test_a_source_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    source = ListSource(6)
    source.n_images = 7
    with pytest.raises(
        InputError, match="list: got 2 images at positions 4 to 6; expected 3, as at the start of the run"
    ):
        silent(source, FakeEncoder(), tmp_path / "s")


def kill_itself(_: object) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.door
def test_a_worker_that_is_killed_is_one_sentence(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    encoder.transform = kill_itself
    with pytest.raises(InputError, match="workers: got one of 1 processes that was killed; expected fewer workers"):
        silent(ListSource(3), encoder, tmp_path / "s", workers=1)


def test_what_the_transform_cannot_take_is_skipped(tmp_path: Path) -> None:
    def fussy(picture: Any) -> Tensor:
        if picture.getpixel((0, 0)) == color_of(5):
            raise ValueError("too flat")
        return to_pixels(picture)

    encoder = FakeEncoder()
    encoder.transform = fussy
    store = silent(ListSource(9), encoder, tmp_path / "s", thumbnails=2)
    assert store.skipped == [SkippedFile(5, "row 5", "cannot be prepared (ValueError)")]
    assert tuple(store.thumbnails(torch.tensor([5]))[0, 0, 0].tolist()) == color_of(6)


def test_prepared_images_and_the_reasons_of_the_others() -> None:
    images = shard_images(ListSource(7, contents={5: b"x"}), 4, 7)
    batch = ImagePreparation(to_pixels, 2, rows_per_shard=4).__getitems__(images)
    assert (batch.shard, batch.n_source) == (1, 3)
    assert [(image.position, image.content) for image in batch.images] == [(4, b""), (6, b"")]
    assert batch.pixels is not None
    assert torch.equal(batch.pixels, torch.stack([to_pixels(Image.new("RGB", (9, 7), color_of(i))) for i in (4, 6)]))
    assert batch.thumbnails is not None
    assert batch.thumbnails.shape == (2, 2, 2, 3)
    assert batch.skipped == [SkippedFile(5, "row 5", "not an image in a known format")]
    nothing = ImagePreparation(to_pixels, 2, rows_per_shard=4).__getitems__(images[1:2])
    assert (nothing.images, nothing.pixels, nothing.thumbnails, nothing.n_source) == ([], None, None, 1)


def test_a_skipped_image_has_its_path_if_there_is_one() -> None:
    image = SourceImage(3, "the id", None, None, b"")
    assert skipped_file(image, "why") == SkippedFile(3, "the id", "why")
    assert skipped_file(image._replace(path="a/b.png"), "why") == SkippedFile(3, "a/b.png", "why")


def test_a_thumbnail_is_the_middle_square() -> None:
    picture = Image.new("RGB", (60, 20), (0, 0, 0))
    picture.paste((200, 100, 50), (12, 0, 48, 20))  # wider than the square: bicubic looks beyond its sides
    assert thumbnail(picture, 5).tolist() == [[[200, 100, 50]] * 5] * 5


@pytest.mark.parametrize(("available", "cpu", "gpu"), [(1, 1, 1), (4, 1, 4), (11, 2, 8), (64, 8, 8)])
def test_workers_by_processors(monkeypatch: pytest.MonkeyPatch, available: int, cpu: int, gpu: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(available)), raising=False)
    assert (default_workers("cpu"), default_workers("cuda")) == (cpu, gpu)
