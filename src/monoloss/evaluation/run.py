"""One pass over a store: every row read once, in stored order, through every model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from monoloss.checks import check_number, check_type
from monoloss.data.store import FeatureStore, StoredBatch
from monoloss.errors import InputError
from monoloss.evaluation.activations import StoredActivations
from monoloss.evaluation.examples import TopExamples
from monoloss.evaluation.protocol import Encoder, check_models, device_of, judge, modes
from monoloss.evaluation.result import Evaluation
from monoloss.functional.moments import unit_rows
from monoloss.functional.score import chance, lift, n_eff, score_of
from monoloss.functional.sparsity import activation_counts, density, l0
from monoloss.metrics import ClassPurity, MonoScore, Reconstruction
from monoloss.precision import sums_device
from monoloss.sae.model import SparseAutoencoder


@torch.no_grad()
def evaluate(
    store: FeatureStore,
    models: dict[str, Any],
    *,
    purity: bool | None = None,
    center: Tensor | None = None,
    n_examples: int = 15,
    batch_size: int = 2048,
    progress: bool = False,
) -> dict[str, Evaluation]:
    """Judge models on a store: MonoScore, class purity, reconstruction, L0, and the rows that show each latent.

    Each row is read once and encoded once by each model, in stored order and in ``eval()`` mode; the models' modes are
    put back, and no tensor of theirs changes. One process reads the whole store: nothing is summed over ranks. Memory
    beyond the models: one batch and, for each, ``m (d + 2 c + 30)`` float64 numbers.

    Args:
        store: the rows; they are the embeddings that the score compares, and the inputs of the models.
        models: what encodes rows, by name: a :class:`monoloss.SparseAutoencoder`, or any object with
            ``encode(inputs)`` (and ``decode(activations)``, if its reconstruction is to be judged); or activations
            of these rows in a file, :class:`monoloss.evaluation.activations.StoredActivations`.
        purity: judge class purity; by default where the store has labels.
        center: mean vector ``(d,)`` taken off the unit embeddings, such as ``store.mean``; None as in the paper.
        n_examples: most active rows kept for each latent.
        batch_size: rows encoded at a time; the results do not depend on it.
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
    judge_purity = store.has_labels if purity is None else purity
    if judge_purity and not store.has_labels:
        raise InputError("purity", f"True for {store.folder}, which has no labels", "a store with labels")
    with _in_eval_mode(models):
        sums = {name: _Sums(name, model, store, judge_purity, center, n_examples) for name, model in models.items()}
        for batch in _shown(store, batch_size, progress):
            for part in sums.values():
                part.add(batch)
    return {name: part.evaluation() for name, part in sums.items()}


def _shown(store: FeatureStore, batch_size: int, progress: bool) -> Iterator[StoredBatch]:
    """The batches of a store, with a progress bar in rows if asked for."""
    if not progress:
        yield from store.batches(batch_size)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("evaluating", total=store.n_rows)
        for batch in store.batches(batch_size):
            yield batch
            bar.advance(task, len(batch.embeddings))


@contextmanager
def _in_eval_mode(models: dict[str, Encoder | StoredActivations]) -> Iterator[None]:
    before = modes(models)
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


class _Sums:
    """What is summed up for one model; its sizes are known from the first batch on."""

    def __init__(
        self,
        name: str,
        model: Encoder | StoredActivations,
        store: FeatureStore,
        purity: bool,
        center: Tensor | None,
        n_examples: int,
    ) -> None:
        self.name, self.model, self.store, self.n_examples = name, model, store, n_examples
        self.purity, self.center = purity, center
        self.n_rows = 0
        self.score: MonoScore | None = None
        self.class_purity: ClassPurity | None = None
        self.reconstruction: Reconstruction | None = None
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.examples = TopExamples.none(0, n_examples)

    def add(self, batch: StoredBatch) -> None:
        """Encode a batch and add it up."""
        device = device_of(self.model, batch.embeddings.device)
        embeddings = batch.embeddings.to(device)
        judged = judge(self.name, self.model, embeddings, batch.start)
        if self.score is None:
            self._start(judged.activations.shape[1], judged.activations.device)
        assert self.score is not None  # noqa: S101 - set by _start
        rows = embeddings if self.center is None else unit_rows(embeddings)
        self.score.update(rows, judged.activations)
        if self.class_purity is not None and batch.labels is not None:
            self.class_purity.update(judged.activations, batch.labels.to(device))
        if judged.reconstruction is not None:
            if self.reconstruction is None:
                self.reconstruction = Reconstruction(judged.target.shape[1], sync_on_compute=False).to(
                    judged.target.device
                )
            self.reconstruction.update(judged.target, judged.reconstruction)
        self.counts += activation_counts(judged.activations)
        self.examples = self.examples.with_batch(judged.activations, self.n_rows)
        self.n_rows += len(batch.embeddings)

    def _start(self, m: int, device: torch.device) -> None:
        self.score = MonoScore(self.store.width, m, center=self.center, sync_on_compute=False).to(device)
        self.counts = torch.zeros(m, dtype=torch.int64, device=device)
        self.examples = TopExamples.none(m, self.n_examples, sums_device(device))
        if self.purity:
            self.class_purity = ClassPurity(m, self.store.n_classes, sync_on_compute=False).to(device)

    def evaluation(self) -> Evaluation:
        """The figures of all rows."""
        assert self.score is not None  # noqa: S101 - a store has at least one row
        moments, whole = self.score.sums, self.score.summary()
        scores = score_of(moments)
        summary: dict[str, float] = {
            "score_mean": whole.mean,
            "score_median": whole.median,
            "score_p90": whole.p90,
            "score_mean_zero_filled": whole.mean_zero_filled,
            "chance": whole.chance,
            "lift_mean": whole.lift,
            "n_eff_median": whole.n_eff,
            "n_latents": float(whole.n_latents),
            "n_alive": float(whole.n_defined),
            "l0": float(l0(self.counts, self.n_rows)),
        }
        latents = {
            "score": scores,
            "lift": lift(scores, chance(moments)),
            "n_eff": n_eff(moments),
            "density": density(self.counts, self.n_rows),
        }
        if self.class_purity is not None:
            classes = self.class_purity.summary()
            latents |= {"purity_binary": classes.binary, "purity_weighted": classes.weighted}
            latents["dominant_class"] = classes.dominant_class
            summary |= {
                "purity_binary": float(classes.mean_binary),
                "purity_weighted": float(classes.mean_weighted),
                "purity_binary_by_mass": float(classes.mass_weighted_binary),
                "purity_weighted_by_mass": float(classes.mass_weighted_weighted),
            }
        if self.reconstruction is not None:
            quality = self.reconstruction.summary()
            summary |= {key: float(getattr(quality, key)) for key in ("r2", "explained_variance", "nmse", "mse")}
        return Evaluation(self.name, self._facts(), summary, latents, self.examples)

    def _facts(self) -> dict[str, Any]:
        return {
            "monoloss_version": version("monoloss"),
            "store": self.store.folder.resolve().name,
            "store_fingerprint": self.store.fingerprint,
            "encoder": self.store.manifest.encoder,
            "n_rows": self.n_rows,
            "width": self.store.width,
            "class_names": self.store.class_names,
            "centred": self.center is not None,
            "model": _model_text(self.model),
        }


def _model_text(model: Encoder | StoredActivations) -> str:
    if isinstance(model, SparseAutoencoder):
        return repr(model.config)
    return f"activations in {model.path.name}" if isinstance(model, StoredActivations) else type(model).__name__
