"""What an evaluation keeps for a report: by loops over all rows, whatever the batches, the shards and the passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.run import evaluate
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import SparseActivations
from support.evaluations import assert_classes, assert_examples, histogram_by_loops, tensors_of
from support.saes import dense, some_config, structured_rows

D, M, N, K = 32, 12, 400, 3
ROWS, LABELS = structured_rows(N, seed=3)
EXAMPLES = {"highest": "examples", "middle": "middle_examples", "lowest": "bottom_examples"}


def codes() -> Tensor:
    """Values with many ties: dead, on one row, on fewer rows than are sampled, on all rows, of any sign."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-6, 9, (N, M), generator=generator).float() / 4
    z[:, 0] = 0.0
    z[:, 1] = (torch.arange(N) == 77).float()
    z[:, 2] = torch.where(torch.arange(N) % 50 == 3, z[:, 2].abs() + 0.25, 0.0)
    z[:, 3] = z[:, 3].abs() + 0.5
    z[:, 4] = torch.arange(N) / N
    return z


class Given:
    """Codes that are looked up by row, so that no product of theirs depends on the batch."""

    def __init__(self, *, sparse: bool) -> None:
        self.sparse = sparse

    def encode(self, inputs: Tensor) -> Any:
        z = codes()[[int((row == ROWS).all(1).nonzero()) for row in inputs]]
        return SparseActivations.from_dense(z) if self.sparse else z


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    folder = tmp_path_factory.mktemp("shown")
    table = torch.nn.functional.one_hot(LABELS, 24).bool() | (torch.arange(24) == LABELS[:, None] * 5 % 24)
    table[::7] = False
    return {
        "one": FeatureStore.create(folder / "one", ROWS, LABELS),
        "shards": FeatureStore.create(folder / "shards", ROWS, LABELS, rows_per_shard=90),
        "multi": FeatureStore.create(folder / "multi", ROWS, table, rows_per_shard=150),
        "none": FeatureStore.create(folder / "none", ROWS),
    }


def models(folder: Path) -> dict[str, Any]:
    np.save(folder / "z.npy", codes().numpy())
    return {
        "dense": Given(sparse=False),
        "sparse": Given(sparse=True),
        "file": StoredActivations(folder / "z.npy"),
    }


def class_rows(z: Tensor, labels: Tensor) -> Tensor:
    """Active rows of each class, one entry after the other."""
    table = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, 24).bool()
    counts = torch.zeros(z.shape[1], table.shape[1])
    for row, latent in (z > 0).nonzero().tolist():
        counts[latent] += table[row]
    return counts


def assert_shown(evaluation: Evaluation, z: Tensor, labels: Tensor | None, k: int) -> None:
    found = {kind: getattr(evaluation, name) for kind, name in EXAMPLES.items()}
    assert_examples(found, z, k, 4 * k)
    np.testing.assert_array_equal(evaluation.histogram.numpy(), histogram_by_loops(z))
    assert (evaluation.top_classes is None) == (labels is None)
    if labels is not None:
        assert_classes(evaluation.top_classes, class_rows(z, labels))


@pytest.mark.parametrize("which", ["shards", "multi", "none"])
def test_equals_loops_over_all_rows(stores, which, tmp_path):
    store = stores[which]
    labels = store.labels() if store.has_labels else None
    for name, evaluation in evaluate(store, models(tmp_path), n_examples=K, batch_size=70).items():
        assert_shown(evaluation, codes(), labels, K)
        assert evaluation.decoder_directions is None, name
        assert torch.equal(evaluation.histogram.sum(1), (codes() > 0).sum(0))
    assert evaluation.middle_examples.rows[0].tolist() == evaluation.bottom_examples.rows[0].tolist() == [-1] * K
    assert evaluation.middle_examples.rows[1].tolist() == evaluation.bottom_examples.rows[1].tolist() == [77, -1, -1]


def test_without_purity_no_classes(stores):
    assert evaluate(stores["one"], {"a": Given(sparse=True)}, purity=False)["a"].top_classes is None


@pytest.mark.parametrize("name", ["dense", "sparse", "file"])
def test_batches_shards_and_passes_change_no_bit(stores, name, tmp_path):
    model = models(tmp_path)[name]
    expected = tensors_of(evaluate(stores["one"], {"a": model}, n_examples=K)["a"])
    assert {"middle_examples.rows", "bottom_examples.values", "histogram", "top_classes.classes"} < set(expected)
    for which, options in (
        ("one", {"batch_size": 7}),
        ("shards", {"batch_size": 37}),
        ("shards", {"batch_size": 130, "latents_per_pass": 5}),
        ("one", {"latents_per_pass": 11}),
    ):
        other = tensors_of(evaluate(stores[which], {"a": model}, n_examples=K, **options)["a"])
        assert set(other) == set(expected)
        for part, tensor in expected.items():
            assert torch.equal(other[part], tensor), (which, options, part)


@pytest.mark.parametrize("variant", ["topk", "topk_tied", "batch_topk", "jump_relu", "vanilla"])
def test_saes(stores, variant, tmp_path):
    sae = SparseAutoencoder(D, some_config(variant, 40, 4), seed=4)
    sae.calibrate_([ROWS])
    with torch.no_grad():
        sae.decoder_rows.mul_(torch.linspace(0.5, 2.0, 40)[:, None])  # directions, not lengths
        z = dense(sae.eval()(ROWS).codes)
        rows = sae.decoder_rows.double().numpy()
    evaluation = evaluate(stores["one"], {"a": sae}, n_examples=K, batch_size=N, latents_per_pass=17)["a"]
    assert_shown(evaluation, z, LABELS, K)
    directions = evaluation.decoder_directions
    assert directions.dtype == torch.float16
    assert not directions.requires_grad
    np.testing.assert_allclose(directions, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=5e-4)
    loaded = Evaluation.load(evaluation.save(tmp_path / "e"))
    for name, tensor in tensors_of(evaluation).items():
        assert torch.equal(tensors_of(loaded)[name], tensor), name
