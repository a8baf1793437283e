"""Image folders of one small picture, and the errors of sources that cannot be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monoloss.data.images import open_images
from monoloss.errors import InputError
from support.image_files import colours, encoded, write

PIXEL = encoded(colours())


def folder(root: Path, *names: str) -> Path:
    """Write the same picture at each of the relative paths."""
    for name in names:
        write(root / name, PIXEL)
    return root


def refused(spec: str, **options: Any) -> str:
    """The error of `open_images`, which is one line."""
    with pytest.raises(InputError) as error:
        open_images(spec, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
