"""What an evaluation found, in memory and as files: ``evaluation.json`` and ``latents.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from monoloss.errors import InputError
from monoloss.evaluation.examples import TopExamples
from monoloss.files import atomic_folder, check_new_folder, read_json, save_tensors, write_json

FORMAT_VERSION = 1
FACTS, LATENTS = "evaluation.json", "latents.safetensors"


def check_evaluation_folder(folder: str | Path) -> None:
    """Refuse a folder that an evaluation cannot be saved in: it holds something else, or cannot be made.

    Example:
        >>> check_evaluation_folder(__file__)
        Traceback (most recent call last):
        monoloss.errors.InputError: ...: got a file; needed a path for a folder
    """
    folder = Path(folder)
    if folder.is_dir() and not {file.name for file in folder.iterdir()} <= {FACTS, LATENTS}:
        raise InputError(str(folder), "a folder with other files", "a new folder, or one with an evaluation only")
    check_new_folder(folder, allow_full=True)


@dataclass(frozen=True)
class Evaluation:
    """The figures of one model on one store.

    Attributes:
        name: of the model.
        facts: what was evaluated: store and its fingerprint, encoder, number of rows, model; the command line adds the
            model's "source".
        summary: one number a measure; NaN where undefined. ``score_mean``, ``score_median`` and ``score_p90`` over
            defined latents, ``score_mean_zero_filled`` over all; ``chance``, ``lift_mean``, ``n_eff_median``, ``l0``,
            ``n_latents``, ``n_alive``; with labels ``purity_binary``, ``purity_weighted`` (means over latents with an
            active row) and ``purity_binary_by_mass``, ``purity_weighted_by_mass``; with a reconstruction ``r2``,
            ``explained_variance``, ``nmse``, ``mse``.
        latents: one column ``(m,)`` a measure: ``score``, ``lift``, ``n_eff``, ``density``; with labels
            ``purity_binary``, ``purity_weighted``, ``dominant_class`` (-1: none).
        examples: the most active rows of each latent.

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

    name: str
    facts: Mapping[str, Any]
    summary: Mapping[str, float]
    latents: Mapping[str, Tensor]
    examples: TopExamples

    def save(self, folder: str | Path) -> Path:
        """Write both files into a folder that appears whole, replacing an earlier evaluation there.

        Raises:
            InputError: the folder holds something else.
        """
        folder = Path(folder)
        check_evaluation_folder(folder)
        columns = {name: column.contiguous().cpu() for name, column in self.latents.items()}
        examples = {"example_rows": self.examples.rows.cpu(), "example_values": self.examples.values.cpu()}
        with atomic_folder(folder, replace=True) as temporary:
            content = {"name": self.name, "facts": dict(self.facts), "summary": dict(self.summary)}
            write_json(temporary / FACTS, content, format_version=FORMAT_VERSION)
            save_tensors({**columns, **examples}, temporary / LATENTS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what ``save`` wrote.

        Raises:
            InputError: a file is missing, torn or of another version; the error names it.
        """
        content = read_json(Path(folder) / FACTS, format_version=FORMAT_VERSION)
        file = Path(folder) / FACTS
        try:
            summary = {k: math.nan if v is None else float(v) for k, v in content["summary"].items()}
            name, facts = str(content["name"]), dict(content["facts"])
            file = Path(folder) / LATENTS
            columns = load_file(file)
            examples = TopExamples(columns.pop("example_rows"), columns.pop("example_values"))
            return cls(name, facts, summary, columns, examples)
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(str(file), f"an unreadable file ({error})", "the files of an evaluation") from error
