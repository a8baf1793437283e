"""Image folders, sources and an encoder of a few lines for the tests of extraction."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from monoloss.data.extraction.run import extract
from monoloss.data.images.source import SourceImage
from support import bounds

WIDTH = 6
SIDE = 4
_PROJECTION = np.random.default_rng(7).normal(size=(3, WIDTH)).astype(np.float32)
# Of a row: means of 16 pixels, then sums of 3 products. About 1e-5; the next shade of a colour is 4e-3 entries away.
ROW_ERROR = float(bounds.of_sum(SIDE**2 + 3, np.abs(_PROJECTION).sum(0).max(), torch.float32))


def png(color: tuple[int, int, int]) -> bytes:
    """An image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (9, 7), color).save(file, "png")
    return file.getvalue()


def color_of(number: int) -> tuple[int, int, int]:
    return (10 + number % 200, 250 - number % 200, (37 * number) % 256)


def row_of(color: tuple[int, int, int]) -> np.ndarray:
    """What `FakeEncoder` makes of an image of one colour, in float64."""
    return (np.array(color) / 255) @ _PROJECTION.astype(np.float64)


def write_images(folder: Path, n: int = 14, n_classes: int = 3) -> list[str]:
    """Images of one colour each; gives their names in sorted order, `color_of(i)` for the i-th."""
    names = sorted(f"class {i % n_classes}/{i:03d}.png" for i in range(n))
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(color_of(number)))
    return names


def to_pixels(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture.resize((SIDE, SIDE)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class FakeEncoder:
    """Projects the mean colour; with patches, of each quarter of the image, scaled by its number.

    Args:
        patches: rows of patches.
        on_call: what to do with the rows of the call of a number, from 0.
        metadata: instead of its own.
    """

    def __init__(
        self,
        *,
        patches: bool = False,
        on_call: Callable[[int, Tensor], Tensor] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.width = WIDTH
        self.patch_grid = (2, 2) if patches else None
        self.metadata = metadata or {
            "name": "fake",
            "weights": {"random": 0},
            "preprocessing": {"input_size": [3, 4, 4]},
        }
        self.device = torch.device("cpu")
        self.transform = to_pixels
        self.calls = 0
        self._on_call = on_call

    def __call__(self, images: Tensor) -> Tensor:
        # each image by itself, so that its row has the same bits in every batch
        rows = torch.stack([image.mean(dim=(1, 2)) @ torch.from_numpy(_PROJECTION) for image in images])
        if self.patch_grid is not None:
            rows = rows[:, None] * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
        if self._on_call is not None:
            rows = self._on_call(self.calls, rows)
        self.calls += 1
        return rows


class ListSource:
    """Images in memory: of known number, or a stream."""

    def __init__(
        self,
        n: int,
        *,
        stream: bool = False,
        labels: Literal["single", "multi"] | None = None,
        contents: dict[int, bytes] | None = None,
        prefix: str = "row ",
    ) -> None:
        self.description = "list"
        self.image_root = None
        self.labels = labels
        self.class_names = ["a", "b", "c"] if labels else None
        self.n_images = None if stream else n
        self._n, self._contents, self._prefix = n, contents or {}, prefix

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SourceImage]:
        for number in range(start, self._n if stop is None else min(stop, self._n)):
            label: Any = {"single": number % 3, "multi": tuple(range(number % 3)), None: None}[self.labels]
            content = self._contents.get(number) or png(color_of(number))
            yield SourceImage(number, f"{self._prefix}{number}", None, label, content)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def silent(*args: Any, **options: Any) -> Any:
    """Call `extract` without workers and progress, with shards of 4 images and batches of 3."""
    return extract(*args, **{"workers": 0, "progress": False, "rows_per_shard": 4, "batch_size": 3, **options})
