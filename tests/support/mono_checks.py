"""Checks of score and loss against references that share no code with the library.

The tests call them on the library as it is; ``behaviour/test_wrong_scores.py`` calls the same ones on
the library with one fault put in, and sees each raise AssertionError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import reference
from monoloss.functional.loss import mono_loss
from monoloss.functional.score import mono_score
from monoloss.losses import MonoLoss
from monoloss.metrics import MonoScore
from monoloss.sparse import SparseActivations
from support.embeddings import as_dense, rows_of, some_activations, some_embeddings

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
MIN_N_EFF = 1.1  # below it a score hangs on the last digits of one row


def assert_scores(scores: Tensor, embeddings: Any, activations: Any, center: Any = None, atol: float = 1e-12) -> None:
    """The scores are those of the pairwise loop on the same values, NaN for the same latents."""
    dense = as_dense(activations)
    expected = reference.mono_score_pairwise(embeddings, dense, center)
    assert scores.dtype == torch.float64
    np.testing.assert_array_equal(np.isnan(scores.numpy()), np.isnan(expected))
    kept = ~np.isnan(expected) & (reference.n_eff(dense) >= MIN_N_EFF)
    np.testing.assert_allclose(scores.numpy()[kept], expected[kept], rtol=0, atol=atol)


def assert_same_scores(one: Tensor, other: Tensor, activations: Any, atol: float = 1e-12) -> None:
    """Two ways to the scores of these activations: NaN for the same latents, and equal but for rounding.

    Rounding is magnified by ``1 / (1 - 1 / n_eff)``, so that latents of a single row, nearly, are left out.
    """
    assert torch.equal(one.isnan(), other.isnan())
    kept = ~one.isnan() & torch.from_numpy(reference.n_eff(as_dense(activations)) >= MIN_N_EFF)
    torch.testing.assert_close(one[kept], other[kept], rtol=0, atol=atol)


def streamed(embeddings: Tensor, activations: Any, sizes: list[int], **kwargs: Any) -> MonoScore:
    """A metric that has seen the rows in batches of these sizes."""
    assert sum(sizes) == embeddings.shape[0]
    metric = MonoScore(embeddings.shape[1], activations.shape[1], **kwargs)
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        metric.update(embeddings[rows], rows_of(activations, rows))
        start += size
    return metric


def check_score_of_one_call() -> None:
    embeddings, activations = some_embeddings(), some_activations()
    assert_scores(mono_score(embeddings, activations), embeddings, activations)


def check_score_while_the_minimum_falls() -> None:
    """Batches whose minimum is lower each time, so that the sums so far are re-based each time."""
    embeddings = some_embeddings(90)
    activations = some_activations(90) + torch.linspace(3.0, 0.0, 3, dtype=torch.float64).repeat_interleave(30)[:, None]
    assert_scores(streamed(embeddings, activations, [30, 30, 30]).compute(), embeddings, activations)


def check_score_of_float32_at_offset_100() -> None:
    embeddings = some_embeddings(400, dtype=torch.float32)
    activations = some_activations(400, dtype=torch.float32, offset=100.0)
    assert_scores(mono_score(embeddings, activations), embeddings, activations, atol=1e-5)


def check_mean_score() -> None:
    embeddings, activations = some_embeddings(), some_activations()
    expected = np.nanmean(reference.mono_score_pairwise(embeddings, activations))
    metric = streamed(embeddings, activations, [64], average="mean")
    np.testing.assert_allclose(float(metric.compute()), expected, rtol=0, atol=1e-10)


def check_loss_value(activations: Any = None, center: Any = None, atol: float = 1e-10) -> None:
    activations = some_activations() if activations is None else activations
    embeddings = some_embeddings(activations.shape[0], dtype=activations.dtype)
    expected = reference.mono_loss(embeddings, as_dense(activations), center)
    loss = mono_loss(embeddings, activations, center=center)
    assert loss.shape == ()
    np.testing.assert_allclose(float(loss), expected, rtol=0, atol=atol)


def pairwise_loss(embeddings: Tensor, dense: Tensor, center: Tensor | None = None) -> Tensor:
    """The loss from the definition over pairs, differentiated by autograd; a minimum of 0 is held constant.

    ``amin`` shares its gradient equally among ties, as the closed form must.
    """
    rows = embeddings if center is None else embeddings - center
    h = rows / rows.norm(dim=1, keepdim=True)
    lowest = dense.amin(0)
    a = dense - torch.where(lowest == 0, lowest.detach(), lowest)
    defined = (a.detach() > 0).sum(0) >= 2
    a = a[:, defined]
    others = 1.0 - torch.eye(len(h), dtype=h.dtype)
    scores = torch.einsum("ij,il,lj->j", a, h @ h.T * others, a) / torch.einsum("ij,il,lj->j", a, others, a)
    return 1.0 - scores.mean()


def gradients(loss_function: Any, *tensors: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return list(torch.autograd.grad(loss_function(*leaves), leaves))


def check_gradient(activations: Any, center: Tensor | None = None, rtol: float = 1e-9) -> None:
    """Value and gradient of the closed form are those of autograd through the definition over pairs."""
    embeddings = some_embeddings(activations.shape[0])
    if isinstance(activations, SparseActivations):
        values = activations.values

        def ours(e: Tensor, v: Tensor) -> Tensor:
            return mono_loss(e, activations.with_values(v), center=center)

        def by_pairs(e: Tensor, v: Tensor) -> Tensor:
            return pairwise_loss(e, activations.with_values(v).to_dense(), center)
    else:
        values = activations

        def ours(e: Tensor, v: Tensor) -> Tensor:
            return mono_loss(e, v, center=center)

        def by_pairs(e: Tensor, v: Tensor) -> Tensor:
            return pairwise_loss(e, v, center)

    torch.testing.assert_close(ours(embeddings, values), by_pairs(embeddings, values), rtol=0, atol=1e-12)
    for got, expected in zip(gradients(ours, embeddings, values), gradients(by_pairs, embeddings, values), strict=True):
        assert expected.abs().max() > 1e-4  # or nothing would be compared
        torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-13)


def check_gradient_where_the_minimum_moves() -> None:
    check_gradient(some_activations(offset=-0.8)[:, 3:])


def check_gradient_above_a_floor() -> None:
    check_gradient(some_activations()[:, 9:])


def check_gradient_of_floors_beside_moving_minima() -> None:
    check_gradient(some_activations(40))


def check_memory_keeps_scores_in_range(n_steps: int = 300, atol: float = 1e-6) -> None:
    """Latents that fire once in 500 rows: with the rule ``u^2 >= 2 v`` no score leaves [-1, 1]."""
    generator = torch.Generator().manual_seed(3)
    criterion = MonoLoss(memory=0.9)
    seen = torch.zeros(20, dtype=torch.bool)
    for _ in range(n_steps):
        embeddings = torch.randn(64, 4, generator=generator)
        active = torch.rand(64, 20, generator=generator) < 1 / 500
        activations = torch.where(active, torch.rand(64, 20, generator=generator) + 0.05, 0.0).requires_grad_()
        loss, scores = criterion.detailed(embeddings, activations)
        loss.backward()
        defined = ~torch.isnan(scores)
        seen |= defined
        assert bool((scores[defined].abs() <= 1.0 + atol).all()), f"scores as far as {scores[defined].abs().max()}"
        assert 0.0 - atol <= float(loss.detach()) <= 2.0 + atol
        assert bool(activations.grad.isfinite().all())
    assert bool(seen.all())  # every latent did take part
