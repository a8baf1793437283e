"""The hot paths neither wait for a GPU nor copy over its bus, as far as a machine without one can tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monoloss import ActivationRegularizer, FeatureStore, MonoLoss, MonoScore, mono_loss, mono_score
from monoloss.evaluation.protocol import encode_batch
from monoloss.evaluation.sums import EvaluationOptions, LatentSums
from monoloss.functional import moments
from monoloss.functional.moments import unit_rows
from monoloss.metrics import Reconstruction
from monoloss.sae.config import AuxLoss, BatchTopKConfig, InputScaling, JumpReluConfig, TopKConfig, VanillaConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.sparse import SparseActivations, selection
from monoloss.training.config import SaeTraining
from monoloss.training.module import SaeTrainingModule, TrainedSae
from support.fake_cuda import backward, fake_cuda, waits_of

N, D, M, K = 256, 16, 512, 4
AUX = AuxLoss(k=8, dead_after_samples=1)  # dead latents may be there from the second step on
ALL_STEPS = InputScaling(unit_norm=True, center=True, standardise=True)
SAES = {
    "topk": TopKConfig("topk", M, K, aux=AUX),
    "tied topk": TopKConfig("topk", M, K, tied=True, inputs=ALL_STEPS, aux=AUX),
    "batch_topk": BatchTopKConfig("batch_topk", M, K, aux=AUX),
    "jump_relu": JumpReluConfig("jump_relu", M, target_l0=20.0),
    "vanilla": VanillaConfig("vanilla", M),
}
# A stored path has as many entries as a batch has active ones: it waits for their number, once
STORED = {"topk": 0, "tied topk": 0, "batch_topk": 0, "jump_relu": 1, "vanilla": 1}


def dense_codes() -> Tensor:
    return torch.ones(N, M, requires_grad=True)


def fixed_codes() -> SparseActivations:
    values, indices = torch.ones(N, K, requires_grad=True), torch.zeros(N, K, dtype=torch.int64)
    return SparseActivations(values, indices, M, check=False)


def ragged_codes() -> SparseActivations:
    values, indices = torch.ones(N * K, requires_grad=True), torch.zeros(N * K, dtype=torch.int64)
    return SparseActivations(values, indices, M, torch.arange(N + 1) * K, check=False)


CODES = {"dense": dense_codes, "fixed": fixed_codes, "ragged": ragged_codes}
Codes = Callable[[], Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with the sizes that sums are made for; no row of it is used."""
    return FeatureStore.create(tmp_path_factory.mktemp("a") / "store", torch.eye(D), labels=torch.arange(D) % 7)


def rows(n: int = N, *, grad: bool = False) -> Tensor:
    return torch.ones(n, D, requires_grad=grad)


def some_sae(variant: str) -> SparseAutoencoder:
    config = SAES[variant]
    mean = torch.zeros(D, device="cuda") if config.inputs.center else None
    return SparseAutoencoder(D, config, input_mean=mean)


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
class TestScoreAndLoss:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("centred", [False, True])
    def test_mono_loss_and_its_gradient(self, codes: Codes, centred: bool, grad: bool) -> None:
        with fake_cuda():
            embeddings, activations = rows(grad=grad), codes()
            center = torch.zeros(D) if centred else None
            assert waits_of(lambda: backward(mono_loss(embeddings, activations, center=center))) == []

    @pytest.mark.parametrize("memory", [0.0, 0.9])
    def test_steps_of_the_module(self, codes: Codes, memory: float) -> None:
        with fake_cuda():
            criterion, embeddings, activations = MonoLoss(center=torch.zeros(D), memory=memory), rows(), codes()
            for _ in range(3):
                assert waits_of(lambda: backward(criterion(embeddings, activations))) == []
            assert waits_of(lambda: criterion.detailed(embeddings, activations)) == []

    def test_mono_score(self, codes: Codes) -> None:
        with fake_cuda():
            embeddings, activations = rows(), codes().detach()
            assert waits_of(lambda: mono_score(embeddings, activations)) == []

    def test_updates_of_the_metric(self, codes: Codes) -> None:
        with fake_cuda():
            metric, embeddings, activations = MonoScore(D, M, center=torch.zeros(D)).to("cuda"), rows(), codes()
            for _ in range(2):
                assert waits_of(lambda: metric.update(embeddings, activations)) == []

    def test_more_rows_than_one_product_sums(self, codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(moments, "_ROWS_PER_PRODUCT", 100)
        with fake_cuda():
            metric, embeddings, activations = MonoScore(D, M).to("cuda"), rows(), codes()
            assert waits_of(lambda: metric.update(embeddings, activations)) == []


class Step:
    """A training step of a SAE: forward, objective, backward, projection, clipping, optimiser, constraint, counters."""

    def __init__(self, variant: str) -> None:
        self.sae, self.mono = some_sae(variant), MonoLoss(memory=0.9)
        self.adam = torch.optim.Adam(self.sae.parameters(), fused=True)

    def __call__(self) -> None:
        batch = rows()
        output = self.sae(batch)
        loss = objective(self.sae, output).total + 0.1 * self.mono(unit_rows(batch), output.codes)
        self.sae.count_activity_(output.codes)
        self.adam.zero_grad()
        backward(loss)
        self.sae.project_decoder_gradient_()
        nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.adam.step()
        self.sae.constrain_()


@pytest.mark.parametrize("variant", SAES)
class TestSaes:
    def test_training_steps(self, variant: str) -> None:
        with fake_cuda():
            step = Step(variant)
            for _ in range(3):
                waits = waits_of(step)
                assert len(waits) == STORED[variant], waits
                assert all("nonzero at sparse/selection.py" in wait for wait in waits)
            assert step.sae.may_have_dead == variant.endswith("topk")

    def test_steps_of_a_run(self, variant: str) -> None:
        """Steps that log nothing; those that do wait for the numbers they print."""
        with fake_cuda():
            training = SaeTraining(SAES[variant], mono_weight=0.1)
            module = SaeTrainingModule({"a": TrainedSae(training, some_sae(variant), MonoLoss())}, 100, 10)
            module._trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=3)
            module._fabric = None
            waits = waits_of(lambda: backward(SaeTrainingModule.training_step(module, rows(), 3)))
            assert len(waits) == STORED[variant], waits

    def test_encode(self, variant: str) -> None:
        """Without a graph. The codes of BatchTopK at inference are ragged too."""
        for training in (True, False):
            with fake_cuda(), torch.no_grad():
                sae = some_sae(variant).train(training)
                waits = waits_of(partial(sae.encode, rows()))
                ragged = variant == "batch_topk" and not training
                assert len(waits) == STORED[variant] + ragged, waits

    @pytest.mark.parametrize("several_labels", [False, True])
    def test_a_batch_of_an_evaluation(self, variant: str, several_labels: bool, store: FeatureStore) -> None:
        """Two batches, with what the first leaves in the examples; one wait more where the codes are dense."""
        with fake_cuda(), torch.no_grad():
            sae = some_sae(variant).eval()
            sums = LatentSums(M, torch.device("cuda"), store, EvaluationOptions(True, torch.zeros(D), 3, None))
            quality = Reconstruction(D, sync_on_compute=False).to("cuda")
            labels = torch.zeros(N, 7, dtype=torch.bool) if several_labels else torch.zeros(N, dtype=torch.int64)

            def add() -> None:
                batch = encode_batch("a", sae, rows(), 0)
                sums.add(rows(), batch.activations, labels)
                assert batch.reconstruction is not None
                quality.update(batch.target, batch.reconstruction)

            for _ in range(2):
                waits = waits_of(add)
                assert len(waits) == STORED[variant] + (variant == "batch_topk"), waits


