"""Embeddings on disk: feature stores, and the functions that write them from images, arrays and other files."""
