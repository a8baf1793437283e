"""Image files of every kind -> upright RGB pictures, or the reason why there is none."""

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
MAX_RATIO = 200  # of the sides: making the shorter one as long as a model needs it makes the longer one huge
# Formats that are pixels. Left out are those that run programs (EPS) or need others to be read. HEIF and JXL are read
# where a package that registers them is loaded.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000", "HEIF", "JXL",
    "PPM", "DIB", "ICO", "PCX", "PSD", "QOI", "SGI", "DDS", "TGA",
)  # fmt: skip
_OUR_OWN_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # says nothing about the file
_WHITE_IS_ZERO = 0  # of the tag PhotometricInterpretation
_TAG_BITS, _TAG_PHOTOMETRIC = 258, 262

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs about a broken file comes back as the reason


class UnreadableImage(ValueError):  # noqa: N818 - it says something about the file; nothing has failed
    """An image that cannot be decoded; `reason` is short and the same on every machine."""

    @property
    def reason(self) -> str:
        """Why: no path, and nothing that differs between two files with the same fault."""
        return str(self)


def decode_image(content: str | bytes) -> Image.Image:
    """Decode an image: RGB, upright, the first frame of several.

    The content decides what it is, not the file's name. EXIF orientation is applied (one that cannot be read is not).
    What is transparent shows white. 16-bit and 12-bit greyscale is scaled to 8 bits. CMYK becomes RGB by the usual
    formula, CMYK of a JPEG file as Adobe writes it (inverted); colour profiles are not applied. A file that is cut
    short is refused; damage inside a JPEG file that its decoder passes over cannot be seen here.

    Args:
        content: the path of a file, or the bytes of one.

    Returns:
        The picture, in mode "RGB".

    Raises:
        UnreadableImage: there is no picture in it: no file, not to be opened, empty, no image (or one
            without pixels), truncated, corrupt, more than `MAX_PIXELS` pixels, one side more than `MAX_RATIO` times the
            other, or greyscale whose range is not known.
    """
    try:
        with warnings.catch_warnings(), _opened(content) as file:
            warnings.simplefilter("ignore")  # Pillow's, about large or slightly damaged files
            image = Image.open(file, formats=_formats())
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"more than {MAX_PIXELS} pixels")
            if max(image.size) > MAX_RATIO * min(image.size):
                raise UnreadableImage(f"one side more than {MAX_RATIO} times the other")
            image.load()
            with suppress(Exception):  # EXIF that cannot be read: the picture stays as it is stored
                ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises about twenty kinds for damaged files
        raise UnreadableImage(_reason(error)) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _opened(content: str | bytes) -> io.BytesIO | io.BufferedReader:
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
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _OUR_OWN_TROUBLE:
            raise error
        return os.strerror(error.errno).lower()
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return f"more than {MAX_PIXELS} pixels"
    return "truncated" if "truncated" in str(error).lower() else "corrupt"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits: Pillow's own conversion would clip it."""
    if image.mode == "F" or (image.mode == "I" and image.format not in {"PNG", "PPM"}):  # these hold 16 bits in an "I"
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
