"""An evaluation against loops over all rows at once, whatever the batches, the shards and the other models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from monoloss.data import transfer
from monoloss.data.store import StoredBatch
from monoloss.errors import InputError
from monoloss.evaluation import run as evaluation_run
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.run import evaluate
from monoloss.sae.model import SparseAutoencoder
from support import bounds
from support.evaluated_models import LABELS, MODELS, ROWS, D, M, N, Returning
from support.saes import dense, some_config, structured_store

ERROR = bounds.of_score(N)  # 8e-5, of any split into batches


def expected_measures(
    z: Tensor, target: Tensor, reconstruction: Tensor | None, labels: Tensor | None, center: Tensor | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Summary and columns by loops over all rows at once."""
    rows = ROWS if center is None else torch.as_tensor(reference.unit_rows(ROWS))  # a mean is that of unit rows
    scores = reference.mono_score_pairwise(rows, z, center)
    chance = reference.chance_pairwise(rows, center)
    defined = scores[~np.isnan(scores)]
    lift, n_eff = reference.lift(scores, chance), reference.n_eff(z)
    summary = {
        "score_mean": defined.mean(),
        "score_median": np.median(defined),
        "score_p90": np.quantile(defined, 0.9),
        "score_mean_zero_filled": defined.sum() / M,
        "chance": chance,
        "lift_mean": np.nanmean(lift),
        "n_eff_median": np.median(n_eff[~np.isnan(scores)]),
        "n_latents": M,
        "n_alive": len(defined),
        "l0": reference.l0(z),
    }
    columns = {"score": scores, "lift": lift, "n_eff": np.nan_to_num(n_eff), "density": (z > 0).double().mean(0)}
    if labels is not None:
        purity = reference.class_purity(z, labels)
        columns |= {"purity_binary": purity["binary"], "purity_weighted": purity["weighted"]}
        summary |= {
            "purity_binary": purity["mean_binary"],
            "purity_weighted": purity["mean_weighted"],
            "purity_binary_by_mass": purity["mass_binary"],
            "purity_weighted_by_mass": purity["mass_weighted"],
        }
    if reconstruction is not None:
        for name, measure in (("r2", "r2_uniform"), *((name, name) for name in ("explained_variance", "nmse", "mse"))):
            summary[name] = getattr(reference, measure)(target, reconstruction)
    return summary, columns


