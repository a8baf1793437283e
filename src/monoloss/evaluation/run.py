"""One pass over a store: every row read once, in stored order, through every model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from monoloss import terminal
from monoloss.checks import check_number, check_type
from monoloss.data.store import FeatureStore, StoredBatch
from monoloss.errors import InputError
from monoloss.evaluation.classes import TopClasses
from monoloss.evaluation.examples import Examples
from monoloss.evaluation.protocol import (
    ByPosition,
    Encoder,
    SelfDescribing,
    check_models,
    device_of,
    judge,
    latents_of,
    modes,
)
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.sums import LatentMeasures, LatentSums, Wanted
from monoloss.files.dataclasses import to_plain
from monoloss.functional.moments import unit_rows
from monoloss.functional.purity import ClassPurityResult, join_latents
from monoloss.functional.score import chance, lift, summary_of_latents
from monoloss.functional.sparsity import density, l0
from monoloss.metrics import Reconstruction
from monoloss.sae.model import SparseAutoencoder
from monoloss.version import __version__

_OF_LATENTS = {  # keys of a summary by attributes of what summary_of_latents gives
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
_OF_PURITY = {  # and of a ClassPurityResult
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
    """Judge models on a store: MonoScore, class purity, reconstruction, L0, and what shows each latent.

    Each row is read once and encoded once by each model, in stored order and in ``eval()`` mode; the models' modes are
    put back, and no tensor of theirs changes. One process reads the whole store: nothing is summed over ranks. Memory
    beyond the models: one batch, and the next one's rows unless the store is loaded; for each model
    ``m (d + 2 c + 16 n_examples + 80)`` numbers of 8 bytes, with ``latents_per_pass`` that many latents in the place
    of m.

    Args:
        store: the rows; they are the embeddings that the score compares, and the inputs of the models.
        models: what encodes rows, by name: a :class:`monoloss.SparseAutoencoder`, or any object with
            ``encode(inputs)`` (and ``decode(activations)``, if its reconstruction is to be judged); activations of
            these rows in a file, :class:`monoloss.StoredActivations`; or a fine-tuned model on the images of these
            rows, :class:`monoloss.ImageActivations`.
        purity: judge class purity; by default where the store has labels.
        center: mean vector ``(d,)`` taken off the unit embeddings, such as ``store.mean``; None as in the paper.
        n_examples: rows kept for each latent, of those it is active on: as many of the most active, of the least
            active, and around the median of a sample of four times as many (of all where there are no more).
        batch_size: rows encoded at a time; the results do not depend on it.
        latents_per_pass: where the sums of all latents do not fit the memory: as many at a time, with a pass over the
            rows for each such block, in which all is encoded again. The results are the same (dense activations:
            within rounding).
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
    judge_purity = store.has_labels if purity is None else purity
    if judge_purity and not store.has_labels:
        raise InputError("purity", f"True for {store.folder}, which has no labels", "a store with labels")
    with _in_eval_mode(models):
        wanted = Wanted(judge_purity, center, n_examples, latents_per_pass)
        measures = {name: _EvaluationInProgress(name, model, store, wanted) for name, model in models.items()}
        while unfinished := [part for part in measures.values() if not part.is_finished]:
            for batch in _shown(store, batch_size, progress):
                for part in unfinished:
                    part.add(batch)
            for part in unfinished:
                part.end_pass()
    return {name: part.evaluation() for name, part in measures.items()}


def _shown(store: FeatureStore, batch_size: int, progress: bool) -> Iterator[StoredBatch]:
    """The batches of a store, with a progress bar in rows if asked for."""
    with terminal.progress("evaluating", store.n_rows, "rows", shown=progress) as advance:
        for batch in store.batches(batch_size):
            yield batch
            advance(len(batch.embeddings))


@contextmanager
def _in_eval_mode(models: dict[str, Encoder | ByPosition]) -> Iterator[None]:
    before = modes(models)
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


