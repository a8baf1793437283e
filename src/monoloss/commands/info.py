"""The command ``monoloss info``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monoloss.errors import InputError
from monoloss.terminal import size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from monoloss.data.store import FeatureStore

_TOP = 5  # classes, reasons and skipped files in a list that is not asked for in full
_MARKS = {  # kind of a folder by a file in it
    "manifest.json": "store",
    "evaluation.json": "evaluation",
    "model.safetensors": "sae",
    "config.json": "sae",
    "config.yaml": "run",
}


def info(path: str, *, verify: bool = False, skipped: bool = False, classes: bool = False) -> None:
    """Show what is in a feature store, a saved SAE, a run or an evaluation.

    Args:
        path: folder of the store, SAE, run or evaluation
        verify: compare every file of a feature store with its recorded sha256, which reads all of it
        skipped: list every file of a feature store's source that gave no row, with the reason
        classes: list every class of a feature store, with its number of rows
    """
    folder = Path(path)
    kind = _kind_of(folder)
    flags = {"verify": verify, "skipped": skipped, "classes": classes}
    for name, is_set in flags.items():
        if is_set and kind != "store":
            raise InputError(name, f"{path}, which is no feature store", "the folder of a feature store")
    from rich.console import Console

    parts = _store_parts(folder, **flags) if kind == "store" else _describe(folder, kind)
    for part in parts:
        Console().print(part)


def store_table(store: FeatureStore) -> Table:
    """Return a table of the metadata of a feature store."""
    return metadata_table("feature store", store.folder, _store_metadata(store))


def metadata_table(title: str, folder: Path, metadata: Iterable[tuple[str, object]]) -> Table:
    """Return a table of the folder and of (name, value) pairs; pairs with the value None are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(_printable(title)), box=SIMPLE_HEAD, show_header=False, pad_edge=False, title_justify="left"
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, entry in (("folder", folder.resolve()), *metadata):
        if entry is not None:
            table.add_row(name, Text(_printable(entry)))
    return table


def _kind_of(folder: Path) -> str:
    """Return the kind of a folder, a value of `_MARKS`, from the files in it."""
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise InputError(str(folder), got, "the folder of a feature store, a SAE, a run or an evaluation")
    for mark, kind in _MARKS.items():
        if (folder / mark).is_file():
            return kind
    if any(folder.glob("shard-*")):
        return "store"  # opening it raises the error that it is unfinished
    expected = "the folder of a feature store, a SAE, a run or an evaluation"
    raise InputError(str(folder), f"a folder with none of {', '.join(_MARKS)}", expected)


def _store_parts(folder: Path, *, verify: bool, skipped: bool, classes: bool) -> list[RenderableType]:
    """Return what ``info`` prints of a feature store; the flags are its options."""
    from monoloss.data.store import FeatureStore
    from monoloss.data.store.summary import class_counts

    store = FeatureStore(folder)
    if verify:
        store.verify()
    metadata = [*_store_metadata(store), *([("verified", "every file has its sha256")] if verify else [])]
    parts: list[RenderableType] = [metadata_table("feature store", folder, metadata)]
    if classes:
        if not store.has_labels:
            raise InputError("classes", f"{folder}, a store without labels", "a store that was written with labels")
        rows = zip(_class_names(store), class_counts(store).tolist(), strict=True)
        parts.append(_list_table("classes", ("class", "rows"), rows))
    files = [(file.path, file.reason) for file in store.skipped]
    if files:
        shown = files if skipped else files[:_TOP]
        parts.append(_list_table("files without a row", ("path", "reason"), shown))
        if len(shown) < len(files):
            parts.append(_printable(f"... and {len(files) - len(shown)} more: monoloss info {folder} --skipped"))
    return parts


def _list_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Build a table for the terminal, a line for each row, with long cells folded."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _describe(folder: Path, kind: str) -> list[RenderableType]:
    """Return what ``info`` prints of a SAE, a run or an evaluation."""
    if kind == "sae":
        return [metadata_table("SAE", folder, _sae_metadata(folder))]
    return _run_parts(folder) if kind == "run" else _evaluation_parts(folder)


def _store_metadata(store: FeatureStore) -> list[tuple[str, object]]:
    """Return what ``info`` shows of a store, as names and values."""
    from monoloss.data.store.summary import bytes_on_disk, mean_cosine, skip_reasons

    manifest = store.manifest
    scale = "" if manifest.scale is None else f", value = {manifest.scale:g} * byte"
    low, high = manifest.norms
    reasons = skip_reasons(store)
    skipped = [f"{n} {reason}" for reason, n in reasons[:_TOP]] + ["..."] * (len(reasons) > _TOP)
    size = None if manifest.thumbnails is None else " x ".join(map(str, manifest.thumbnails))
    shards, grid = _plural(len(manifest.shards), "shard"), store.patch_grid
    patches = None if grid is None else f"{grid.height} x {grid.width} of each of {_plural(store.n_images, 'image')}"
    return [
        ("rows", f"{store.n_rows} in {shards} of {manifest.rows_per_shard}{' images' if grid else ''}"),
        ("patches", patches),
        ("width", store.width),
        ("stored as", manifest.dtype + scale),
        ("on disk", size_text(bytes_on_disk(store))),
        ("labels", _label_text(store)),
        ("norms", f"{low:.4g} to {high:.4g}" + ", unit rows" * store.normalised),
        ("mean cosine", f"{mean_cosine(store):.4f}, what a random latent scores" if store.n_rows > 1 else None),
        ("encoder", _encoder(manifest.encoder)),
        ("images from", manifest.source),
        ("image root", manifest.image_root),
        ("thumbnails", size),
        ("skipped files", f"{manifest.n_skipped}: {'; '.join(skipped)}" if manifest.n_skipped else None),
        ("fingerprint", store.fingerprint),
    ]


