"""The evaluation of models: reads every row of a store in stored order and encodes it with each model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from monoloss import terminal
from monoloss.checks import check_number, check_type
from monoloss.data.store import FeatureStore, StoredBatch
from monoloss.data.transfer import on_devices
from monoloss.errors import InputError
from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.protocol import (
    ByPosition,
    Encoder,
    SelfDescribing,
    check_models,
    device_of,
    encode_batch,
    latents_of,
    training_modes,
)
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.sums import EvaluationOptions, LatentMeasures, LatentSums
from monoloss.files.dataclasses import to_plain
from monoloss.functional.moments import unit_rows
from monoloss.functional.purity import ClassPurityResult, join_latents
from monoloss.functional.score import chance, lift, summary_of_latents
from monoloss.functional.sparsity import density, l0
from monoloss.metrics import Reconstruction
from monoloss.sae.model import SparseAutoencoder
from monoloss.version import __version__

_LATENT_SUMMARY = {  # key in the summary: attribute of the result of summary_of_latents
    "score_mean": "mean",
    "score_median": "median",
    "score_p90": "p90",
    "score_mean_zero_filled": "mean_zero_filled",
    "chance": "chance",
    "lift_mean": "lift",
    "n_eff_median": "n_eff",
    "n_latents": "n_latents",
    "n_alive": "n_defined",
}
_PURITY_SUMMARY = {  # key in the summary: attribute of ClassPurityResult
    "purity_binary": "mean_binary",
    "purity_weighted": "mean_weighted",
    "purity_binary_by_mass": "mass_weighted_binary",
    "purity_weighted_by_mass": "mass_weighted_weighted",
}


@torch.no_grad()
def evaluate(
    store: FeatureStore,
    models: dict[str, Any],
    *,
    purity: bool | None = None,
    center: Tensor | None = None,
    n_examples: int = 15,
    batch_size: int = 2048,
    latents_per_pass: int | None = None,
    progress: bool = False,
) -> dict[str, Evaluation]:
    """Evaluate models on a store: MonoScore, class purity, reconstruction, L0, and example rows of each latent.

    Each row is read once and encoded once by each model, in stored order and in ``eval()`` mode; the training modes of
    the models are restored, and no tensor of a model changes. One process reads the whole store: nothing is summed over
    ranks. Memory beyond the models: one batch, and the next one unless store and models share their memory; for each
    model with m latents and c classes ``m (d + 2 c + 16 n_examples + 80)`` numbers of 8 bytes (``latents_per_pass``
    takes the place of m).

    Args:
        store: the rows: the embeddings that the score compares, and the inputs of the models.
        models: by name, a :class:`monoloss.SparseAutoencoder`; any object with ``encode(inputs)``, and with
            ``decode(activations)`` if its reconstruction is to be measured; activations of these rows in a file,
            :class:`monoloss.StoredActivations`; or a fine-tuned model on the images of these rows,
            :class:`monoloss.ImageActivations`.
        purity: measure class purity; by default if the store has labels.
        center: mean vector ``(d,)`` subtracted from the unit embeddings, such as ``store.mean``; None as in the paper.
        n_examples: number of example rows of each latent: the most active, the least active, and those around the
            median of a sample of ``4 n_examples`` active rows (of all active rows if there are no more).
        batch_size: rows encoded at a time; the results do not depend on it.
        latents_per_pass: number of latents summed in one pass over the rows, for sums of all latents that do not fit
            into memory. Each pass encodes all rows again. The results are the same (dense activations: within
            rounding). None: all latents in one pass.
        progress: show a progress bar.

    Returns:
        An :class:`monoloss.Evaluation` for each name.

    Raises:
        InputError: a model that does not encode the store's width, or that was not calibrated; stored activations of
            another number of rows; purity without labels.

    Source:
        arXiv 2602.12403, its measures of evaluation.

    Example:
        >>> import tempfile
        >>> from monoloss import FeatureStore, SparseAutoencoder, TopKConfig
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(folder + "/store", torch.eye(8))
        ...     sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
        ...     evaluate(store, {"mine": sae})["mine"].summary["l0"]
        2.0
    """
    check_type("store", store, FeatureStore, "a FeatureStore; FeatureStore(folder) opens one")
    check_models(models, store.n_rows, store.width)
    check_number("n_examples", n_examples, at_least=1, integer=True)
    check_number("batch_size", batch_size, at_least=1, integer=True)
    if latents_per_pass is not None:
        check_number("latents_per_pass", latents_per_pass, at_least=1, integer=True)
    has_purity = store.has_labels if purity is None else purity
    if has_purity and not store.has_labels:
        raise InputError("purity", f"True for {store.folder}, which has no labels", "a store with labels")
    with _in_eval_mode(models):
        options = EvaluationOptions(has_purity, center, n_examples, latents_per_pass)
        accumulators = {name: _Accumulator(name, model, store, options) for name, model in models.items()}
        while unfinished := [accumulator for accumulator in accumulators.values() if not accumulator.is_finished]:
            devices = [accumulator.device for accumulator in unfinished]
            for batches in _batches(store, batch_size, devices, progress):
                for accumulator in unfinished:
                    accumulator.add(batches[accumulator.device])
            for accumulator in unfinished:
                accumulator.end_pass()
    return {name: accumulator.evaluation() for name, accumulator in accumulators.items()}


def _batches(
    store: FeatureStore, batch_size: int, devices: Collection[torch.device], progress: bool
) -> Iterator[Mapping[torch.device, StoredBatch]]:
    """Yield the batches of a store, each by device; with ``progress`` a progress bar counts the rows."""
    with terminal.progress("evaluating", store.n_rows, "rows", shown=progress) as advance:
        for batches in on_devices(store.batches(batch_size), devices):
            yield batches
            advance(len(next(iter(batches.values())).embeddings))


@contextmanager
def _in_eval_mode(models: dict[str, Encoder | ByPosition]) -> Iterator[None]:
    """Set all modules of the models to ``eval()`` mode; restore each module's own mode on exit."""
    modules = training_modes(models)
    try:
        for module, _ in modules:
            module.training = False
        yield
    finally:
        for module, training in modules:
            module.training = training