class _EvaluationInProgress:
    """What is found out about one model, its latents block after block; its sizes are known from the first batch on."""

    def __init__(self, name: str, model: Encoder | ByPosition, store: FeatureStore, wanted: Wanted) -> None:
        self.name, self.model, self.store, self.wanted = name, model, store, wanted
        self.n_latents: int | None = None
        self.chance = torch.tensor(torch.nan)
        self.blocks: list[LatentMeasures] = []
        self.first = 0  # latent of this pass
        self.sums: LatentSums | None = None
        self.reconstruction: Reconstruction | None = None

    @property
    def is_finished(self) -> bool:
        """Every latent has had its pass."""
        return self.first == self.n_latents

    def add(self, batch: StoredBatch) -> None:
        """Encode a batch and add it up."""
        device = device_of(self.model, batch.embeddings.device)
        embeddings = batch.embeddings.to(device)
        judged = judge(self.name, self.model, embeddings, batch.start, rebuild=self.first == 0)
        self.n_latents = judged.activations.shape[1]
        stop = min(self.first + (self.wanted.latents_per_pass or self.n_latents), self.n_latents)
        if self.sums is None:
            self.sums = LatentSums(stop - self.first, judged.activations.device, self.store, self.wanted)
        rows = embeddings if self.wanted.center is None else unit_rows(embeddings)
        self.sums.add(rows, latents_of(judged.activations, self.first, stop), batch.labels)
        if judged.reconstruction is not None:
            if self.reconstruction is None:
                self.reconstruction = Reconstruction(judged.target.shape[1], sync_on_compute=False).to(
                    judged.target.device
                )
            self.reconstruction.update(judged.target, judged.reconstruction)

    def end_pass(self) -> None:
        """Keep what was found about the latents of this pass, and make room for the next ones."""
        assert self.sums is not None  # noqa: S101 - a store has at least one row
        self.blocks.append(self.sums.result())
        self.chance = chance(self.sums.score.sums)
        self.first += self.sums.n_latents
        self.sums = None

    def evaluation(self) -> Evaluation:
        """Put the blocks of latents together."""
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
            decoder_directions=_directions(self.model),
        )

    def _joined(self, name: str) -> Tensor:
        return torch.cat([getattr(block, name) for block in self.blocks])

    def _columns(self, purity: ClassPurityResult | None) -> dict[str, Tensor]:
        """The measures of each latent."""
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
        """The measures of the model."""
        n_rows = self.store.n_rows
        of_latents = summary_of_latents(n_rows, self.chance, self._joined("score"), self._joined("n_eff"))
        summary = {key: float(getattr(of_latents, name)) for key, name in _OF_LATENTS.items()}
        summary["l0"] = float(l0(self._joined("counts"), n_rows))
        if purity is not None:
            summary |= {key: float(getattr(purity, name)) for key, name in _OF_PURITY.items()}
        if self.reconstruction is not None:
            quality = self.reconstruction.summary()
            summary |= {key: float(getattr(quality, key)) for key in ("r2", "explained_variance", "nmse", "mse")}
        return summary | (self.model.measures() if isinstance(self.model, SelfDescribing) else {})

    def _metadata(self) -> dict[str, Any]:
        return {
            "monoloss_version": __version__,
            "store": self.store.folder.resolve().name,
            "store_folder": str(self.store.folder.resolve()),
            "store_fingerprint": self.store.fingerprint,
            "encoder": self.store.manifest.encoder,
            "n_rows": self.store.n_rows,
            "width": self.store.width,
            "class_names": self.store.class_names,
            "centred": self.wanted.center is not None,
            "model": _model_text(self.model),
            **_origin(self.model),
        }


def _directions(model: Encoder | ByPosition) -> Tensor | None:
    """What each latent of a SAE adds to a reconstruction, at length 1, ``(m, d_in)`` float16."""
    if not isinstance(model, SparseAutoencoder):
        return None
    return nn.functional.normalize(model.decoder_rows.float(), dim=1).half()


def _origin(model: Encoder | ByPosition) -> dict[str, Any]:
    """The configuration of a SAE, and how it was trained if that is known; what other models say of themselves."""
    if isinstance(model, SelfDescribing):
        return model.model_metadata()
    if not isinstance(model, SparseAutoencoder):
        return {}
    training = model.provenance.training
    return {"sae": to_plain(model.config)} | ({} if training is None else {"training": dict(training)})


def _model_text(model: Encoder | ByPosition) -> str:
    if isinstance(model, SparseAutoencoder):
        return repr(model.config)
    return model.description if isinstance(model, ByPosition) else type(model).__name__
