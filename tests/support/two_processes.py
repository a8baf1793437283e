"""Scenarios in which two gloo processes and one process must agree; ``behaviour/test_two_processes.py`` runs them.

A scenario takes the rows of this process (all of them in one process) and returns tensors. As a program:
``python -m support.two_processes RANK FOLDER`` is one of the two processes and leaves its results in the folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monoloss.errors import InputError
from monoloss.functional.loss import mono_loss
from monoloss.losses import MonoLoss
from monoloss.metrics import ClassPurity, MonoScore, Reconstruction
from monoloss.regularizer import ActivationRegularizer
from monoloss.sparse import SparseActivations
from support.embeddings import (
    CLASSES,
    fixed_k,
    ragged,
    some_activations,
    some_embeddings,
    some_labels,
    some_reconstruction,
)

N_ROWS, N_FIRST = 64, 23  # the first process has rows 0 to 22, the second the rest
Rows = slice
Result = dict[str, Tensor]


def metric_of(rows: Rows, offset: float = 0.0, *, sparse: bool = False) -> MonoScore:
    embeddings, activations = some_embeddings(N_ROWS), some_activations(N_ROWS, offset=offset)
    activations[:N_FIRST] += 1.5  # the minima of the two processes differ
    metric = MonoScore(embeddings.shape[1], activations.shape[1], center=embeddings.mean(0))
    for part in (slice(rows.start, rows.start + 10), slice(rows.start + 10, rows.stop)):
        local = activations[part]
        metric.update(embeddings[part], ragged(local) if sparse else local)
    return metric


def score(rows: Rows) -> Result:
    """Scores and summary."""
    return measures_of(
        {
            "score dense": metric_of(rows),
            "score sparse": metric_of(rows, sparse=True),
            "score offset": metric_of(rows, 100.0),
        }
    )


def purity_and_reconstruction(rows: Rows) -> Result:
    reconstruction = Reconstruction(8)
    for part in (slice(rows.start, rows.start + 9), slice(rows.start + 9, rows.stop)):
        reconstruction.update(some_embeddings(N_ROWS)[part], some_reconstruction()[part])
    metrics: dict[str, ClassPurity | Reconstruction] = {"reconstruction": reconstruction}
    for multi in (False, True):
        activations = some_activations(N_ROWS)
        purity = ClassPurity(activations.shape[1], CLASSES, average="mean")
        purity.update(activations[rows], some_labels(multi=multi)[rows])
        metrics[f"purity, multi-label {multi}"] = purity
    return measures_of(metrics)


def measures_of(metrics: Mapping[str, Any]) -> Result:
    """The result of each metric and its summary; afterwards the states must be those of this process again."""
    result = {}
    for name, metric in metrics.items():
        before = {state: value.clone() for state, value in metric.metric_state.items()}
        result[name] = metric.compute()
        result |= {f"{name}, {key}": torch.as_tensor(value) for key, value in asdict(metric.summary()).items()}
        for state, value in metric.metric_state.items():
            assert torch.equal(value, before[state]), f"{state} is not that of this process after compute"
    return result


def score_of_an_idle_process(rows: Rows) -> Result:
    """One process without a single row."""
    metric = MonoScore(8, 13)
    local = slice(0, 0) if rows.start else slice(0, N_ROWS)
    metric.update(some_embeddings(N_ROWS)[local], some_activations(N_ROWS, offset=3.0)[local])
    return {"score": metric.compute()}


def gradient_of(
    rows: Rows,
    activations: Tensor | SparseActivations,
    criterion: Callable[[Tensor, Tensor | SparseActivations], Tensor],
) -> Result:
    """Value, and gradient to embeddings and activations as dense rows, of the loss on local activations."""
    embeddings = some_embeddings(N_ROWS)[rows].requires_grad_()
    if isinstance(activations, SparseActivations):
        values = activations.values.clone().requires_grad_()
        loss = criterion(embeddings, activations.with_values(values))
    else:
        values = activations.clone().requires_grad_()
        loss = criterion(embeddings, values)
    loss.backward()
    gradient = values.grad
    if isinstance(activations, SparseActivations):
        gradient = activations.with_values(gradient).to_dense()
    return {"loss": loss.detach(), "rows: activations": gradient, "rows: embeddings": embeddings.grad}


def synced(embeddings: Tensor, activations: Tensor | SparseActivations) -> Tensor:
    return mono_loss(embeddings, activations, sync=True)


def loss_dense(rows: Rows) -> Result:
    return gradient_of(rows, some_activations(N_ROWS)[rows], synced)


def loss_with_minima_below_zero(rows: Rows) -> Result:
    return gradient_of(rows, some_activations(N_ROWS, offset=-0.7)[rows], MonoLoss(some_embeddings().mean(0)))


def loss_with_ties(rows: Rows) -> Result:
    """Many rows of both processes at a minimum that is not 0."""
    return gradient_of(rows, some_activations(N_ROWS, offset=0.25)[rows], MonoLoss())


def loss_sparse(rows: Rows) -> Result:
    return gradient_of(rows, fixed_k(some_activations(N_ROWS)[rows]), MonoLoss())


def uneven_codes(rows: Rows, sign: float) -> SparseActivations:
    """Latents stored in every row of one process and few of the other, in every row of both, and with ties."""
    dense = some_activations(N_ROWS)
    dense[:, 9] = torch.where(torch.arange(N_ROWS) < N_FIRST, 0.5 + dense[:, 9], dense[:, 9])
    dense[:, 10] = 0.25 + dense[:, 10].clamp(min=0.1)  # in every row, with ties
    dense[:, 11] = torch.where(torch.arange(N_ROWS) < N_FIRST, 0.0, 0.5 + dense[:, 11])
    return ragged(sign * dense[rows])


def loss_sparse_in_every_row(rows: Rows) -> Result:
    return gradient_of(rows, uneven_codes(rows, 1.0), MonoLoss())


def loss_dense_in_one_and_sparse_in_the_other(rows: Rows) -> Result:
    """Dense codes in the first process and sparse ones in the second, as if only the latter had few entries."""
    activations = some_activations(N_ROWS).clamp(min=0)
    result = {}
    for name, criterion in {"batch": MonoLoss(), "memory": MonoLoss(memory=0.8)}.items():
        for shift in (0.0, 0.5):  # latents that are active in every row have a minimum above 0
            local = torch.where(activations > 0, activations + shift, 0.0)[rows]
            gradients = gradient_of(rows, ragged(local) if rows.start else local, criterion)
            gradients["rows: activations"] = gradients["rows: activations"] * (local > 0)
            result |= {f"{key} {name} {shift}": value for key, value in gradients.items()}
    return result


def loss_sparse_below_zero(rows: Rows) -> Result:
    return gradient_of(rows, uneven_codes(rows, -1.0), MonoLoss())


def loss_with_memory(rows: Rows) -> Result:
    """Three steps: the memory afterwards, and the gradient of the last step."""
    result = {}
    for name, codes in {"dense": lambda z: z, "sparse": ragged}.items():
        criterion = MonoLoss(some_embeddings().mean(0), memory=0.8)
        for step in range(3):
            last = gradient_of(rows, codes(some_activations(N_ROWS, step).clamp(min=0)[rows]), criterion)
        state = {f"{name} {key}": value for key, value in criterion.state_dict().items()}
        result |= {f"{key} {name}": value for key, value in last.items()} | state
    return result


def loss_in_eval(rows: Rows) -> Result:
    """The loss of the local batch alone, in one process too."""
    criterion = MonoLoss(memory=0.8).eval()
    embeddings, activations = some_embeddings(N_ROWS), some_activations(N_ROWS)
    local = criterion(embeddings[rows], activations[rows])
    assert torch.equal(local, mono_loss(embeddings[rows], activations[rows]))
    return {"steps": criterion.step}


def loss_with_an_idle_process(rows: Rows) -> Result:
    """All rows in the first process; that the second has a gradient (of no rows) at all keeps both in step."""
    local = slice(0, 0) if rows.start else slice(0, N_ROWS)
    embeddings = some_embeddings(N_ROWS)[local].requires_grad_()
    activations = some_activations(N_ROWS, offset=0.5)[local].requires_grad_()
    loss = MonoLoss()(embeddings, activations)
    loss.backward()
    return {"loss": loss.detach(), "rows: activations": activations.grad, "rows: embeddings": embeddings.grad}


def loss_in_a_group_of_one(rows: Rows) -> Result:
    """Rank 0 alone in a group has its local loss; rank 1, which is not in it, is refused."""
    if dist.is_initialized():
        group = dist.new_group([0])
        embeddings, activations = some_embeddings(N_ROWS)[rows], some_activations(N_ROWS)[rows]
        criterion = MonoLoss(process_group=group)
        if dist.get_rank() == 0:
            assert torch.equal(criterion(embeddings, activations), mono_loss(embeddings, activations))
        else:
            with pytest.raises(InputError, match="process_group: got a group without this process"):
                criterion(embeddings, activations)
    return {}


def loss_of_float32_that_one_process_sums_differently(rows: Rows) -> Result:
    """More rows than one product takes in one process only, and values below 0 in the other only."""
    generator = torch.Generator().manual_seed(0)
    n, first = 8300, 8250
    embeddings, z = torch.randn(n, 3, generator=generator), torch.rand(n, 2, generator=generator)
    z = torch.where(z > 0.5, z, 0.0)
    z[first:] = -z[first:]
    local = slice(first, n) if rows.start else slice(0, n if rows.stop == N_ROWS else first)
    result = {}
    for name, codes in {"dense": lambda z: z, "sparse": ragged}.items():
        result[name] = mono_loss(embeddings[local], codes(z[local]), sync=True)
    return result


def trained_layer(rows: Rows) -> Result:
    """A linear layer under DistributedDataParallel: its gradients, and its weights after four steps with memory."""
    result = {}
    for memory in (0.0, 0.8):
        torch.manual_seed(0)
        layer = nn.Linear(8, 13, dtype=torch.float64)
        model = nn.Sequential(layer, nn.ReLU())
        model = DistributedDataParallel(model) if dist.is_initialized() else model
        criterion = MonoLoss(memory=memory)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in range(4):
            embeddings = some_embeddings(N_ROWS, seed=step)[rows]
            optimizer.zero_grad()
            criterion(embeddings, model(embeddings)).backward()
            if step == 0:
                result |= {f"{memory} {name} gradient": p.grad.clone() for name, p in layer.named_parameters()}
            optimizer.step()
        result |= {f"{memory} {name}": parameter.detach() for name, parameter in layer.named_parameters()}
    return result


def regularized_layer(rows: Rows) -> Result:
    """A model under DistributedDataParallel with MonoLoss on a layer inside: gradients, and weights after four steps.

    The weights of the task loss make up for the processes' unequal numbers of rows.
    """
    result = {}
    for memory in (0.0, 0.8):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).double()
        model = DistributedDataParallel(net) if dist.is_initialized() else net
        n_processes = dist.get_world_size() if dist.is_initialized() else 1
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with ActivationRegularizer(model, "1", MonoLoss(memory=memory)) as regularizer:
            for step in range(4):
                images = some_embeddings(N_ROWS, seed=10 + step).reshape(N_ROWS, 1, 2, 4)[rows]
                optimizer.zero_grad()
                task = model(images).square().mean(1).sum() * n_processes / N_ROWS
                (task + 5.0 * regularizer(some_embeddings(N_ROWS, seed=step)[rows])).backward()
                if step == 0:
                    result |= {f"{memory} {name} gradient": p.grad.clone() for name, p in net.named_parameters()}
                optimizer.step()
        result |= {f"{memory} {name}": parameter.detach() for name, parameter in net.named_parameters()}
    return result


SCENARIOS: dict[str, Callable[[Rows], Result]] = {
    scenario.__name__: scenario
    for scenario in (
        score,
        purity_and_reconstruction,
        score_of_an_idle_process,
        loss_dense,
        loss_with_minima_below_zero,
        loss_with_ties,
        loss_sparse,
        loss_sparse_in_every_row,
        loss_dense_in_one_and_sparse_in_the_other,
        loss_sparse_below_zero,
        loss_with_memory,
        loss_in_eval,
        loss_with_an_idle_process,
        loss_in_a_group_of_one,
        loss_of_float32_that_one_process_sums_differently,
        trained_layer,
        regularized_layer,
    )
}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # no name of this machine has to be looked up
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=60), world_size=2, rank=rank)
    rows = slice(0, N_FIRST) if rank == 0 else slice(N_FIRST, N_ROWS)
    results = {name: scenario(rows) for name, scenario in SCENARIOS.items()}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
