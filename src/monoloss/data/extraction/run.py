"""Extraction of a feature store from images: resumable at any moment, by one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, runtime_checkable

import torch
from torch import Tensor

from monoloss.checks import check_number
from monoloss.data.extraction.batches import (
    ImagePreparation,
    ShardBatches,
    default_workers,
    prepared_batches,
)
from monoloss.data.extraction.encoding import encoded_batches
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

IMAGES_PER_SHARD = 4096  # of the default, at most; a killed run loses up to a shard
_BYTES_PER_SHARD = 2**28  # of the default, at most: float32 rows and thumbnails, held in memory


@runtime_checkable
class EmbeddingModel(Protocol):
    """An image model with its preprocessing, as `load_encoder` makes it."""

    width: int  # number of entries of a row
    patch_grid: tuple[int, int] | None  # (height, width) in patches if each patch has a row; else None
    metadata: dict[str, Any]  # `name`, `weights` and `preprocessing`, which the store records
    transform: Callable[[Any], Tensor]  # from a PIL image to `(3, h, w)`; it can be pickled
    device: torch.device  # of the model

    def __call__(self, images: Tensor) -> Tensor:
        """Return rows `(n, width)`, or `(n, patches, width)`, for images `(n, 3, h, w)`."""


class ExtractOptions(TypedDict, total=False):
    """Keyword arguments of `extract`, documented there."""

    dtype: str
    scale: float | None
    thumbnails: int | None
    batch_size: int
    workers: int | None
    rows_per_shard: int | None
    origin: str | None
    progress: bool


class Extraction:
    """A run that writes the embeddings of a source of images as a store, with the arguments and errors of `extract`.

    Attributes:
        timing: images and seconds of `run` in this process.
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
        self._metadata: dict[str, Any] = {  # recorded by the store and by each shard
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
        """Write the missing shards and the manifest, and return the opened store."""
        with joined_ranks() as ranks, ExitStack() as locks:
            ranks.check_same({**self._metadata, **self._shape_metadata, "n_images": self.source.n_images})
            if (recorded := recorded_source(self.folder, self.source.image_root)) is not None:
                self._metadata["source"] = recorded
            report = ExtractionReport(show=self._show and ranks.rank == 0)
            if (self.folder / MANIFEST).exists():
                return self._finished(report)
            writer = self._open_writer(ranks, report, locks)
            batches = self._batches(writer, ranks)
            self._write(writer, batches, ranks, report)
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
        """Open the finished store and tell `report`; `InputError` if its metadata or images are not this run's."""
        store = FeatureStore(self.folder)
        metadata = {**self._metadata, **self._shape_metadata}
        check_metadata(self.folder / MANIFEST, "a finished store", store.manifest, metadata)
        n_images = store.n_images + store.manifest.n_skipped
        if self.source.n_images is not None:
            if self.source.n_images != n_images:
                expected = f"{n_images}, as in {self.folder}, which is finished"
                raise InputError(self.source.description, f"{self.source.n_images} images", expected)
            self._check_shards(range(len(store.manifest.shards)))
        report.say(f"{self.folder} is finished already: {store.n_images:,} images")
        return store

    def _open_writer(self, ranks: Ranks, report: ExtractionReport, locks: ExitStack) -> FeatureStoreWriter:
        """Check the disk space and the written shards in all processes, then return a writer of the missing shards.

        The first process locks the folder for all of them, until ``locks`` is closed.
        """
        written = written_shards(self.folder)
        if self.source.n_images is not None:
            missing = set(range(self._n_shards(self.source.n_images, written))) - set(written)
            n_missing = sum(self._n_images_of(shard) for shard in missing)
            estimate = check_disk(self.folder, n_missing, len(missing), self._bytes_each)
        else:
            estimate = check_disk(self.folder, None, 0, self._bytes_each)
        rows = "a row" if self._grid is None else f"{self._grid.n_patches} rows"
        report.say(f"{estimate}; {rows} of {self.encoder.width} x {self._metadata['dtype']} an image")
        writer = FeatureStoreWriter(self.folder, **self._metadata, resume=True)
        if ranks.rank == 0:
            locks.enter_context(only_one(self.folder, "extracting"))
            remove_temporaries(self.folder)
        ranks.wait()  # no process writes before the first has cleaned up
        if writer.first is not None:
            shard_file = self.folder / shard_names(writer.first.index)[0]
            check_metadata(shard_file, "a shard", writer.first, self._shape_metadata)
            if self.source.n_images is not None:
                self._check_shards(shard for shard in written if ranks.writes(shard))
            report.say(f"resuming {self.folder}: {len(written)} shards are written")
        return writer

    def _check_shards(self, shards: Iterable[int]) -> None:
        """Check that written shards match the images that the source lists now."""
        for shard in shards:
            start = shard * self._rows_per_shard
            check_shard(self.folder, shard, self.source, start, start + self._n_images_of(shard))

    def _n_images_of(self, shard: int) -> int:
        """Return how many images of a source of known length belong to a shard."""
        return min(self._rows_per_shard, (self.source.n_images or 0) - shard * self._rows_per_shard)

    def _batches(self, writer: FeatureStoreWriter, ranks: Ranks) -> ShardBatches:
        """Return the batches of the missing shards that this process writes."""
        written = frozenset(writer.written)

        def is_selected(shard: int) -> bool:
            return ranks.writes(shard) and shard not in written

        def check(shard: int, images: Any) -> None:
            if ranks.writes(shard):
                check_listing(self.folder, shard, images, self.source)

        return ShardBatches(self.source, self._rows_per_shard, self.batch_size, is_selected, check)

    def _write(self, writer: FeatureStoreWriter, batches: ShardBatches, ranks: Ranks, report: ExtractionReport) -> None:
        """Embed and write the images of this process, batch by batch."""
        preparation = ImagePreparation(self.encoder.transform, self.thumbnails, self._rows_per_shard)
        n_classes = len(self.source.class_names or ())
        shards = ShardBuilder(writer, ShardShape(self.encoder.width, self.source.labels, n_classes, self.thumbnails))
        pinned = self.encoder.device.type == "cuda"
        timing = self.timing = Timing()
        with closing(prepared_batches(batches, preparation, self.workers, pin_memory=pinned)) as prepared:
            waited = timing.waits_for(prepared)
            first = iter(list(islice(waited, 1)))  # now: worker processes start before the bar has a thread
            device = self.encoder.device
            encoded = encoded_batches(chain(first, waited), self.encoder, device, self.batch_size, timing)
            with report.bar(*self._share(writer, ranks)) as advance:
                for batch, rows in encoded:  # a batch that is encoded ahead counts for nothing yet
                    if shards.needs_writing(batch):
                        with timing.of("write_s"):
                            shards.write()
                    with timing.of("model_s"):
                        embeddings = rows()
                    timing.n_skipped += shards.add(batch, embeddings)
                    timing.n_images += batch.n_source
                    advance(batch.n_source)
                with timing.of("write_s"):
                    shards.write()

    def _share(self, writer: FeatureStoreWriter, ranks: Ranks) -> tuple[int | None, int]:
        """Return how many images this process writes in all, and how many are written; (None, 0) for a stream."""
        if self.source.n_images is None:
            return None, 0
        assigned = [shard for shard in range(self._n_shards(self.source.n_images)) if ranks.writes(shard)]
        written = [shard for shard in writer.written if ranks.writes(shard)]
        return sum(map(self._n_images_of, assigned)), sum(map(self._n_images_of, written))

    def _finish(self, writer: FeatureStoreWriter, n_images: int) -> None:
        """Write the manifest of a store of all shards of `n_images` images."""
        if n_images == 0:
            raise InputError(self.source.description, "no images", "at least one image")
        writer.finish(self._n_shards(n_images, writer.written))

    def _n_shards(self, n_images: int, written: Sequence[int] = ()) -> int:
        """Return how many shards `n_images` images fill; `InputError` if shards beyond that are among `written`."""
        n_shards = -(-n_images // self._rows_per_shard)
        if written and written[-1] >= n_shards:
            file = self.folder / shard_names(written[-1])[0]
            raise InputError(self.source.description, f"{n_images} images", f"enough to fill {file}")
        return n_shards


def extract(
    source: ImageSource, encoder: EmbeddingModel, out: str | os.PathLike[str], **options: Unpack[ExtractOptions]
) -> FeatureStore:
    """Write the embeddings of images as a store, in the order of the source.

    Images are decoded in worker processes; the encoder gets them in batches that never cross a shard. An image that
    cannot be decoded, or whose row cannot be stored, gives no row: it is listed in `store.skipped` with the reason. If
    the run is killed at any moment, the same call resumes at the first missing shard and ends with the same bytes (on
    a CPU in float32). A finished store that this call would write again is opened.

    Several processes (started by torchrun, or in a process group) write different shards to one folder, which all of
    them must see, and the first process writes the manifest; the store equals that of a single process.

    Args:
        source: the images, from `open_images`.
        encoder: the image model, from `load_encoder`. With patches, each patch of an image gives a row.
        out: the folder of the store; it does not exist yet, is empty, or was begun by the same call.
        dtype: stored type: "float32" (the default), "float16", "bfloat16" or "uint8".
        scale: for "uint8" only: value = scale * byte. Rows must lie in [0, 255 * scale], so the output of the encoder
            must not be negative.
        thumbnails: side in pixels of a square thumbnail of each image in the store; None (the default) for none.
        batch_size: number of images that the encoder gets at a time; by default 64.
        workers: number of processes that decode images, 0 to decode in this one; by default one for each processor, up
            to 8, and a quarter of that where the model runs on the CPU.
        rows_per_shard: number of images in a shard; a killed run loses at most one shard (on a GPU, and two batches).
            By default 4096, less for wide patches and large thumbnails.
        origin: the source as the store records it; by default the source's description. A run that resumes with the
            same folder of images keeps the first record.
        progress: show the estimate, a progress bar and the timing of the run (the default); needs the extra `cli`.

    Returns:
        The opened store.

    Raises:
        InputError: an argument is out of its range; the store does not fit on the disk; or the folder holds other
            files, was begun with another encoder, preprocessing, weights, type or images, or another process writes it.

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