class _Accumulator:
    """The unfinished evaluation of one model: each pass over the store adds the measures of one block of latents."""

    def __init__(self, name: str, model: Encoder | ByPosition, store: FeatureStore, options: EvaluationOptions) -> None:
        self.name, self.model, self.store, self.options = name, model, store, options
        self.device = device_of(model, store.device)
        self.n_latents: int | None = None  # unknown before the first batch
        self.chance = torch.tensor(torch.nan)
        self.blocks: list[LatentMeasures] = []
        self.first = 0  # the first latent of this pass's block
        self.sums: LatentSums | None = None
        self.reconstruction: Reconstruction | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the blocks hold every latent."""
        return self.first == self.n_latents

    def add(self, batch: StoredBatch) -> None:
        """Encode a batch and add its activations of this pass's latents; in the first pass also its reconstruction.

        The batch, with its labels, is on ``device``.
        """
        embeddings = batch.embeddings
        activations, reconstruction, target = encode_batch(
            self.name, self.model, embeddings, batch.start, decode=self.first == 0
        )
        self.n_latents = activations.shape[1]
        stop = min(self.first + (self.options.latents_per_pass or self.n_latents), self.n_latents)
        if self.sums is None:
            self.sums = LatentSums(stop - self.first, activations.device, self.store, self.options)
        rows = embeddings if self.options.center is None else unit_rows(embeddings)
        self.sums.add(rows, latents_of(activations, self.first, stop), batch.labels)
        if reconstruction is not None:
            if self.reconstruction is None:
                self.reconstruction = Reconstruction(target.shape[1], sync_on_compute=False).to(target.device)
            self.reconstruction.update(target, reconstruction)

    def end_pass(self) -> None:
        """Store the measures of this pass's latents, and start the sums of the next block."""
        assert self.sums is not None  # noqa: S101 - a store has at least one row
        self.blocks.append(self.sums.result())
        self.chance = chance(self.sums.score.sums)
        self.first += self.sums.n_latents
        self.sums = None

    def evaluation(self) -> Evaluation:
        """Join the blocks of latents into one evaluation."""
        purities = [block.purity for block in self.blocks if block.purity is not None]
        purity = join_latents(purities) if purities else None
        top_classes = [block.top_classes for block in self.blocks if block.top_classes is not None]
        return Evaluation(
            self.name,
            self._metadata(),
            self._summary(purity),
            self._columns(purity),
            examples=Examples.join_latents([block.examples for block in self.blocks]),
            middle_examples=Examples.join_latents([block.middle_examples for block in self.blocks]),
            bottom_examples=Examples.join_latents([block.bottom_examples for block in self.blocks]),
            histogram=self._joined("histogram"),
            top_classes=TopClasses.join_latents(top_classes) if top_classes else None,
            decoder_directions=_decoder_directions(self.model),
        )

    def _joined(self, name: str) -> Tensor:
        """Concatenate one attribute of the blocks' :class:`LatentMeasures`."""
        return torch.cat([getattr(block, name) for block in self.blocks])

    def _columns(self, purity: ClassPurityResult | None) -> dict[str, Tensor]:
        """Return the measures of each latent, one column a measure."""
        scores = self._joined("score")
        columns = {
            "score": scores,
            "lift": lift(scores, self.chance),
            "n_eff": self._joined("n_eff"),
            "density": density(self._joined("counts"), self.store.n_rows),
        }
        if purity is not None:
            columns |= {"purity_binary": purity.binary, "purity_weighted": purity.weighted}
            columns["dominant_class"] = purity.dominant_class
        return columns

    def _summary(self, purity: ClassPurityResult | None) -> dict[str, float]:
        """Return the measures of the model."""
        n_rows = self.store.n_rows
        latent_summary = summary_of_latents(n_rows, self.chance, self._joined("score"), self._joined("n_eff"))
        summary = {key: float(getattr(latent_summary, name)) for key, name in _LATENT_SUMMARY.items()}
        summary["l0"] = float(l0(self._joined("counts"), n_rows))
        if purity is not None:
            summary |= {key: float(getattr(purity, name)) for key, name in _PURITY_SUMMARY.items()}
        if self.reconstruction is not None:
            quality = self.reconstruction.summary()
            summary |= {key: float(getattr(quality, key)) for key in ("r2", "explained_variance", "nmse", "mse")}
        return summary | (self.model.measures() if isinstance(self.model, SelfDescribing) else {})

    def _metadata(self) -> dict[str, Any]:
        """Return the metadata of the evaluation: versions, store, encoder, rows, model."""
        return {
            "monoloss_version": __version__,
            "store": self.store.folder.resolve().name,
            "store_folder": str(self.store.folder.resolve()),
            "store_fingerprint": self.store.fingerprint,
            "encoder": self.store.manifest.encoder,
            "n_rows": self.store.n_rows,
            "width": self.store.width,
            "class_names": self.store.class_names,
            "centred": self.options.center is not None,
            "model": _model_text(self.model),
            **_model_metadata(self.model),
        }


def _decoder_directions(model: Encoder | ByPosition) -> Tensor | None:
    """Return the decoder rows of a SAE at length 1, ``(m, d_in)`` float16; None for other models."""
    if not isinstance(model, SparseAutoencoder):
        return None
    return nn.functional.normalize(model.decoder_rows.float(), dim=1).half()


def _model_metadata(model: Encoder | ByPosition) -> dict[str, Any]:
    """Return a SAE's configuration and, if known, its training; of a self-describing model its own metadata."""
    if isinstance(model, SelfDescribing):
        return model.model_metadata()
    if not isinstance(model, SparseAutoencoder):
        return {}
    training = model.provenance.training
    return {"sae": to_plain(model.config)} | ({} if training is None else {"training": dict(training)})


def _model_text(model: Encoder | ByPosition) -> str:
    """Describe a model in a few words, for its metadata."""
    if isinstance(model, SparseAutoencoder):
        return repr(model.config)
    return model.description if isinstance(model, ByPosition) else type(model).__name__
