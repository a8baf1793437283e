"""Statistics of a feature store that need its manifest and labels, but none of its embeddings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from monoloss.data.store.format import MANIFEST
from monoloss.data.store.store import FeatureStore
from monoloss.functional.moments import MonoMoments
from monoloss.functional.score import chance


def mean_cosine(store: FeatureStore) -> float:
    """Return the mean cosine of all pairs of rows, from the mean unit row in the manifest; NaN for a single row.

    It is the score of a latent that is active at random.
    """
    n_rows = torch.tensor(float(store.n_rows), dtype=torch.float64)
    moments = replace(MonoMoments.zeros(store.width, 0), n=n_rows, h_sum=store.mean * n_rows)
    return float(chance(moments))


def class_counts(store: FeatureStore) -> Int64[Tensor, " c"]:
    """Return the number of rows of each class, `(n_classes,)`; a row with several labels counts for each of them."""
    counts = torch.zeros(store.n_classes, dtype=torch.int64)
    for start, stop in zip(store.shard_offsets, store.shard_offsets[1:], strict=False):
        labels = store.labels(start, stop)
        counts += labels.sum(dim=0) if store.multi_label else labels.bincount(minlength=store.n_classes)
    return counts


def bytes_on_disk(store: FeatureStore) -> int:
    """Return the size of all files of the store, in bytes."""
    shards = sum(sum(shard.n_bytes.values()) for shard in store.manifest.shards)
    return shards + (store.folder / MANIFEST).stat().st_size


def skip_reasons(store: FeatureStore) -> list[tuple[str, int]]:
    """Return each reason why source files gave no row and its number of files, the most frequent reason first."""
    return Counter(file.reason for file in store.skipped).most_common()
