"""Image files of every kind, good and broken, built byte by byte or by Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 16, 24


def colours() -> np.ndarray:
    """Four flat quarters, so that lossy formats keep them: (16, 24, 3)."""
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[:8, :8], picture[:8, 8:] = (200, 40, 40), (40, 200, 40)
    picture[8:, :8], picture[8:, 8:] = (40, 40, 200), (230, 230, 230)
    return picture


def encoded(picture: np.ndarray | Image.Image, kind: str = "png", **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG file from its raw, unfiltered rows; written here, without Pillow."""
    step = len(rows) // height if height else 0
    raw = b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(height))
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(values: np.ndarray, bits: int, photometric: int, order: str = "<") -> bytes:
    """An uncompressed greyscale TIFF of one strip; written here, without Pillow."""
    height, width = values.shape
    if bits == 12:
        flat = values.reshape(-1, 2).astype(int)
        packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in flat)
    else:
        packed = values.astype(order + "u2").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(order + "HI", 42, 8 + len(packed)) + packed + directory


def ramp() -> np.ndarray:
    """All of a 16-bit range: (4, 64)."""
    return np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(4, 64)


def with_orientation(picture: np.ndarray, orientation: int, kind: str = "jpeg", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, kind, exif=exif.tobytes(), **options)


def broken_files() -> dict[str, tuple[bytes, str]]:
    """What gives no picture, by file name, and why."""
    jpeg, whole = encoded(colours(), "jpeg"), encoded(colours())
    at = whole.index(b"IDAT") + 12
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"not found\n" * 20, "not an image in a known format"),
        "page.png": (b"<!DOCTYPE html><html></html>", "not an image in a known format"),
        "zeros.jpg": (bytes(1000), "not an image in a known format"),
        "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        "half.jpg": (jpeg[: len(jpeg) * 2 // 3], "truncated"),
        "end missing.jpg": (jpeg[:-2], "truncated"),
        "half progressive.jpg": (encoded(colours(), "jpeg", progressive=True)[:-40], "truncated"),
        "half.png": (whole[: at + 10], "truncated"),
        "half.gif": (encoded(colours(), "gif")[:-10], "truncated"),
        "half.bmp": (encoded(colours(), "bmp")[:-10], "truncated"),
        "half.tif": (encoded(colours(), "tiff")[:400], "truncated"),
        "half.webp": (encoded(colours(), "webp")[:-10], "corrupt"),
        "flipped.png": (whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :], "corrupt"),
        "no pixels.png": (png(0, 5, 8, 2, b""), "not an image in a known format"),
        "no pixels.ppm": (b"P6 0 4 255\n", "not an image in a known format"),
        "bomb.png": (png(20_000, 20_000, 1, 0, b""), "more than 178956970 pixels"),
        "needle.png": (encoded(np.zeros((1, 1_000_000), np.uint8)), NEEDLE),
        "upright needle.png": (encoded(np.zeros((1_000_000, 1), np.uint8)), NEEDLE),
        "float.tif": (encoded(Image.new("F", (4, 4), 0.5), "tiff"), FLOATING),
        "32 bits.tif": (encoded(Image.new("I", (4, 4), 70_000), "tiff"), FLOATING),
    }


NEEDLE = "one side more than 200 times the other"
FLOATING = "greyscale whose range is not known (32-bit, signed or floating-point)"


def good_files() -> dict[str, tuple[bytes, np.ndarray]]:
    """What gives a picture, by file name, and which; lossy ones within a few steps."""
    picture, grey = colours(), colours().max(axis=2)
    rgba = np.dstack([picture, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rgba[:8, 8:, 3] = 0
    rgba[8:, :8, 3] = 128
    on_white = picture.copy()
    on_white[:8, 8:] = 255
    on_white[8:, :8] = np.round((picture[8:, :8] * 128.0 + 255.0 * 127) / 255)
    of_grey = np.dstack([grey] * 3)
    seen = of_grey.copy()
    seen[:8, 8:] = 255
    palette = Image.fromarray(picture).quantize(4)
    green = int(np.asarray(palette)[0, -1])
    alphas = bytes(0 if i == green else 255 for i in range(4))
    hole = picture.copy()
    hole[:8, 8:] = 255
    la = np.dstack([grey, rgba[..., 3]])
    la[8:, :8, 1] = 255
    scaled = np.dstack([np.arange(256).reshape(4, 64).astype(np.uint8)] * 3)
    cmyk = np.dstack([255 - picture, np.zeros((HEIGHT, WIDTH), np.uint8)])
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - picture)]}
    twelve = (np.arange(256) * 4095 // 255).reshape(4, 64).astype(np.uint16)
    return {
        "plain.jpg": (encoded(picture, "jpeg", quality=95, subsampling=0), picture),
        "plain.png": (encoded(picture), picture),
        "jpeg named.png": (encoded(picture, "jpeg", quality=95, subsampling=0), picture),
        "grey.jpg": (encoded(grey, "jpeg", quality=95), of_grey),
        "grey.png": (encoded(grey), of_grey),
        "black and white.png": (encoded(Image.fromarray(grey > 210)), np.dstack([(grey > 210) * np.uint8(255)] * 3)),
        "adobe cmyk.jpg": (encoded(Image.fromarray(cmyk, "CMYK"), "jpeg", quality=98), picture),
        "cmyk.tif": (encoded(Image.fromarray(cmyk, "CMYK"), "tiff"), picture),
        "palette.png": (encoded(palette), picture),
        "palette with a hole.png": (encoded(palette, transparency=green), hole),
        "palette with alpha.png": (encoded(palette, transparency=alphas), hole),
        "rgba.png": (encoded(rgba), on_white),
        "rgba.webp": (encoded(rgba, "webp", lossless=True, exact=True), on_white),
        "la.png": (encoded(la), seen),
        "key.png": (encoded(picture, transparency=(40, 200, 40)), hole),
        "16 bits.png": (png(64, 4, 16, 0, ramp().astype(">u2").tobytes()), scaled),
        "16 bits.tif": (tiff(ramp(), 16, 1), scaled),
        "16 bits big.tif": (tiff(ramp(), 16, 1, ">"), scaled),
        "16 bits white is 0.tif": (tiff(ramp(), 16, 0), 255 - scaled),
        "12 bits.tif": (tiff(twelve, 12, 1), scaled),
        "16 bits.pgm": (b"P5 64 4 65535\n" + ramp().astype(">u2").tobytes(), scaled),
        "16 bits colour.png": (png(64, 4, 16, 2, np.dstack([ramp()] * 3).astype(">u2").tobytes()), scaled),
        "moving.gif": (encoded(Image.fromarray(picture).quantize(4), "gif", **frames), picture),
        "moving.webp": (encoded(picture, "webp", lossless=True, **frames), picture),
        "pages.tif": (encoded(picture, "tiff", **frames), picture),
    }


def write_odd_folder(root: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All of them in two class folders; the pictures and the reasons by relative path."""
    pictures, reasons = {}, {}
    for i, (name, (content, picture)) in enumerate(good_files().items()):
        pictures[f"{'ab'[i % 2]}/{name}"] = picture
        write(root / "ab"[i % 2] / name, content)
    for i, (name, (content, reason)) in enumerate(broken_files().items()):
        reasons[f"{'ab'[i % 2]}/{name}"] = reason
        write(root / "ab"[i % 2] / name, content)
    return pictures, reasons


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