@torch.no_grad()
def all_at_once(model: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Dense codes, target and reconstruction of all rows."""
    if isinstance(model, SparseAutoencoder):
        output = model(ROWS)
        return dense(output.codes), output.target, output.reconstruction
    codes = model.encode(ROWS)
    return dense(codes), ROWS, model.decode(codes) if hasattr(model, "decode") else None


def assert_measures(evaluation: Evaluation, summary: dict[str, float], columns: dict[str, Any]) -> None:
    assert evaluation.summary == bounds.close_summary(summary, ERROR)
    dominant = {"dominant_class"} if "purity_binary" in columns else set()
    assert set(evaluation.latents) == set(columns) | dominant
    for name, column in columns.items():
        assert evaluation.latents[name].dtype == torch.float64
        np.testing.assert_allclose(evaluation.latents[name], column, rtol=ERROR, atol=ERROR, err_msg=name)


@pytest.mark.parametrize("which", ["shards", "multi", "none"])
def test_equals_loops_over_all_rows(stores, which):
    store = stores[which]
    labels = store.labels() if store.has_labels else None
    evaluations = evaluate(store, MODELS, batch_size=23)
    assert list(evaluations) == list(MODELS)
    for name, model in MODELS.items():
        z, target, reconstruction = all_at_once(model)
        assert_measures(evaluations[name], *expected_measures(z, target, reconstruction, labels, None))
        assert (reconstruction is None) == (name == "dense")
        if labels is not None and labels.ndim == 1:
            check_dominant_class(evaluations[name], z, labels)
    quality = evaluations["topk"].summary
    assert 0.1 < quality["explained_variance"] < 0.9  # or nothing would be told apart
    assert math.isnan(evaluations["dense"].latents["score"][0])
    assert evaluations["dense"].summary["n_alive"] < M


def check_dominant_class(evaluation: Evaluation, z: Tensor, labels: Tensor) -> None:
    for latent, got in enumerate(evaluation.latents["dominant_class"].tolist()):
        counts = torch.bincount(labels[z[:, latent] > 0], minlength=24)
        assert got == (int(counts.argmax()) if counts.any() else -1)


def test_purity_is_judged_only_where_asked_for(stores):
    with_labels = evaluate(stores["single"], {"dense": MODELS["dense"]}, purity=False)["dense"]
    assert_measures(with_labels, *expected_measures(*all_at_once(MODELS["dense"]), None, None))
    same = {
        name: evaluate(stores["single"], {"a": MODELS["dense"]}, purity=choice)["a"]
        for name, choice in (("by default", None), ("asked", True))
    }
    assert same["by default"].summary == same["asked"].summary
    assert "purity_binary" in same["asked"].summary


def test_center_is_taken_off_the_unit_embeddings_only(stores):
    store, center = stores["single"], torch.linspace(-0.1, 0.3, D)
    evaluation = evaluate(store, {"topk": MODELS["topk"]}, center=center)["topk"]
    assert_measures(evaluation, *expected_measures(*all_at_once(MODELS["topk"]), LABELS, center))
    assert evaluation.metadata["centred"] is True


def test_neither_batches_nor_shards_nor_company_change_the_measures(stores):
    one = evaluate(stores["single"], MODELS)
    others = [
        evaluate(stores["single"], MODELS, batch_size=9),
        evaluate(stores["shards"], MODELS, batch_size=16),
        {name: evaluate(stores["shards"], {name: model}, batch_size=50)[name] for name, model in MODELS.items()},
    ]
    for other in others:
        for name, evaluation in one.items():
            assert other[name].summary == bounds.close_summary(evaluation.summary, ERROR)
            for column, values in evaluation.latents.items():
                torch.testing.assert_close(other[name].latents[column], values, rtol=ERROR, atol=ERROR, equal_nan=True)
            assert_close_examples(other[name], evaluation)


def assert_close_examples(one: Evaluation, other: Evaluation) -> None:
    """The same rows, but for values as near to each other as two products of the same row may round."""
    torch.testing.assert_close(one.examples.values, other.examples.values, rtol=1e-5, atol=1e-6)
    differs = one.examples.rows != other.examples.rows
    assert differs.double().mean() < 0.01


def test_examples_are_the_most_active_rows(stores):
    for name in ("dense", "sparse"):
        z = all_at_once(MODELS[name])[0]
        highest = z.clamp(min=0.0).sort(0, descending=True).values[:5]
        steps = (highest[:-1] - highest[1:])[highest[:-1] > 0]
        rounding = float(bounds.of_product(ROWS, MODELS[name].weight).max())
        assert steps.min() > 10 * rounding  # which exchanges no two rows
        examples = evaluate(stores["shards"], {"a": MODELS[name]}, n_examples=4, batch_size=N)["a"].examples
        assert examples.rows.shape == examples.values.shape == (M, 4)
        for latent in range(M):
            column = z[:, latent]
            expected = [row for row in column.argsort(descending=True, stable=True).tolist() if column[row] > 0][:4]
            assert examples.rows[latent].tolist() == expected + [-1] * (4 - len(expected))
            torch.testing.assert_close(
                examples.values[latent, : len(expected)], column[expected].double(), rtol=1e-5, atol=1e-6
            )
    assert examples.rows[1].tolist() == [7, -1, -1, -1]
    assert evaluate(stores["single"], {"a": MODELS["dense"]})["a"].examples.rows.shape == (M, 15)


def test_metadata(stores):
    evaluations = evaluate(stores["shards"], {"a": MODELS["topk"], "b": MODELS["dense"]})
    metadata = evaluations["a"].metadata
    assert metadata["store_fingerprint"] == stores["shards"].fingerprint
    assert (metadata["n_rows"], metadata["width"], metadata["centred"]) == (N, D, False)
    assert metadata["model"] == repr(MODELS["topk"].config)
    assert evaluations["b"].metadata["model"] == "Dense"
    assert (evaluations["a"].name, evaluations["b"].name) == ("a", "b")


def test_comes_back_from_files(stores, tmp_path):
    for name, evaluation in evaluate(stores["multi"], MODELS).items():
        loaded = Evaluation.load(evaluation.save(tmp_path / name))
        assert loaded.summary == pytest.approx(dict(evaluation.summary), rel=0, abs=0, nan_ok=True)
        assert loaded.metadata == evaluation.metadata
        assert set(loaded.latents) == set(evaluation.latents)


def test_progress_goes_to_stderr_and_changes_nothing(stores, capsys):
    quiet = evaluate(stores["shards"], {"a": MODELS["topk"]})["a"]
    assert capsys.readouterr() == ("", "")
    shown = evaluate(stores["shards"], {"a": MODELS["topk"]}, batch_size=20, progress=True)["a"]
    assert shown.summary == bounds.close_summary(quiet.summary, ERROR)
    out, err = capsys.readouterr()
    assert out == ""
    assert "evaluating" in err
    assert f"{N}/{N} rows" in err


@pytest.mark.door
def test_error_texts(stores, tmp_path: Path):
    store, topk = stores["single"], MODELS["topk"]
    bad_codes = torch.ones(N, 3)
    bad_codes[4, 2] = torch.nan
    for call, text in (
        (
            lambda: evaluate(stores["none"], {"a": topk}, purity=True),
            f"purity: got True for {stores['none'].folder}, which has no labels; expected a store with labels",
        ),
        (
            lambda: evaluate(store, {"a": SparseAutoencoder(D, some_config("batch_topk", M, 4))}),
            "threshold: got no calibrated value; expected calibrate_ on training rows before eval()",
        ),
        (
            lambda: evaluate(store, {}),
            "models: got an empty dict; expected a dict from names to models with encode(inputs)",
        ),
        (lambda: evaluate(store, {"a": topk}, batch_size=0), "batch_size: got 0; expected an integer at least 1"),
        (lambda: evaluate(store, {"a": topk}, n_examples=0), "n_examples: got 0; expected an integer at least 1"),
        (
            lambda: evaluate(store, {"a": topk}, center=torch.ones(3)),
            "center: got shape (3,), dtype torch.float32; expected a floating-point tensor of shape (32,)",
        ),
        (
            lambda: evaluate(store, {"a": Returning(bad_codes)}),
            "activations: got nan (row 4, latent 2); expected finite numbers",
        ),
        (
            lambda: evaluate(store, {"a": Returning(torch.ones(N, 3), torch.ones(N, 4))}),
            "reconstruction: got shape (160, 4); expected a floating-point tensor of shape (160, 32)",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text
    unlabelled = structured_store(tmp_path / "other", 20)
    assert "purity_binary" in evaluate(unlabelled, {"a": topk}).popitem()[1].summary


def test_a_batch_reaches_the_device_of_each_model_once_and_one_ahead(tmp_path, monkeypatch):
    """GPUs are imitated: the copies to them are made on the CPU, with a mark."""
    store = structured_store(tmp_path / "s", N, seed=3, rows_per_shard=96)
    names = {"topk": "cuda:0", "vanilla": "cuda:1", "dense": "cpu", "jump_relu": "cuda:0"}
    devices = {name: torch.device(device) for name, device in names.items()}
    models = {name: MODELS[name] for name in names}
    expected = evaluate(store, models, batch_size=32, n_examples=3)
    log: list[str] = []
    sent: dict[int, torch.device] = {}

    class Copies:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def send(self, batch: StoredBatch) -> Any:
            log.append(f"{batch.start} to {self.device}")
            copy = batch._replace(embeddings=batch.embeddings.clone(), labels=batch.labels.clone())
            sent.update({id(part): self.device for part in (copy.embeddings, copy.labels)})
            kept.append(copy)
            return lambda: copy

    def added(self: Any, batch: StoredBatch) -> None:
        assert sent[id(batch.embeddings)] == sent[id(batch.labels)] == devices[self.name]
        log.append(f"{batch.start} in {self.name}")
        add(self, batch)

    kept: list[StoredBatch] = []
    add = evaluation_run._Accumulator.add
    monkeypatch.setattr(transfer, "DeviceCopies", Copies)
    monkeypatch.setattr(evaluation_run._Accumulator, "add", added)
    name_of = {id(model): name for name, model in models.items()}
    monkeypatch.setattr(evaluation_run, "device_of", lambda model, _: devices[name_of[id(model)]])
    given = evaluate(store, models, batch_size=32, n_examples=3)
    starts = [0, 32, 64, 96, 128]
    copies = {start: [f"{start} to {device}" for device in ("cuda:0", "cuda:1", "cpu")] for start in starts}
    uses = {start: [f"{start} in {name}" for name in names] for start in starts}
    steps = [line for start in starts[1:] for line in copies[start] + uses[start - 32]]
    assert log == copies[0] + steps + uses[128]
    for name, evaluation in expected.items():
        assert given[name].summary == pytest.approx(evaluation.summary, rel=0, abs=0, nan_ok=True)
        assert torch.equal(given[name].examples.rows, evaluation.examples.rows)
        torch.testing.assert_close(given[name].latents, evaluation.latents, rtol=0, atol=0, equal_nan=True)
