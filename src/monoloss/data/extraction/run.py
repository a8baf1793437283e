"""Images x an image model -> FeatureStore: estimated first, resumable at any moment, over any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, runtime_checkable

import torch
from torch import Tensor

from monoloss.checks import check_number
from monoloss.data.extraction.batches import (
    ImagePreparation,
    PreparedBatch,
    ShardBatches,
    default_workers,
    prepared_batches,
)
from monoloss.data.extraction.progress import ExtractionReport, Timing, bytes_of_an_image, check_disk
from monoloss.data.extraction.resume import check_listing, check_shard, recorded_source
from monoloss.data.extraction.shards import ShardBuilder, ShardShape
from monoloss.data.images.source import ImageSource
from monoloss.data.store import FeatureStore
from monoloss.data.store.format import MANIFEST, check_metadata, shard_names
from monoloss.data.store.patches import PatchGrid
from monoloss.data.store.writer import FeatureStoreWriter, check_stored_type, checked_encoder, written_shards
from monoloss.distributed import Ranks, joined_ranks
from monoloss.errors import InputError
from monoloss.files.atomic import remove_temporaries
from monoloss.files.lock import only_one

IMAGES_PER_SHARD = 4096  # at most, by default: what a kill can cost
_BYTES_PER_SHARD = 2**28  # of float32 rows and thumbnails, about: what is in memory


@runtime_checkable
class EmbeddingModel(Protocol):
    """An image model with its preprocessing, as `load_encoder` makes it."""

    width: int  # of a row
    patch_grid: tuple[int, int] | None  # (height, width) of the patches, if each has a row of its own
    metadata: dict[str, Any]  # `name`, `weights` and `preprocessing`, for the record
    transform: Callable[[Any], Tensor]  # from a PIL image to `(3, h, w)`; it can be pickled
    device: torch.device  # where the model is

    def __call__(self, images: Tensor) -> Tensor:
        """Rows `(n, width)`, or `(n, patches, width)`."""


class ExtractOptions(TypedDict, total=False):
    """Keyword arguments of `extract`, which says what they mean."""

    dtype: str
    scale: float | None
    thumbnails: int | None
    batch_size: int
    workers: int | None
    rows_per_shard: int | None
    origin: str | None
    progress: bool


class Extraction:
    """A run that writes the embeddings of a source of images as a store.

    Args and errors are those of `extract`; `run` does it.

    Attributes:
        timing: where the time of `run` went, in this process.
    """

    def __init__(  # noqa: PLR0913 - each is an option
        self,
        source: ImageSource,
        encoder: EmbeddingModel,
        out: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        scale: float | None = None,
        thumbnails: int | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        rows_per_shard: int | None = None,
        origin: str | None = None,
        progress: bool = True,
    ) -> None:
        check_stored_type(dtype, scale)
        for name, value, least in (
            ("thumbnails", thumbnails, 1),
            ("workers", workers, 0),
            ("batch_size", batch_size, 1),
        ):
            if value is not None:
                check_number(name, value, at_least=least, integer=True)
        if source.labels == "multi" and source.class_names is None:
            raise InputError(source.description, "several labels an image without class names", "the class names")
        if source.n_images == 0:
            raise InputError(source.description, "no images", "at least one image")
        self.source, self.encoder, self.folder = source, encoder, Path(out)
        self.thumbnails, self.batch_size = thumbnails, batch_size
        self.workers = default_workers(encoder.device.type) if workers is None else workers
        self.timing = Timing()
        self._show = progress
        self._grid = PatchGrid.checked(encoder.patch_grid)
        n_patches = 1 if self._grid is None else self._grid.n_patches
        if rows_per_shard is None:
            bytes_each = 4 * n_patches * encoder.width + 3 * (thumbnails or 0) ** 2
            rows_per_shard = max(1, min(IMAGES_PER_SHARD, _BYTES_PER_SHARD // bytes_each))
        check_number("rows_per_shard", rows_per_shard, at_least=1, integer=True)
        self._bytes_each = bytes_of_an_image(encoder.width, n_patches, dtype, thumbnails)
        self._metadata = {  # what the store, and each shard of it, says about itself
            "source": source.description if origin is None else origin,
            "image_root": source.image_root,
            "encoder": checked_encoder(encoder.metadata),
            "dtype": dtype,
            "scale": None if scale is None else float(scale),
            "class_names": source.class_names,
            "rows_per_shard": rows_per_shard,
            "patch_grid": None if self._grid is None else list(self._grid),
        }
        self._shape_metadata = {
            "width": encoder.width,
            "labels": source.labels,
            "thumbnails": None if thumbnails is None else [thumbnails, thumbnails, 3],
        }
        self._rows_per_shard = rows_per_shard

    def run(self) -> FeatureStore:
        """Write what is missing, and open the store."""
        with joined_ranks() as ranks, ExitStack() as held:
            ranks.check_same({**self._metadata, **self._shape_metadata, "n_images": self.source.n_images})
            if (recorded := recorded_source(self.folder, self.source.image_root)) is not None:
                self._metadata["source"] = recorded
            report = ExtractionReport(show=self._show and ranks.rank == 0)
            if (self.folder / MANIFEST).exists():
                return self._finished(report)
            writer = self._open_writer(ranks, report, held)
            batches = self._batches(writer, ranks)
            self._extract(writer, batches, ranks, report)
            ranks.wait()
            if ranks.rank == 0:
                self._finish(writer, batches.n_seen)
            ranks.wait()
            report.say(str(self.timing))
            store = FeatureStore(self.folder)
            if n_skipped := store.manifest.n_skipped:
                report.say(f"{n_skipped:,} files gave no row; monoloss info {self.folder} --skipped lists them")
            return store

    def _finished(self, report: ExtractionReport) -> FeatureStore:
        """Open the store that is there already; `InputError` unless this run would write the same."""
        store = FeatureStore(self.folder)
        check_metadata(
            self.folder / MANIFEST, "a finished store", store.manifest, {**self._metadata, **self._shape_metadata}
        )
        n_images = store.n_images + store.manifest.n_skipped
        if self.source.n_images is not None:
            if self.source.n_images != n_images:
                expected = f"{n_images}, as in {self.folder}, which is finished"
                raise InputError(self.source.description, f"{self.source.n_images} images", expected)
            self._check_shards(range(len(store.manifest.shards)))
        report.say(f"{self.folder} is finished already: {store.n_images:,} images")
        return store

    def _open_writer(self, ranks: Ranks, report: ExtractionReport, held: ExitStack) -> FeatureStoreWriter:
        """Check what is there and what is to come; all processes together, nothing is written before.

        The folder is locked until the end of ``held``: by the first process, for all of them.
        """
        written = written_shards(self.folder)
        if self.source.n_images is not None:
            missing = set(range(self._n_shards(self.source.n_images, written))) - set(written)
            to_come = sum(self._n_images_of(shard) for shard in missing)
            text = check_disk(self.folder, to_come, len(missing), self._bytes_each)
        else:
            text = check_disk(self.folder, None, 0, self._bytes_each)
        rows = "a row" if self._grid is None else f"{self._grid.n_patches} rows"
        report.say(f"{text}; {rows} of {self.encoder.width} x {self._metadata['dtype']} an image")
        metadata: Mapping[str, Any] = self._metadata
        writer = FeatureStoreWriter(self.folder, **metadata, resume=True)
        if ranks.rank == 0:
            held.enter_context(only_one(self.folder, "extracting"))
            remove_temporaries(self.folder)
        ranks.wait()  # so that nobody writes before this is done
        if writer.first is not None:
            check_metadata(
                self.folder / shard_names(writer.first.index)[0], "a shard", writer.first, self._shape_metadata
            )
            if self.source.n_images is not None:
                self._check_shards(shard for shard in written if ranks.writes(shard))
            report.say(f"going on with {self.folder}: {len(written)} shards are there")
        return writer

    def _check_shards(self, shards: Iterable[int]) -> None:
        for shard in shards:
            start = shard * self._rows_per_shard
            check_shard(self.folder, shard, self.source, start, start + self._n_images_of(shard))

    def _n_images_of(self, shard: int) -> int:
        """How many images of a source of known length belong to a shard."""
        return min(self._rows_per_shard, (self.source.n_images or 0) - shard * self._rows_per_shard)

    def _batches(self, writer: FeatureStoreWriter, ranks: Ranks) -> ShardBatches:
        written = frozenset(writer.written)

        def is_wanted(shard: int) -> bool:
            return ranks.writes(shard) and shard not in written

        def check(shard: int, images: Any) -> None:
            if ranks.writes(shard):
                check_listing(self.folder, shard, images, self.source)

        return ShardBatches(self.source, self._rows_per_shard, self.batch_size, is_wanted, check)

    def _extract(
        self, writer: FeatureStoreWriter, batches: ShardBatches, ranks: Ranks, report: ExtractionReport
    ) -> None:
        """Embed and write the images of this process, batch by batch."""
        preparation = ImagePreparation(self.encoder.transform, self.thumbnails, self._rows_per_shard)
        n_classes = len(self.source.class_names or ())
        shards = ShardBuilder(writer, ShardShape(self.encoder.width, self.source.labels, n_classes, self.thumbnails))
        pinned = self.encoder.device.type == "cuda"
        timing = self.timing = Timing()
        with closing(prepared_batches(batches, preparation, self.workers, pin_memory=pinned)) as prepared:
            with timing.of("wait_s"):
                batch = next(prepared, None)  # worker processes start before the bar has a thread
            with report.bar(*self._share(writer, ranks)) as advance:
                while batch is not None:
                    if shards.needs_writing(batch):
                        with timing.of("write_s"):
                            shards.write()
                    with timing.of("model_s"):
                        embeddings = self._embed(batch)
                    timing.n_skipped += shards.add(batch, embeddings)
                    timing.n_images += batch.n_source
                    advance(batch.n_source)
                    with timing.of("wait_s"):
                        batch = next(prepared, None)
                with timing.of("write_s"):
                    shards.write()

    def _share(self, writer: FeatureStoreWriter, ranks: Ranks) -> tuple[int | None, int]:
        """How many images are this process's, and of how many of them the shards are there."""
        if self.source.n_images is None:
            return None, 0
        mine = [shard for shard in range(self._n_shards(self.source.n_images)) if ranks.writes(shard)]
        done = [shard for shard in writer.written if ranks.writes(shard)]
        return sum(map(self._n_images_of, mine)), sum(map(self._n_images_of, done))

    def _embed(self, batch: PreparedBatch) -> Tensor | None:
        if batch.pixels is None:
            return None
        try:
            return self.encoder(batch.pixels).cpu()
        except torch.OutOfMemoryError as error:
            got = f"{self.batch_size}, which does not fit into the memory of {self.encoder.device}"
            raise InputError("batch_size", got, "a smaller one") from error

    def _finish(self, writer: FeatureStoreWriter, n_images: int) -> None:
        if n_images == 0:
            raise InputError(self.source.description, "no images", "at least one image")
        writer.finish(self._n_shards(n_images, writer.written))

    def _n_shards(self, n_images: int, written: Sequence[int] = ()) -> int:
        """How many shards some images fill; `InputError` where more of them are written."""
        n_shards = -(-n_images // self._rows_per_shard)
        if written and written[-1] >= n_shards:
            file = self.folder / shard_names(written[-1])[0]
            raise InputError(self.source.description, f"{n_images} images", f"enough to fill {file}")
        return n_shards


def extract(
    source: ImageSource, encoder: EmbeddingModel, out: str | os.PathLike[str], **options: Unpack[ExtractOptions]
) -> FeatureStore:
    """Write the embeddings of images as a store, in the order of the source.

    Images are decoded in worker processes; the encoder gets them in batches that never cross a shard. A file that
    cannot be decoded, or whose row cannot be stored, gives no row: it is listed in `store.skipped` with the reason, and
    every other row keeps its label and id. Killed at any moment, the same call goes on at the first missing shard and
    ends with the same bytes (on a CPU in float32). A finished store that this call would write again is opened.

    Where torchrun has started several processes, or a process group is there, each writes its own shards (to a folder
    that all of them see) and the first one the manifest; the store is the one that a single process writes.

    Args:
        source: the images: what `open_images` gives.
        encoder: the image model: what `load_encoder` gives. With patches, the rows are the patches of the images.
        out: the store; it does not exist yet, is empty, or was begun by the same call.
        dtype: stored type: "float32" (the default), "float16", "bfloat16" or "uint8".
        scale: for "uint8" and only there: value = scale * byte. Rows must lie in [0, 255 * scale], so they come from an
            output that is never below 0.
        thumbnails: side in pixels of a square picture of each image that is kept in the store; None for none.
        batch_size: images that the encoder gets at a time; by default 64.
        workers: processes that decode images, 0 for none; by default one for each
            processor, up to 8, and fewer where the model runs on the CPU.
        rows_per_shard: images of a shard, the part that a kill costs at most; by default 4096, less for wide
            patches and large thumbnails.
        origin: what the store says about where the images came from; by default the source's description. A run that
            goes on with the same folder of images keeps what was said first.
        progress: show the estimate, a progress bar and the figures of the run (by default); needs the extra `cli`.

    Returns:
        The store, open.

    Raises:
        InputError: an argument is out of its range; the store does not fit on the disk; the folder holds something
            else, was begun with another encoder, preprocessing, weights, type or other images, or is written by another
            process.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from monoloss.data.encoders import load_encoder
        >>> from monoloss.data.images import open_images
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     for name in ("cat", "dog"):
        ...         Path(parent, "images", name).mkdir(parents=True)
        ...         Image.new("RGB", (40, 30), "red").save(Path(parent, "images", name, "1.png"))
        ...     encoder = load_encoder("resnet10t", pretrained=False, image_size=64)
        ...     source = open_images(f"imagefolder:{parent}/images")
        ...     store = extract(source, encoder, parent + "/store", workers=0, progress=False)
        ...     store.ids, store.labels().tolist(), store.width
        (['cat/1.png', 'dog/1.png'], [0, 1], 512)
    """
    return Extraction(source, encoder, out, **options).run()
