"""The feature store: a folder of embeddings, labels, ids and thumbnails of rows, in checksummed shards."""

from monoloss.data.store.store import FeatureStore, StoredBatch

__all__ = ["FeatureStore", "StoredBatch"]
