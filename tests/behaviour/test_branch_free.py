"""The path of GPUs, taken on the CPU: all tests of scores and loss hold there, with the same bounds.

`monoloss.waiting.branch_free` is on for this whole module, which collects the tests of others again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from monoloss import FeatureStore, MonoLoss, evaluate, waiting
from monoloss.errors import InputError
from monoloss.functional import moments, purity
from monoloss.functional.moments import batch_moments, unit_rows
from monoloss.functional.purity import class_purity
from monoloss.functional.score import mono_score
from monoloss.metrics import ClassPurity
from monoloss.sae import objectives
from monoloss.sae.activations import JumpRelu, batch_topk_codes, topk_codes
from monoloss.sae.config import AuxLoss, BatchTopKConfig, JumpReluConfig, SaeConfig, TopKConfig, VanillaConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.training.config import SaeTraining
from monoloss.training.module import SaeTrainingModule, TrainedSae
from monoloss.waiting import branch_free, may_branch
from support.embeddings import LAYOUTS, some_activations, some_embeddings
from support.mono_checks import assert_scores

AGAIN = (
    "functional.test_moments",
    "functional.test_score",
    "functional.test_loss",
    "functional.test_streaming",
    "functional.test_purity",
    "functional.test_histogram",
    "metrics.test_mono_score",
    "evaluation.test_examples",
    "behaviour.test_wrong_scores",
)
# Float32 sums, which the path of GPUs does not have; and labels out of range, which are an error of the result there
OF_BRANCHES = {"test_that_one_long_sum_would", "test_error_texts"}


@pytest.fixture(autouse=True, scope="module")
def _branch_free() -> Iterator[None]:
    with branch_free():
        yield


for _module in map(import_module, AGAIN):
    for _name, _value in vars(_module).items():
        if isinstance(_value, type(_branch_free)):  # a fixture
            globals()[_name] = _value
        elif _name.startswith("test_") and _name not in OF_BRANCHES:
            globals()[f"{_name}__of_{_module.__name__.rsplit('.', 1)[1]}"] = _value


def test_the_switch_is_on():
    assert not may_branch(torch.device("cpu"))


def spread_activations() -> Tensor:
    """Float32 weights of which a few outweigh thousands of others, so that one float32 sum of all loses digits."""
    z = some_activations(3000, dtype=torch.float32).abs()
    z[5] = 3e4
    return z


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_far_apart(layout):
    embeddings = some_embeddings(3000, dtype=torch.float32)
    activations = LAYOUTS[layout](spread_activations())
    assert_scores(mono_score(embeddings, activations), embeddings, activations, atol=1e-5)


def test_one_product_of_all_weights_would_lose_digits(monkeypatch):
    """The wrong variant of the path without branches for dense activations."""
    embeddings, z = some_embeddings(3000, dtype=torch.float32), spread_activations()
    exact = batch_moments(unit_rows(embeddings).double(), z.double())
    error = (batch_moments(unit_rows(embeddings), z).w - exact.w).abs().max()
    monkeypatch.setattr(moments, "_large", lambda a, *_: torch.zeros_like(a, dtype=torch.bool))
    assert (batch_moments(unit_rows(embeddings), z).w - exact.w).abs().max() > 3 * error


@contextmanager
def with_branches() -> Iterator[None]:
    """The path of CPUs, for comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "_branch_free_everywhere", False)
        yield


AUX = AuxLoss(k=5, weight=0.5, dead_after_samples=100)
WITH_AUX = {
    "topk": TopKConfig("topk", 48, 4, aux=AUX),
    "tied": TopKConfig("topk", 48, 4, tied=True, aux=AUX),
    "batch_topk": BatchTopKConfig("batch_topk", 48, 4, aux=AUX),
}


