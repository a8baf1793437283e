"""Hugging Face datasets as files and folders."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset


def save_dataset(dataset: Dataset, path: Path) -> Path:
    """Write a dataset as a .parquet or .arrow file, or by save_to_disk; return ``path``."""
    if path.suffix == ".parquet":
        dataset.to_parquet(path)
    elif path.suffix == ".arrow":
        dataset.save_to_disk(path.with_suffix(".saved"))
        (path.with_suffix(".saved") / "data-00000-of-00001.arrow").rename(path)
    else:
        dataset.save_to_disk(path)
    return path
