"""Checks before a run resumes: the written shards must match the images that the source lists now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from monoloss.data.images.source import ImageSource, Label, SourceImage
from monoloss.data.store.format import ShardLines, open_tensors, shard_names
from monoloss.data.store.writer import written_shards
from monoloss.errors import InputError


class _Row(NamedTuple):
    """The listing of an image, without its position."""

    id: str
    path: str | None
    label: Label


def recorded_source(folder: Path, image_root: str | None) -> str | None:
    """Return the source that the written shards in `folder` record if their image root is `image_root`, else None.

    So a run may resume with another spelling of the folder of images: relative, absolute, or with the split in it.
    """
    written = written_shards(folder)
    if image_root is None or not written:
        return None
    header, _ = open_tensors(folder / shard_names(written[0])[0], written[0])
    return header.source if header.image_root == image_root else None


def check_shard(folder: Path, index: int, source: ImageSource, start: int, stop: int) -> None:
    """Raise `InputError` unless shard `index` was made from the images that the source lists from `start` to `stop`.

    Ids, paths and labels are compared, and the paths of skipped files; contents are not. Where listing would read the
    images themselves (a dataset), only the first and the last image of the shard are compared.
    """
    first = list(source.images(start, start + 1))
    if first and isinstance(first[0].content, bytes) and stop - start > 1:
        images = [*first, *source.images(stop - 1, stop)]
    else:
        images = list(source.images(start, stop))
    check_listing(folder, index, images, source, stop - start)


def check_listing(
    folder: Path, index: int, images: Sequence[SourceImage], source: ImageSource, n_images: int | None = None
) -> None:
    """Raise `InputError` unless shard `index` was made from these images.

    Args:
        folder: the folder of the store.
        index: the index of the shard.
        images: images that the source lists for the shard: all, or some of them.
        source: the source, which an error names.
        n_images: how many images the source lists for the shard; by default the number of `images`.
    """
    tensor_name, line_name = shard_names(index)
    header, tensors = open_tensors(folder / tensor_name, index)
    lines = ShardLines.read(folder / line_name, header.lines_sha256)
    rows_per_image = 1 if header.patch_grid is None else header.patch_grid[0] * header.patch_grid[1]
    labels = _labels(tensors, header.labels, len(lines.ids), rows_per_image)
    skipped = {file.position: file.path for file in lines.skipped}
    n_stored, n_images = len(lines.ids) + len(skipped), len(images) if n_images is None else n_images
    origin = f"as in {folder / line_name}: a store is resumed with the images that it was begun with"
    if n_images != n_stored:
        raise InputError(source.description, f"{n_images} images for shard {index}", f"{n_stored}, {origin}")
    start = index * header.rows_per_shard
    positions = [position for position in range(start, start + n_stored) if position not in skipped]
    row_at = dict(zip(positions, map(_Row, lines.ids, lines.paths, labels), strict=True))
    for image in images:
        row = row_at.get(image.position)
        got: object = image.id if image.path is None else image.path
        expected: object = skipped.get(image.position)
        if row is not None:
            label = tuple(sorted(set(image.label))) if isinstance(image.label, tuple) else image.label
            got, expected = _Row(image.id, image.path, label), row
            if got.id != row.id:
                got, expected = got.id, row.id
        if got != expected:
            raise InputError(source.description, f"{got!r} at position {image.position}", f"{expected!r}, {origin}")


def _labels(tensors: dict[str, Tensor], kind: str | None, n_images: int, rows_per_image: int) -> list[Label]:
    """Return the label of each image from the tensors of its shard."""
    if kind is None:
        return [None] * n_images
    if kind == "single":
        return list(tensors["labels"][::rows_per_image].tolist())
    offsets, values = tensors["label_offsets"].tolist(), tensors["label_values"].tolist()
    return [tuple(values[offsets[i] : offsets[i + 1]]) for i in range(0, n_images * rows_per_image, rows_per_image)]
