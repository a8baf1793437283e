"""MonoLoss with memory: scores of decayed sums, and gradients times ``(1 - g^t) / (1 - g)``."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from monoloss.losses import MonoLoss
from monoloss.sparse import SparseActivations
from support.embeddings import LAYOUTS, as_dense, some_batches, some_embeddings
from support.mono_checks import check_memory_keeps_scores_in_range, gradients

G = 0.7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("with_center", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_scores_decayed_sums(layout, with_center, dtype):
    center = some_embeddings(dtype=dtype).mean(0) if with_center else None
    criterion, seen = MonoLoss(center=center, memory=G), []
    for embeddings, dense in some_batches(5, dtype):
        activations = LAYOUTS[layout](dense)
        seen.append((embeddings, as_dense(activations)))
        loss, scores = criterion.detailed(embeddings, activations)
        expected = reference.memory_scores(seen, G, center)
        atol = 1e-12 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(scores.double().numpy(), expected, rtol=0, atol=atol)
        np.testing.assert_allclose(float(loss), 1 - np.nanmean(expected), rtol=0, atol=atol)


def test_memory_keeps_scores_in_range():
    check_memory_keeps_scores_in_range()


def numeric_gradient(criterion: MonoLoss, embeddings: Tensor, values: Tensor, layout: str) -> Tensor:
    """Central differences of the value; each call starts from the same memory."""

    def value(changed: Tensor) -> float:
        activations = LAYOUTS[layout](values)
        if isinstance(activations, SparseActivations):
            activations = activations.with_values(changed[activations.rows, activations.flat_indices])
        else:
            activations = changed
        return float(copy.deepcopy(criterion)(embeddings, activations))

    gradient, step = torch.zeros_like(values), 1e-6
    for row, latent in values.nonzero().tolist():
        above, below = values.clone(), values.clone()
        above[row, latent] += step
        below[row, latent] -= step
        gradient[row, latent] = (value(above) - value(below)) / (2 * step)
    return gradient


@pytest.mark.parametrize("with_center", [False, True])
@pytest.mark.parametrize("layout", ["dense", "ragged"])
def test_gradient_of_step_t_is_the_numeric_one_times_the_steps_remembered(layout, with_center):
    center = some_embeddings().mean(0) if with_center else None
    criterion = MonoLoss(center=center, memory=G)
    for t, (embeddings, dense) in enumerate(some_batches(4, n=4), start=1):
        values = dense[:, 9:]
        numeric = numeric_gradient(criterion, embeddings, values, layout)
        leaf = values.clone().requires_grad_()
        criterion(embeddings, LAYOUTS[layout](leaf)).backward()
        expected = numeric * (1 - G**t) / (1 - G)
        # a rounding of the value is eps / step = 2e-10 in the difference, and more after the factor of `expected`
        torch.testing.assert_close(torch.where(values != 0, leaf.grad, 0.0), expected, rtol=1e-6, atol=1e-8)
        assert expected.abs().max() > 1e-3
        assert int(criterion.step) == t


def remembered_loss(seen: list[tuple[Tensor, Tensor]], embeddings: Tensor, values: Tensor) -> Tensor:
    """The same formulas for autograd: faded sums of the batches seen plus this one."""
    u = v = w = 0
    for e, z in [*seen, (embeddings, values)]:
        h = e / e.norm(dim=1, keepdim=True)
        u, v, w = G * u + z.sum(0), G * v + z.square().sum(0), G * w + z.T @ h
    took_part = (u > 0) & (u.square() >= 2 * v)
    scores = (w.square().sum(1) - v)[took_part] / (u.square() - v)[took_part]
    return 1 - scores.mean()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_with_memory_are_those_of_autograd(layout):
    criterion, seen = MonoLoss(memory=G), []
    for t, (embeddings, dense) in enumerate(some_batches(4), start=1):
        activations = LAYOUTS[layout](dense)
        gain = (1 - G**t) / (1 - G)
        of_embeddings, of_dense = gradients(partial(remembered_loss, seen), embeddings, as_dense(activations))
        leaf = embeddings.clone().requires_grad_()
        if isinstance(activations, SparseActivations):
            values = activations.values.clone().requires_grad_()
            criterion(leaf, activations.with_values(values)).backward()
            expected = of_dense[activations.rows, activations.flat_indices].reshape(values.shape)
        else:
            values = activations.clone().requires_grad_()
            criterion(leaf, values).backward()
            expected = of_dense
        torch.testing.assert_close(values.grad, gain * expected, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(leaf.grad, gain * of_embeddings, rtol=1e-9, atol=1e-13)
        seen.append((embeddings, as_dense(activations)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast_changes_no_bit_with_memory(layout):
    def run(*, forward: bool, backward: bool) -> list[Tensor]:
        criterion, got = MonoLoss(memory=G), []
        for embeddings, dense in some_batches(3, torch.float32):
            leaf = dense.clone().requires_grad_()
            activations = LAYOUTS[layout](leaf)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward):
                loss = criterion(embeddings, activations)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward):
                loss.backward()
            got += [loss.detach(), leaf.grad, *(buffer.clone() for buffer in criterion.buffers())]
        return got

    plain = run(forward=False, backward=False)
    for backward in (False, True):
        for one, other in zip(run(forward=True, backward=backward), plain, strict=True):
            assert torch.equal(one, other)


def test_memory_follows_to_a_device_without_float64():
    def to_mps(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("no float64 here")
        return tensor

    criterion = MonoLoss(memory=0.5, center=torch.zeros(4))
    criterion(torch.randn(6, 4), torch.rand(6, 3))
    before = criterion.memory_u.clone()
    criterion._apply(to_mps)
    assert torch.equal(criterion.memory_u, before)
