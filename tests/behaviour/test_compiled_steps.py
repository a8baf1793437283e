"""torch.compile takes a whole step as one graph, and its loss and gradients are those of the step as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from monoloss import MonoLoss, SparseActivations
from monoloss.functional.moments import unit_rows
from monoloss.sae.config import AuxLoss, BatchTopKConfig, SaeConfig, TopKConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from support.embeddings import some_activations, some_embeddings

pytestmark = [pytest.mark.slow, pytest.mark.door]  # torch.compile does not trace the checks of annotations

N, D, M, K = 96, 8, 48, 4
AUX = AuxLoss(k=6, dead_after_samples=100)
SAES = {"topk": TopKConfig("topk", M, K, aux=AUX), "batch_topk": BatchTopKConfig("batch_topk", M, K, aux=AUX)}


@pytest.fixture(autouse=True)
def _no_code_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one graph: a graph break is an error."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def codes_of(values: Tensor, indices: Tensor) -> SparseActivations:
    return SparseActivations(values, indices, M, check=False)


@pytest.mark.parametrize("memory", [0.0, 0.9])
@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_mono_loss(layout: str, memory: float) -> None:
    embeddings = some_embeddings(N, D)
    dense = some_activations(N)[:, :K].abs()
    values = dense.requires_grad_()
    indices = torch.rand(N, M, generator=torch.Generator().manual_seed(0)).topk(K).indices

    def run(as_graph: bool) -> tuple[list[Tensor], Tensor | None]:
        values.grad = None
        criterion = MonoLoss(memory=memory)

        def loss(embeddings: Tensor, values: Tensor) -> Tensor:
            return criterion(embeddings, codes_of(values, indices) if layout == "sparse" else values)

        call = compiled(loss) if as_graph else loss
        losses = [call(embeddings, values) for _ in range(2)]
        sum(losses).backward()
        return [each.detach() for each in losses], values.grad

    losses, gradient = run(as_graph=True)
    expected_losses, expected = run(as_graph=False)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("config", SAES.values(), ids=SAES)
def test_a_loop_of_steps_is_compiled_once(config: SaeConfig) -> None:
    """With the counters of a training loop, compiled or not; a guard on what they change would compile each step."""
    n_graphs = 0

    def counted(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal n_graphs
        n_graphs += 1
        return graph.forward

    sae, mono = SparseAutoencoder(8, config), MonoLoss()
    optimiser = torch.optim.SGD(sae.parameters(), lr=1e-3)

    @partial(torch.compile, fullgraph=True, backend=counted)
    def step(rows: Tensor) -> tuple[Tensor, SparseActivations]:
        output = sae(rows)
        assert isinstance(output.codes, SparseActivations)
        return objective(sae, output).total + 0.1 * mono(unit_rows(rows), output.codes), output.codes

    for seed in range(12):
        loss, codes = step(some_embeddings(N, D, dtype=torch.float32) + seed)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        sae.count_activity_(codes)
        sae.constrain_()
    assert n_graphs == 1
    counting = torch.compile(sae.count_activity_, fullgraph=True, backend=counted)
    for _ in range(3):
        counting(codes.detach())
    assert sae.may_have_dead == bool(sae.dead.any())


@pytest.mark.parametrize("n_dead", [0, 3, 20])
@pytest.mark.parametrize("config", SAES.values(), ids=SAES)
def test_a_training_step(config: SaeConfig, n_dead: int) -> None:
    rows = some_embeddings(N, D)

    def run(as_graph: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
        sae, mono = SparseAutoencoder(D, config, seed=1).double(), MonoLoss()
        sae.samples_since_active[:n_dead] = 100

        def step(rows: Tensor) -> Tensor:
            output = sae(rows)
            return objective(sae, output).total + 0.1 * mono(unit_rows(rows), output.codes)

        loss = (compiled(step) if as_graph else step)(rows)
        loss.backward()
        return loss.detach(), {name: weight.grad for name, weight in sae.named_parameters()}

    loss, gradients = run(as_graph=True)
    expected_loss, expected = run(as_graph=False)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13, msg=name)
