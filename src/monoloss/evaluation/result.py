"""An evaluation: its record, and methods to write and read its files and to draw its charts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from monoloss.errors import InputError, needs_extra
from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.record import EvaluationRecord
from monoloss.files.atomic import atomic_folder, check_new_folder
from monoloss.files.json import read_json, write_json
from monoloss.files.tensors import save_tensors

if TYPE_CHECKING:
    from monoloss.data.store import FeatureStore
    from monoloss.evaluation.charts.latent_view import LatentView
    from monoloss.evaluation.charts.overview_view import OverviewView

FORMAT_VERSION = 1
EVALUATION_FILE, LATENTS = "evaluation.json", "latents.safetensors"
_MIDDLE, _BOTTOM = ("middle_rows", "middle_values"), ("bottom_rows", "bottom_values")
_CLASSES = ("top_classes", "top_class_counts")
PairT = TypeVar("PairT")


def check_evaluation_folder(folder: str | Path) -> None:
    """Check that an evaluation can be saved in a folder: it is new, or can be made, or holds an evaluation only."""
    folder = Path(folder)
    if folder.is_dir() and not {file.name for file in folder.iterdir()} <= {EVALUATION_FILE, LATENTS}:
        raise InputError(str(folder), "a folder with other files", "a new folder, or one with an evaluation only")
    check_new_folder(folder, allow_full=True)


@dataclass(frozen=True)
class Evaluation(EvaluationRecord):
    """The measures of one model on one store, and the rows that show what its latents stand for.

    Attributes:
        name: name of the model.
        metadata: what was evaluated: store, its folder and fingerprint, encoder, number of rows, model, and of a SAE
            its configuration and training; the command line adds the model's "source".
        summary: one number a measure; NaN where undefined. ``score_mean``, ``score_median`` and ``score_p90`` over
            defined latents, ``score_mean_zero_filled`` over all; ``chance``, ``lift_mean``, ``n_eff_median``, ``l0``,
            ``n_latents``, ``n_alive``; with labels ``purity_binary``, ``purity_weighted`` (means over latents with an
            active row) and ``purity_binary_by_mass``, ``purity_weighted_by_mass``; with a reconstruction ``r2``,
            ``explained_variance``, ``nmse``, ``mse``.
        latents: one column ``(m,)`` a measure: ``score``, ``lift``, ``n_eff``, ``density``; with labels
            ``purity_binary``, ``purity_weighted``, ``dominant_class`` (-1: none).
        examples: the most active rows of each latent, the highest first.
        middle_examples: rows around the median rank of a fixed-size sample of a latent's active rows, the highest
            first; exact where the sample is all of them.
        bottom_examples: the least active of a latent's active rows, the lowest first.
        histogram: number of active rows of each latent by activation, ``(m, 80)`` int64, in the bins between
            :func:`monoloss.functional.histogram.histogram_edges`.
        top_classes: the most frequent classes of a latent's active rows; None if purity was not measured.
        decoder_directions: decoder rows of the latents, scaled to length 1, ``(m, d_in)`` float16; None for models
            other than SAEs.

    The last five are None where an earlier version wrote the files, which then lack them.

    Example:
        >>> import tempfile, torch
        >>> from monoloss import FeatureStore, SparseAutoencoder, TopKConfig, evaluate
        >>> sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(folder + "/store", torch.randn(64, 8))
        ...     evaluation = evaluate(store, {"mine": sae})["mine"]
        ...     Evaluation.load(evaluation.save(folder + "/mine")).summary["n_latents"]
        16.0
    """

    def save(self, folder: str | Path) -> Path:
        """Write ``evaluation.json`` and ``latents.safetensors`` into a folder, both or none, and return its path.

        An earlier evaluation in the folder is replaced.

        Raises:
            InputError: the folder holds other files.
        """
        folder = Path(folder)
        check_evaluation_folder(folder)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in {**self.latents, **self._parts()}.items()}
        with atomic_folder(folder, replace=True) as temporary:
            content = {"name": self.name, "facts": dict(self.metadata), "summary": dict(self.summary)}
            write_json(temporary / EVALUATION_FILE, content, format_version=FORMAT_VERSION)
            save_tensors(tensors, temporary / LATENTS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read an evaluation from the folder that ``save`` wrote.

        Raises:
            InputError: a file is missing, torn or of another version; the error names it.
        """
        content = read_json(Path(folder) / EVALUATION_FILE, format_version=FORMAT_VERSION)
        file = Path(folder) / EVALUATION_FILE
        try:
            summary = {k: math.nan if v is None else float(v) for k, v in content["summary"].items()}
            name, metadata = str(content["name"]), dict(content["facts"])
            file = Path(folder) / LATENTS
            columns = load_file(file)
            return cls(
                name,
                metadata,
                summary,
                examples=Examples(columns.pop("example_rows"), columns.pop("example_values")),
                middle_examples=_pair(Examples, columns, *_MIDDLE),
                bottom_examples=_pair(Examples, columns, *_BOTTOM),
                histogram=columns.pop("histogram", None),
                top_classes=_pair(TopClasses, columns, *_CLASSES),
                decoder_directions=columns.pop("decoder_directions", None),
                latents=columns,  # those not popped above
            )
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(str(file), f"an unreadable file ({error})", "the files of an evaluation") from error

    def plot(self, *others: Evaluation) -> OverviewView:
        """Draw the latents' score, lift, purity and n_eff, and the trade-offs; requires the extra "report".

        A notebook shows the charts if the call is the last line of a cell; ``.save("charts.html")`` writes them.

        Args:
            others: evaluations drawn beside this one, which counts as the baseline.

        Returns:
            An object with ``_repr_html_``, ``save(path)`` and ``figures``: Plotly's, each with title and caption.

        Raises:
            MissingExtraError: Plotly is not installed.

        Example:
            >>> import tempfile, torch
            >>> from monoloss import FeatureStore, SparseAutoencoder, TopKConfig, evaluate
            >>> saes = {name: SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2)) for name in ("one", "other")}
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = FeatureStore.create(folder + "/store", torch.randn(64, 8))
            ...     evaluations = evaluate(store, saes)
            >>> evaluations["one"].plot(evaluations["other"])
            <charts of 'one', 'other': score, lift, n_eff, score-against-explained-variance, score-against-r2>
        """
        with needs_extra("report"):
            from monoloss.evaluation.charts.overview_view import OverviewView
        return OverviewView([self, *others])

    def latent(
        self,
        latent: int,
        store: FeatureStore | str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
    ) -> LatentView:
        """Show one latent: its most, middle and least activating images, activations, classes, similar latents.

        A notebook shows the view if the call is the last line of a cell; ``.save("latent.html")`` writes it.

        Args:
            latent: number of the latent, from 0.
            store: the evaluated store, or its folder: gives ids, labels and images. Without it row numbers are shown.
            images: the folder that the paths of the store's rows are relative to. By default the store's thumbnails, or
                the image root that the store names, are used; without either, ids are shown.

        Returns:
            An object with ``_repr_html_``, ``save(path)`` and ``rows``.

        Raises:
            InputError: a latent or folder that does not exist, another store, or ``images`` without a store.
            MissingExtraError: images are to be shown, and Pillow is not installed.

        Example:
            >>> import tempfile, torch
            >>> from monoloss import FeatureStore, SparseAutoencoder, TopKConfig, evaluate
            >>> sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = FeatureStore.create(folder + "/store", torch.randn(64, 8))
            ...     view = evaluate(store, {"mine": sae})["mine"].latent(3, store)
            ...     view.save(folder + "/latent-3.html").name, list(view.rows)
            ('latent-3.html', ['Most active', 'Around the median', 'Least active'])
        """
        with needs_extra("report"):
            from monoloss.evaluation.charts.latent_view import LatentView

            return LatentView(self, latent, store, images)

    def _parts(self) -> dict[str, Tensor]:
        """Return the tensors other than the columns of ``latents``, by their names in the file."""
        parts = {"example_rows": self.examples.rows, "example_values": self.examples.values}
        for names, examples in ((_MIDDLE, self.middle_examples), (_BOTTOM, self.bottom_examples)):
            if examples is not None:
                parts |= zip(names, (examples.rows, examples.values), strict=True)
        if self.top_classes is not None:
            parts |= zip(_CLASSES, (self.top_classes.classes, self.top_classes.counts), strict=True)
        if self.histogram is not None:
            parts["histogram"] = self.histogram
        if self.decoder_directions is not None:
            parts["decoder_directions"] = self.decoder_directions
        return parts


def _pair(kind: Callable[[Tensor, Tensor], PairT], columns: dict[str, Tensor], first: str, second: str) -> PairT | None:
    """Remove the tensors ``first`` and ``second`` from ``columns`` and return ``kind`` of them; None without both."""
    if first not in columns and second not in columns:
        return None
    return kind(columns.pop(first), columns.pop(second))