def test_dense_activations_in_an_evaluation_wait_once(store: FeatureStore) -> None:
    """For the number of their active entries, among which examples are sought."""
    with fake_cuda(), torch.no_grad():
        sums = LatentSums(M, torch.device("cuda"), store, EvaluationOptions(True, None, 3, None))
        waits = waits_of(lambda: sums.add(rows(), dense_codes(), torch.zeros(N, dtype=torch.int64)))
        assert [wait.split(":")[0] for wait in waits] == ["nonzero at sparse/activations.py"]


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_activation_regularizer(memory: float) -> None:
    with fake_cuda():
        model = nn.Sequential(nn.Linear(D, M), nn.ReLU(), nn.Linear(M, 3))
        regularizer = ActivationRegularizer(model, "1", MonoLoss(memory=memory))

        def step() -> None:
            backward(model(rows()).square().mean() + 0.1 * regularizer(rows()))

        for _ in range(2):
            assert waits_of(step) == []


def put(h: Tensor, mask: Tensor) -> Tensor:
    """Assign to the rows of a mask."""
    h = h.clone()
    h[mask] = torch.zeros(h.shape[1])
    return h


def put_back(what: str, patch: pytest.MonkeyPatch) -> None:
    """Put one wait or copy back into the hot path."""
    count = moments._count
    faults: dict[str, Callable[[Tensor, torch.device], Tensor]] = {
        "item": lambda h, dev: torch.full((), float(h.sum().item()), dtype=torch.float64, device=dev),
        "bool": lambda h, dev: count(h, dev) if bool(h.any()) else h.sum(),
        "mask": lambda h, dev: count(h[h[:, 0] > 0], dev),
        "cpu": lambda h, dev: count(h, dev) + h.sum().cpu().to(dev),
        "tensor": lambda h, dev: torch.tensor(float(len(h)), dtype=torch.float64, device=dev),
        "scalar on the CPU": lambda h, dev: count(h, dev) * torch.ones((), device="cpu", dtype=torch.float64),
        "mask assigned": lambda h, dev: count(h, dev) + put(h, h[:, 0] > 0).sum(),
        "printed": lambda h, dev: count(h, dev) * len(f"{h.sum()}"),
        "bincount": lambda h, dev: count(h, dev) + torch.bincount(h[:, 0].long(), minlength=3).sum(),
    }
    if what == "nonzero":
        right = selection.largest_of_rows
        patch.setattr("monoloss.sae.activations.largest_of_rows", lambda z, k: (z > 0).nonzero() is z or right(z, k))
    elif what == "indices on the CPU":
        right_norms = moments.row_norms
        patch.setattr(moments, "row_norms", lambda h: right_norms(h)[torch.arange(len(h), device="cpu")])
    else:
        patch.setattr(moments, "_count", faults[what])


FAULTS = (
    "item",
    "bool",
    "mask",
    "mask assigned",
    "printed",
    "cpu",
    "tensor",
    "scalar on the CPU",
    "bincount",
    "nonzero",
    "indices on the CPU",
)


@pytest.mark.parametrize("what", FAULTS)
def test_a_wait_or_copy_put_back_is_seen(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    put_back(what, monkeypatch)
    with fake_cuda():
        step = Step("topk")
        assert waits_of(step) != []


def test_backward_is_that_of_torch() -> None:
    """The gradients that the fake GPU's way through the graph computes, on a real CPU."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 16), torch.randn(32, 8)

    def loss() -> Tensor:
        z = layer(x).relu()
        return mono_loss(x, z) + z.sum() / (1.0 + z.square().mean()) + layer.weight.sum()

    loss().backward()
    expected = [weight.grad.clone() for weight in layer.parameters() if weight.grad is not None]
    layer.zero_grad()
    backward(loss())
    for weight, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-6, atol=1e-7)
