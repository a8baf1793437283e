"""Embeddings on disk: feature stores, and what makes them from arrays and other people's files."""