def a_step(config: SaeConfig, n_dead: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The aux loss, and the gradients of the whole objective, with so many dead latents."""
    sae = SparseAutoencoder(12, config, seed=1).double()
    sae.samples_since_active[:n_dead] = 100
    terms = objective(sae, sae(some_embeddings(64, 12)))
    terms.total.backward()
    return terms.aux.detach(), {name: weight.grad for name, weight in sae.named_parameters()}


@pytest.mark.parametrize("n_dead", [0, 3, 20, 48])  # none; fewer than aux.k; more; all
@pytest.mark.parametrize("config", WITH_AUX.values(), ids=WITH_AUX)
def test_a_step_of_fixed_size_is_that_of_the_dead_latents_alone(config, n_dead):
    aux, gradients = a_step(config, n_dead)
    with with_branches():
        expected_aux, expected = a_step(config, n_dead)
    assert (float(aux) > 0) == (n_dead > 0)
    torch.testing.assert_close(aux, expected_aux, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-14, msg=name)


def test_live_latents_in_the_aux_loss_are_seen(monkeypatch):
    """The wrong variant: the most active latents of all instead of the dead ones."""
    monkeypatch.setattr(
        objectives, "_dead_codes", lambda sae, out, k: sae.on_graph(topk_codes(out.pre_activations, k), out.scaled)
    )
    aux, _ = a_step(WITH_AUX["topk"], 3)
    with with_branches():
        expected, _ = a_step(WITH_AUX["topk"], 3)
    assert abs(float(aux / expected) - 1) > 1e-3


@pytest.mark.parametrize("share", [0.9, 0.02])  # of positive pre-activations: more, fewer than k n
def test_batch_topk_stores_k_a_row_and_selects_the_same(share):
    z = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)) - torch.distributions.Normal(0, 1).icdf(
        torch.tensor(1 - share)
    )
    codes = batch_topk_codes(z, 7)
    with with_branches():
        expected = batch_topk_codes(z, 7)
    assert codes.values.numel() == 7 * 40
    assert (codes.values >= 0).all()
    assert torch.equal(codes.to_dense(), expected.to_dense())
    z[3, 4] = torch.nan
    assert batch_topk_codes(z, 7).to_dense()[3, 4].isnan()  # reaches the loss


def test_a_negative_threshold_stores_everything():
    activation = JumpRelu(6, 0.1, 0.2)
    z = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        activation.threshold[2] = -0.5
    stored = activation.stored(z, 54, near=False)
    assert stored is not None
    assert torch.equal(activation(stored).to_dense(), activation(z))
    assert activation.stored(z, 53, near=False) is None


class Dense:
    """Dense activations of any sign, most of them not active."""

    def encode(self, inputs: Tensor) -> Tensor:
        return (inputs @ some_embeddings(30, 12, dtype=torch.float32).t() - 0.3).half().float()


MODELS: dict[str, SaeConfig] = {
    "topk": WITH_AUX["topk"],
    "batch_topk": WITH_AUX["batch_topk"],
    "jump_relu": JumpReluConfig("jump_relu", 48),
    "vanilla": VanillaConfig("vanilla", 48),
}


@pytest.mark.parametrize("several_labels", [False, True])
def test_an_evaluation_is_that_of_a_cpu(tmp_path, several_labels):
    """Batch after batch: measures within rounding, the same examples, histograms and classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(90, 4, generator=generator) > 0.6 if several_labels else torch.arange(90) % 4
    store = FeatureStore.create(tmp_path / "store", some_embeddings(90, 12, dtype=torch.float32), labels=labels)
    models = {name: SparseAutoencoder(12, config) for name, config in MODELS.items()}
    models["batch_topk"].calibrate_([store.rows(torch.arange(90))])
    got = evaluate(store, models | {"dense": Dense()}, n_examples=3, batch_size=32)
    with with_branches():
        expected = evaluate(store, models | {"dense": Dense()}, n_examples=3, batch_size=32)
    for name, evaluation in got.items():
        other = expected[name]
        assert evaluation.summary == pytest.approx(other.summary, rel=1e-5, abs=1e-6, nan_ok=True)
        for column, values in evaluation.latents.items():
            torch.testing.assert_close(values, other.latents[column], rtol=1e-5, atol=1e-5, equal_nan=True)
        for kind in ("examples", "middle_examples", "bottom_examples"):
            assert torch.equal(getattr(evaluation, kind).rows, getattr(other, kind).rows), (name, kind)
            assert torch.equal(getattr(evaluation, kind).values, getattr(other, kind).values), (name, kind)
        assert torch.equal(evaluation.histogram, other.histogram)
        assert torch.equal(evaluation.top_classes.counts, other.top_classes.counts)


def test_a_logged_step_reads_how_idle_latents_are(monkeypatch):
    """Else the aux loss would be computed in every step from `dead_after_samples` rows on, with no latent dead."""
    config = BatchTopKConfig("batch_topk", 16, 8, aux=AuxLoss(k=4, dead_after_samples=100))
    sae = SparseAutoencoder(12, config)
    module = SaeTrainingModule({"a": TrainedSae(SaeTraining(config), sae, MonoLoss())}, 9, log_every_steps=3)
    monkeypatch.setattr(SaeTrainingModule, "log_dict", lambda *_: None)
    known = []
    for step in range(3):
        module._trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=step)
        module.training_step(some_embeddings(64, 12, dtype=torch.float32), step)
        known.append(sae.may_have_dead)
    assert known == [False, True, False]
    assert not sae.dead.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_labels_of_short_types(dtype):
    """The number of classes need not fit into the type of the labels."""
    z, labels = torch.rand(9, 3), torch.arange(9) % 3
    for n_classes in (128, 256, 40_000):
        got, expected = (class_purity(z, each, n_classes) for each in (labels.to(dtype), labels))
        assert torch.equal(got.binary, expected.binary)
        with with_branches():
            assert torch.equal(class_purity(z, labels.to(dtype), n_classes).binary, expected.binary)


def test_dense_activations_with_several_labels_go_by_blocks(monkeypatch):
    z, labels = torch.rand(40, 30), torch.rand(40, 7) > 0.6
    whole = class_purity(z, labels)
    monkeypatch.setattr(purity, "_BLOCK_OF_PRODUCTS", 40 * 8)
    blocks = class_purity(z, labels)
    torch.testing.assert_close(blocks.weighted, whole.weighted, rtol=1e-14, atol=0)
    assert torch.equal(blocks.binary, whole.binary)


def test_labels_out_of_range_are_an_error_of_the_result():
    metric = ClassPurity(m=3, n_classes=2)
    z = torch.ones(4, 3)
    metric.update(z, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(InputError, match="labels: got 2 outside; expected labels from 0 to 1"):
        metric.compute()
