"""Image files of every kind: decoded right, or refused for the right reason."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ImageCms

from monoloss.data.images.open import UnreadableImage, decode_image
from support.image_files import (
    FLOATING,
    NEEDLE,
    WIDTH,
    broken_files,
    colours,
    encoded,
    good_files,
    with_orientation,
    write,
)

GOOD, BROKEN = good_files(), broken_files()
# Where pixel (0, 0) of the stored picture is seen, for each orientation: (right?, bottom?), and whether sides change.
SEEN = {1: (0, 0, 0), 2: (1, 0, 0), 3: (1, 1, 0), 4: (0, 1, 0), 5: (0, 0, 1), 6: (1, 0, 1), 7: (1, 1, 1), 8: (0, 1, 1)}


def pixels(content: str | bytes) -> np.ndarray:
    image = decode_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(content: str | bytes) -> str:
    with pytest.raises(UnreadableImage) as error:
        decode_image(content)
    assert error.value.reason == str(error.value)
    return error.value.reason


def close(got: np.ndarray, expected: np.ndarray, steps: int = 3) -> bool:
    return got.shape == expected.shape and np.abs(got.astype(int) - expected.astype(int)).max() <= steps


@pytest.mark.parametrize("name", GOOD)
def test_good(tmp_path: Path, name: str) -> None:
    content, picture = GOOD[name]
    steps = 3 if name.endswith("jpg") or "jpeg" in name else 1 if name == "rgba.png" else 0
    assert close(pixels(content), picture, steps)
    assert np.array_equal(pixels(str(write(tmp_path / name, content))), pixels(content))


@pytest.mark.parametrize("name", BROKEN)
def test_broken(tmp_path: Path, name: str) -> None:
    content, why = BROKEN[name]
    assert reason(content) == reason(str(write(tmp_path / name, content))) == why


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", SEEN)
def test_exif_orientation(orientation: int, kind: str) -> None:
    right, bottom, sides_change = SEEN[orientation]
    picture = colours()
    exact = {"subsampling": 0} if kind == "jpeg" else {}
    seen = pixels(with_orientation(picture, orientation, kind, **exact))
    assert (seen.shape[0] == WIDTH) == bool(sides_change)
    corner = seen[-1 if bottom else 0, -1 if right else 0]
    assert close(corner, picture[0, 0], 5)
    above_or_below = seen[0 if bottom else -1, -1 if right else 0]  # the other corner on that side
    assert close(above_or_below, picture[0, -1] if sides_change else picture[-1, 0], 5)


def test_exif_that_cannot_be_read_changes_nothing() -> None:
    whole = with_orientation(colours(), 6, quality=95, subsampling=0)
    at = whole.index(b"Exif\0\0") + 6
    for damage in (b"XX", b"II\x2a\0\xff\xff\xff\xff"):
        damaged = whole[:at] + damage + whole[at + len(damage) :]
        assert close(pixels(damaged), colours())


def test_orientation_and_depth_together() -> None:
    turned = np.zeros((2, 3), np.uint16)
    turned[0, 0] = 65535
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert pixels(encoded(turned, "png", exif=exif))[:, :, 0].tolist() == [[0, 255], [0, 0], [0, 0]]


def test_a_key_colour_of_deep_grey_is_white() -> None:
    grey = np.array([[0, 1000, 65535]], np.uint16)
    content = encoded(grey)
    at = content.index(b"IDAT") - 4
    key = bytes.fromhex("00000002 74524e53 03e8")  # tRNS, 1000
    key += zlib.crc32(key[4:]).to_bytes(4, "big")
    assert pixels(content[:at] + key + content[at:])[0, :, 0].tolist() == [0, 255, 255]


def test_lab_is_a_picture_too() -> None:
    lab = PIL.Image.fromarray(colours())
    profile = ImageCms.createProfile
    lab = ImageCms.applyTransform(lab, ImageCms.buildTransform(profile("sRGB"), profile("LAB"), "RGB", "LAB"))
    assert close(pixels(encoded(lab, "tiff")), colours(), 8)


def test_opaque_alpha_changes_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    opaque = np.dstack([noise, np.full((40, 40), 255, np.uint8)])
    assert np.array_equal(pixels(encoded(opaque)), noise)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff"])
def test_cut_anywhere_is_refused(kind: str) -> None:
    whole = encoded(colours(), kind)
    full = pixels(whole)
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        try:
            assert np.array_equal(pixels(whole[:length]), full), length  # what is missing is no pixel
            assert length >= len(whole) - 20  # the end of a PNG file: checksums and a mark
        except UnreadableImage:
            pass


@pytest.mark.parametrize("name", ["plain.jpg", "rgba.png", "moving.gif", "16 bits.tif", "rgba.webp", "12 bits.tif"])
def test_damage_anywhere_never_raises_anything_else(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    reasons = set()
    for _ in range(120):
        content = bytearray(GOOD[name][0])
        for place in generator.integers(0, len(content), 3):
            content[place] = generator.integers(256)
        try:
            decode_image(bytes(content))
        except UnreadableImage as error:
            reasons.add(error.reason)
    of_sizes = {"more than 178956970 pixels", NEEDLE}
    assert reasons <= {"corrupt", "truncated", "not an image in a known format", FLOATING} | of_sizes
    assert capfd.readouterr() == ("", "")


def test_places_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(str(tmp_path / "folder.jpg")) == reason(str(tmp_path / "pipe.jpg")) == "not a file"
    assert reason(str(tmp_path / "link.jpg")) == "no such file or directory"
    assert reason(str(tmp_path / "loop.jpg")) == "too many levels of symbolic links"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = write(tmp_path / "a.png", GOOD["plain.png"][0])

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert reason(str(path)) == os.strerror(number).lower()


def test_trouble_of_this_machine_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.png", GOOD["plain.png"][0])

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        decode_image(str(path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="asks another user; only root can")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", GOOD["plain.png"][0])
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    decode_image(GOOD["plain.png"][0])  # Pillow's parts are loaded while they can be
    os.seteuid(65534)
    try:
        assert reason(str(path)) == "permission denied"
    finally:
        os.seteuid(0)


def test_a_large_picture_without_a_warning_and_a_bomb_whatever_pillow_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoloss.data.images.decode.MAX_PIXELS", 16 * 24)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 300)  # it would warn above this, and raise above twice this
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(GOOD["plain.png"][0]), colours())
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert reason(encoded(np.zeros((25, 16), np.uint8))) == "more than 384 pixels"


def test_sides_of_200_to_1_are_the_limit() -> None:
    for longer, shorter in ((200, 1), (600, 3)):
        assert pixels(encoded(np.zeros((longer, shorter), np.uint8))).shape == (longer, shorter, 3)
        assert pixels(encoded(np.zeros((shorter, longer), np.uint8))).shape == (shorter, longer, 3)
        assert reason(encoded(np.zeros((longer + 1, shorter), np.uint8))) == NEEDLE
        assert reason(encoded(np.zeros((shorter, longer + 1), np.uint8))) == NEEDLE


def test_nothing_outside_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "check_call", refuse)
    eps = io.BytesIO()
    PIL.Image.fromarray(colours()).save(eps, "eps")
    assert reason(eps.getvalue()) == "not an image in a known format"


def test_the_reason_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("truncated")))
    assert (type(error), error.reason) == (UnreadableImage, "truncated")


def test_pillow_talks_through_its_logger_only() -> None:
    logger = logging.getLogger("PIL")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    assert (logger.level, logger.propagate) == (logging.NOTSET, True)
