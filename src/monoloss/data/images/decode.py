"""Decode image files of any format to upright RGB pictures, or say why a file cannot be decoded."""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import stat
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # Pillow's own limit for what it calls a decompression bomb
MAX_RATIO = 200  # of the sides: resizing the shorter side for a model makes the longer one this many times as long
# Formats of pixels; not those that run programs (EPS). HEIF and JXL are read if a package registers them with Pillow.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000", "HEIF", "JXL",
    "PPM", "DIB", "ICO", "PCX", "PSD", "QOI", "SGI", "DDS", "TGA",
)  # fmt: skip
_MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # of this machine, not of the file
_WHITE_IS_ZERO = 0  # a value of the TIFF tag PhotometricInterpretation
_TAG_BITS, _TAG_PHOTOMETRIC = 258, 262

logging.getLogger("PIL").addHandler(logging.NullHandler())  # the reason for a broken file is raised, not logged


class UnreadableImage(ValueError):  # noqa: N818 - a property of the file, not a failure
    """An image that cannot be decoded; `reason` is short and the same on every machine."""

    @property
    def reason(self) -> str:
        """Why the image cannot be decoded, without its path: equal for all files with the same fault."""
        return str(self)


def decode_image(content: str | bytes) -> Image.Image:
    """Decode an image to an upright RGB picture; of several frames, the first.

    The format is recognised by the content, not by the file's name. EXIF orientation is applied if it can be read.
    Transparent pixels become white. 16-bit and 12-bit greyscale is scaled to 8 bits. CMYK becomes RGB by the usual
    formula, CMYK in a JPEG file as Adobe writes it (inverted); colour profiles are not applied. A truncated file is
    refused; damage inside a JPEG file that its decoder passes over is not detected.

    Args:
        content: the path of an image file, or its bytes.

    Returns:
        The picture, in mode "RGB".

    Raises:
        UnreadableImage: the file does not exist, cannot be opened, is empty, no image, an image without pixels,
            truncated or corrupt; or the image has more than `MAX_PIXELS` pixels, one side more than `MAX_RATIO` times
            the other, or greyscale of unknown range.
    """
    try:
        with warnings.catch_warnings(), _opened(content) as file:
            warnings.simplefilter("ignore")  # of Pillow, about large or slightly damaged files
            image = Image.open(file, formats=_formats())
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"more than {MAX_PIXELS} pixels")
            if max(image.size) > MAX_RATIO * min(image.size):
                raise UnreadableImage(f"one side more than {MAX_RATIO} times the other")
            image.load()
            with suppress(Exception):  # unreadable EXIF: no rotation
                ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises about twenty types for damaged files
        raise UnreadableImage(_reason(error)) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of `_FORMATS` that the installed Pillow can open."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _opened(content: str | bytes) -> io.BytesIO | io.BufferedReader:
    """Open a path, or bytes, for reading; `UnreadableImage` if it is empty or not a regular file."""
    if isinstance(content, bytes):
        if not content:
            raise UnreadableImage("empty")
        return io.BytesIO(content)
    state = Path(content).stat()
    if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
        raise UnreadableImage("not a file")
    if state.st_size == 0:
        raise UnreadableImage("empty")
    return Path(content).open("rb")


def _reason(error: Exception) -> str:
    """Return the reason for `UnreadableImage` from an error of reading or decoding; re-raise errors of this machine."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _MACHINE_ERRORS:
            raise error
        return os.strerror(error.errno).lower()
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return f"more than {MAX_PIXELS} pixels"
    return "truncated" if "truncated" in str(error).lower() else "corrupt"


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, on white where it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Convert greyscale of more than 8 bits to RGB by scaling it; Pillow's own conversion would clip it."""
    if image.mode == "F" or (
        image.mode == "I" and image.format not in {"PNG", "PPM"}
    ):  # mode "I" of these formats holds 16 bits
        raise UnreadableImage("greyscale whose range is not known (32-bit, signed or floating-point)")
    values = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})
    largest = 4095 if tags.get(_TAG_BITS) == (12,) else 65535
    grey = ((values * 255 + largest // 2) // largest).astype(np.uint8)
    if tags.get(_TAG_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")