def _label_text(store: FeatureStore) -> str:
    """Describe the labels of a store: number of classes, rows of a class, names of the largest classes."""
    if not store.has_labels:
        return "none"
    from monoloss.data.store.summary import class_counts

    counts = class_counts(store)
    names = _class_names(store)
    top = counts.argsort(descending=True, stable=True)[:_TOP].tolist()
    listed = ", ".join(f"{names[number]} {int(counts[number])}" for number in top) + ", ..." * (len(names) > _TOP)
    several = ", several a row" * store.multi_label
    low, high = int(counts.min()), int(counts.max())
    rows = f"{low} rows each" if low == high else f"{low} to {high} rows each"
    return f"{_plural(store.n_classes, 'class', 'classes')}{several}, {rows}: {listed}"


def _class_names(store: FeatureStore) -> list[str]:
    return store.class_names or [str(number) for number in range(store.n_classes)]


def _sae_metadata(folder: Path) -> list[tuple[str, object]]:
    """Read a saved SAE and return what ``info`` shows of it, as names and values."""
    from monoloss.files.dataclasses import to_plain
    from monoloss.sae.model import SparseAutoencoder

    sae = SparseAutoencoder.from_pretrained(folder)  # reads and checks the whole folder
    config, provenance = to_plain(sae.config), sae.provenance
    return [
        ("kind", config.pop("variant")),
        ("width", sae.d_in),
        ("latents", config.pop("n_latents")),
        *_flat(config),
        ("parameters", sum(parameter.numel() for parameter in sae.parameters())),
        ("on disk", size_text(_folder_bytes(folder))),
        ("encoder", _encoder(provenance.encoder)),
        ("trained on store", provenance.store_fingerprint),
        *_flat(provenance.training or {}, "training."),
    ]


def _run_parts(folder: Path) -> list[RenderableType]:
    """Return the tables of a SAE training run: its settings and state, and its evaluations."""
    from monoloss.evaluation.result import Evaluation
    from monoloss.report.table import evaluation_table
    from monoloss.runs.checkpoints import checkpoints_in, step_of
    from monoloss.runs.folder import RunFolder
    from monoloss.runs.layout import EVALUATIONS
    from monoloss.training.config_files import read_config, run_to_dict
    from monoloss.training.run_folder import SAE_RUN

    run = RunFolder(folder, SAE_RUN)
    config = run_to_dict(read_config(run.config_file))
    checkpoints = checkpoints_in(run.checkpoints)
    steps = ", ".join(str(step_of(file)) for file in checkpoints)
    metadata: list[tuple[str, object]] = [
        ("state", "finished" if run.is_finished else "not finished"),
        ("checkpoints", f"after step {steps}" if steps else "none"),
        *((f"SAE {name}", _sae_line(sae)) for name, sae in config.pop("saes").items()),
        *_flat(config),
    ]
    files = sorted((run.path / EVALUATIONS).glob("*/evaluation.json"))
    evaluations = [Evaluation.load(file.parent) for file in files]
    tables = [evaluation_table({"SAEs": evaluations}, "evaluations")] if evaluations else []
    return [metadata_table("run", folder, metadata), *tables]


def _evaluation_parts(folder: Path) -> list[RenderableType]:
    """Return the table of a saved evaluation: its metadata and measures."""
    from monoloss.evaluation.result import Evaluation

    evaluation = Evaluation.load(folder)
    metadata = [*_flat(evaluation.metadata), *((name, _measure(value)) for name, value in evaluation.summary.items())]
    return [metadata_table(f"evaluation of {evaluation.name}", folder, metadata)]


def _flat(metadata: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Yield the values of nested mappings as (dotted name, value)."""
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _sae_line(training: Mapping[str, Any]) -> str:
    """Describe a SAE of a run in one line: variant, sizes, MonoLoss and learning rate."""
    sizes = {name: value for name, value in training["sae"].items() if not isinstance(value, Mapping) and value}
    mono = {name: value for name, value in training.items() if name.startswith("mono_") and value}
    kind = sizes.pop("variant")
    return ", ".join([kind, _one_line({**sizes, **(mono if "mono_weight" in mono else {}), "lr": training["lr"]})])


def _one_line(metadata: Mapping[str, Any]) -> str:
    """Return nested metadata as one line of names and values, without those that are None."""
    return ", ".join(f"{name} {value}" for name, value in _flat(metadata) if value is not None)


def _encoder(encoder: Mapping[str, Any] | None) -> str | None:
    """Describe an encoder in one line that begins with its name."""
    return None if encoder is None else _one_line(encoder).removeprefix("name ")


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _measure(value: float) -> str:
    """Return a measure as text of four digits, or "undefined" for NaN."""
    return "undefined" if math.isnan(value) else f"{value:.4g}"


def _plural(n: int, singular: str, plural: str | None = None) -> str:
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def _printable(entry: object) -> str:
    """Return text that can be printed: file names may hold bytes that are no text, which are escaped."""
    return str(entry).encode("utf-8", "backslashreplace").decode("utf-8")
