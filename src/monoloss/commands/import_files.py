"""``monoloss import``."""

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
_FILES = (".npy", ".txt")  # a column with such a name is a file of its own
_ONLY_FOR = {"embeddings": ("npz", "pt", "dataset"), "split": ("dataset",), "subset": ("dataset",)}


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
    """Write embeddings that are there already as a feature store: NumPy, LMDB, PyTorch files, Hugging Face datasets.

    Files of others are read, never executed. A store appears whole or not at all; what is in it is printed at the end.

    Args:
        source: an .npz, .npy or .pt file; an LMDB folder in the layout of the MonoLoss authors; a .parquet or .arrow
            file, a folder of such files or one of save_to_disk; or hf-hub:USER/NAME, a dataset on the Hub
        out: folder for the store; it does not exist yet or is empty
        kind: what the source is; "auto" tells it by its name
        embeddings: key or column of the rows in npz, pt and datasets; by default embeddings or features
        labels: key or column of the labels, or an .npy or .txt file (one integer a line); "" leaves them out
        ids: key or column of the ids, or an .npy or .txt file; by default the paths, else row numbers
        paths: key or column of the paths relative to the image root, or an .npy or .txt file
        split: split of a dataset, where there are several
        subset: configuration of a dataset on the Hub, where there are several
        dtype: stored type; by default the source's own, float32 for float64
        scale: for uint8, where value = scale * byte
        class_names: text file with the names of the classes 0, 1, ..., one a line
        encoder: name of the image model that made the embeddings, for the record
        image_root: folder that the paths are relative to, for the record
        rows_per_shard: rows of a shard; as many are in memory at a time
        progress: show a progress bar
    """
    check_new_folder(out)
    kind_of_source = _kind_of(source) if kind == "auto" else kind
    columns = {"labels": labels, "ids": ids, "paths": paths}
    _refuse_options(kind_of_source, {"embeddings": embeddings, "split": split, "subset": subset}, columns)
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
    given = {name: value for name, value in options.items() if value is not None}
    store = _import(kind_of_source, source, out, given)
    Console().print(store_table(store))


def _kind_of(source: str) -> str:
    """The kind of a source by its name, or for a folder by what is in it."""
    place = Path(source)
    if source.startswith(HUB):
        return "dataset"
    if not place.exists():
        raise InputError(
            source, "no such file or folder", f"a file, a folder, or a name on the Hub written {HUB}USER/NAME"
        )
    if place.is_dir():
        return "lmdb" if (place / "data.mdb").is_file() else "dataset"
    kind = _KIND_OF.get(place.suffix.lower())
    if kind is None:
        raise InputError("kind", f"'auto' for {source}", "npz, npy, lmdb, pt or dataset: its name does not tell")
    return kind


def _refuse_options(kind: str, options: dict[str, str | None], columns: dict[str, str | None]) -> None:
    """Refuse options that mean nothing for a kind of source."""
    for name, value in options.items():
        if value is not None and kind not in _ONLY_FOR[name]:
            raise InputError(
                name, f"{value!r} for a source of kind {kind}", f"it for {', '.join(_ONLY_FOR[name])} only"
            )
    for name, value in columns.items():
        if value is not None and kind in {"npy", "lmdb"} and not _is_file(value):
            expected = f"an .npy or .txt file: a source of kind {kind} holds nothing but embeddings"
            raise InputError(name, repr(value), expected)


def _is_file(column: str | None) -> bool:
    return column is not None and Path(column).suffix.lower() in _FILES


def _import(kind: str, source: str, out: str, options: dict[str, Any]) -> FeatureStore:
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
