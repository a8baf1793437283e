"""The command ``monoloss import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monoloss.errors import InputError
from monoloss.files.atomic import check_new_folder
from monoloss.files.hub import HUB

if TYPE_CHECKING:
    from monoloss.data.store import FeatureStore

_KIND_OF = {".npz": "npz", ".npy": "npy", ".pt": "pt", ".pth": "pt", ".lmdb": "lmdb", ".mdb": "lmdb"}
_KIND_OF |= {".parquet": "dataset", ".arrow": "dataset"}
_COLUMN_FILES = (".npy", ".txt")  # endings of separate files for labels, ids or paths
_KINDS_WITH = {"embeddings": ("npz", "pt", "dataset"), "split": ("dataset",), "subset": ("dataset",)}


def import_files(  # noqa: PLR0913 - each is an option
    source: str,
    *,
    out: str,
    kind: Literal["auto", "npz", "npy", "lmdb", "pt", "dataset"] = "auto",
    embeddings: str | None = None,
    labels: str | None = None,
    ids: str | None = None,
    paths: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    dtype: Literal["float16", "bfloat16", "float32", "uint8"] | None = None,
    scale: float | None = None,
    class_names: str | None = None,
    encoder: str | None = None,
    image_root: str | None = None,
    rows_per_shard: int = 65536,
    progress: bool = True,
) -> None:
    """Convert existing embeddings to a feature store: NumPy, LMDB and PyTorch files, Hugging Face datasets.

    No code in the files is executed. The store is written whole or not at all; its contents are printed at the end.

    Args:
        source: an .npz, .npy or .pt file; an LMDB folder in the layout of the MonoLoss authors; a .parquet or .arrow
            file, a folder of such files or one of save_to_disk; or hf-hub:USER/NAME, a dataset on the Hub
        out: folder for the store: new or empty
        kind: format of the source; "auto" derives it from the name
        embeddings: key or column of the embeddings in npz, pt and datasets; by default embeddings or features
        labels: key or column of the labels, or an .npy or .txt file (one integer a line); "" leaves them out
        ids: key or column of the ids, or an .npy or .txt file; by default the paths, else row numbers
        paths: key or column of the paths relative to the image root, or an .npy or .txt file
        split: split of a dataset, if it has several
        subset: configuration of a dataset on the Hub, if it has several
        dtype: type of the stored numbers; by default that of the source, float32 for float64
        scale: step of uint8, value = scale * byte
        class_names: text file with the names of the classes 0, 1, ..., one a line
        encoder: name of the image model that made the embeddings, recorded in the store
        image_root: folder that the paths are relative to, recorded in the store
        rows_per_shard: rows of a shard; so many are in memory at a time
        progress: show a progress bar
    """
    check_new_folder(out)
    source_kind = _kind_of(source) if kind == "auto" else kind
    columns = {"labels": labels, "ids": ids, "paths": paths}
    _refuse_options(source_kind, {"embeddings": embeddings, "split": split, "subset": subset}, columns)
    from rich.console import Console

    from monoloss.commands.info import store_table
    from monoloss.files.text import read_lines

    options: dict[str, Any] = {
        "dtype": dtype,
        "scale": scale,
        "class_names": None if class_names is None else read_lines(class_names),
        "encoder": None if encoder is None else {"name": encoder, "weights": None, "preprocessing": None},
        "image_root": image_root,
        "rows_per_shard": rows_per_shard,
        "progress": progress,
        "embeddings_key": embeddings,
        "split": split,
        "subset": subset,
    }
    for name, value in columns.items():
        options[f"{name}_{'path' if _is_file(value) else 'key'}"] = value
    store = _import(source_kind, source, out, {name: value for name, value in options.items() if value is not None})
    Console().print(store_table(store))


def _kind_of(source: str) -> str:
    """Return the kind of a source from its name, of a folder from its files."""
    path = Path(source)
    if source.startswith(HUB):
        return "dataset"
    if not path.exists():
        expected = f"a file, a folder, or a name on the Hub written {HUB}USER/NAME"
        raise InputError(source, "no such file or folder", expected)
    if path.is_dir():
        return "lmdb" if (path / "data.mdb").is_file() else "dataset"
    kind = _KIND_OF.get(path.suffix.lower())
    if kind is None:
        raise InputError("kind", f"'auto' for {source}", "npz, npy, lmdb, pt or dataset: the name does not say which")
    return kind


def _refuse_options(kind: str, options: dict[str, str | None], columns: dict[str, str | None]) -> None:
    """Raise an error for options that the kind of source does not have."""
    for name, value in options.items():
        if value is not None and kind not in _KINDS_WITH[name]:
            expected = f"it for {', '.join(_KINDS_WITH[name])} only"
            raise InputError(name, f"{value!r} for a source of kind {kind}", expected)
    for name, value in columns.items():
        if value is not None and kind in {"npy", "lmdb"} and not _is_file(value):
            expected = f"an .npy or .txt file: a source of kind {kind} holds nothing but embeddings"
            raise InputError(name, repr(value), expected)


def _is_file(column: str | None) -> bool:
    """Return whether the value of a column option is a file, by its ending, rather than a key."""
    return column is not None and Path(column).suffix.lower() in _COLUMN_FILES


def _import(kind: str, source: str, out: str, options: dict[str, Any]) -> FeatureStore:
    """Call the importer of a kind ("npz", "lmdb", ...) with its options: it writes the store into the folder `out`."""
    if kind == "lmdb":
        from monoloss.data.importers.lmdb import import_lmdb

        return import_lmdb(source, out, **options)
    if kind == "pt":
        from monoloss.data.importers.torch import import_pt

        return import_pt(source, out, **options)
    if kind == "dataset":
        from monoloss.data.importers.hf_datasets import import_dataset

        return import_dataset(source, out, **options)
    from monoloss.data.importers.numpy import import_npy, import_npz

    return import_npz(source, out, **options) if kind == "npz" else import_npy(source, out, **options)
