"""Checks of JumpReLU and Vanilla on stored entries against the same SAEs on dense codes.

The tests call them on the library as it is; ``behaviour/test_wrong_saes.py`` calls the same ones on
the library with one fault put in, and sees each raise AssertionError.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monoloss.evaluation.examples import ExtremeRows
from monoloss.functional import moments, sparsity
from monoloss.functional.loss import mono_loss
from monoloss.functional.moments import unit_rows
from monoloss.functional.purity import class_counts
from monoloss.functional.streaming import add_batch
from monoloss.losses import MonoLoss
from monoloss.sae import model
from monoloss.sae.config import InputScaling
from monoloss.sae.model import SaeOutput, SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.sparse import Activations, SparseActivations
from support.saes import generator_of, some_config, some_rows

D, M, N = 24, 96, 150
BOTH = ("jump_relu", "vanilla")


def make_sparse_(sae: SparseAutoencoder, rows: Tensor, n_active: int) -> SparseAutoencoder:
    """Move thresholds or biases so that just so many entries are above them; the same distance for all latents."""
    with torch.no_grad():
        pre = sae.pre_activations(sae.scale(rows).scaled)
        excess = pre - sae.activation.threshold if sae.config.variant == "jump_relu" else pre
        around = excess.double().flatten().topk(n_active + 1).values[-2:]
        if sae.config.variant == "jump_relu":
            sae.activation.threshold += around.mean()
        else:
            sae.encoder_bias -= around.mean()
    return sae


def cut_in_gaps_(sae: SparseAutoencoder, rows: Tensor) -> SparseAutoencoder:
    """Move each bias so that 3 to 8 rows are active, none of them by a hair: that would magnify any rounding."""
    with torch.no_grad():
        highest = sae.pre_activations(sae.scale(rows).scaled).topk(9, dim=0).values
        widest = highest.diff(dim=0)[2:].argmin(0) + 3  # the first that is not active
        sae.encoder_bias -= highest.gather(0, widest[None]).squeeze(0) * (1 + 1e-3)
    return sae


def some_sparse_sae(
    variant: str, n_active: int | None = None, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[SparseAutoencoder, Tensor]:
    """A SAE with rows of which so many entries are active, or few; no two parameters of a kind are equal."""
    if variant == "jump_relu":
        options = {"bandwidth": 0.1, "l0_weight": 0.3} | options
    config, generator = some_config(variant, M, **options), generator_of(7)
    mean = torch.full((D,), 0.01) if config.inputs.center else None
    sae, rows = SparseAutoencoder(D, config, input_mean=mean).double(), some_rows(N, d=D)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.05)
    sae.constrain_()
    if variant == "vanilla" and n_active is None:
        cut_in_gaps_(sae, rows)
    else:
        make_sparse_(sae, rows, n_active or N * M // 40)
    return sae.to(dtype), rows.to(dtype)


def pass_of(sae: SparseAutoencoder, rows: Tensor, *, sparse: bool) -> SaeOutput:
    """One pass, with the codes in this layout however many there are."""
    scaled, target, shift, scale = sae.scale(rows)
    codes, pre_activations = sae.activate(scaled, sparse_up_to=1.0 if sparse else 0.0)
    assert isinstance(codes, SparseActivations) == sparse
    return SaeOutput(codes, sae.decode(codes) * scale + shift, target, pre_activations, scale, scaled)


def gradients_of(
    sae: SparseAutoencoder, output: SaeOutput, rows: Tensor, mono: MonoLoss | None = None
) -> dict[str, Tensor]:
    """Of the whole loss, with its value; no autocast around the backward pass."""
    loss = objective(sae, output).total
    if mono is not None:
        mono.reset()
        for part in (unit_rows(rows.flip(0)), unit_rows(rows)):  # memory: the second sees the first
            loss = loss + 0.1 * mono(part, output.codes)
    with torch.autocast("cpu", enabled=False):
        found = torch.autograd.grad(loss, list(sae.parameters()))
    return dict(zip((name for name, _ in sae.named_parameters()), found, strict=True)) | {"loss": loss.detach()}


def check_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], allowed: float) -> None:
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        error = float((got[name] - gradient).norm() / gradient.norm())
        assert error <= allowed, f"{name}: {error}"


def check_a_step_has_the_gradients_of_a_dense_step(
    variant: str, scaling: InputScaling | None = None, mono: MonoLoss | None = None, **options: Any
) -> None:
    for dtype, allowed in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        inputs = scaling or InputScaling(standardise=True)
        sae, rows = some_sparse_sae(variant, dtype=dtype, inputs=inputs, **options)
        output = sae(rows)
        assert isinstance(output.codes, SparseActivations)
        expected = gradients_of(sae, pass_of(sae, rows, sparse=False), rows, mono)
        check_same_gradients(gradients_of(sae, output, rows, mono), expected, allowed)


def check_the_switch(variant: str) -> None:
    """One entry more than the constant allows, and codes are dense; either way the gradients are those of both.

    Vanilla has entries above 0 by a hair, 5e-5: MonoLoss of a latent of such a row and another magnifies any rounding.
    """
    most, allowed = int(model._SPARSE_UP_TO * N * M), 1e-10 if variant == "jump_relu" else 1e-7
    for n_stored in (most - 40, most, most + 1, most + 40):
        sae, rows = some_sparse_sae(variant, n_stored)
        if variant == "jump_relu":  # so many are above the lowest that is stored
            with torch.no_grad():
                sae.activation.threshold += 0.501 * sae.config.bandwidth
        output = sae(rows)
        assert isinstance(output.codes, SparseActivations) == (n_stored <= most), f"{n_stored} entries"
        if isinstance(output.codes, SparseActivations):
            assert len(output.codes.values) == n_stored
        got = gradients_of(sae, output, rows, MonoLoss())
        for sparse in (True, False):
            check_same_gradients(got, gradients_of(sae, pass_of(sae, rows, sparse=sparse), rows, MonoLoss()), allowed)


NEAR_ONLY, NEAR_OR_ACTIVE, ALWAYS_ACTIVE, NEVER_STORED = range(4)


def sae_with_stored_zeros() -> tuple[SparseAutoencoder, Tensor]:
    """A JumpReLU with one latent of each kind named above, three of them stored in every row."""
    sae, rows = some_sparse_sae("jump_relu")
    bandwidth = sae.config.bandwidth
    with torch.no_grad():
        sae.encoder_weight[:, :4] = 0.0
        sae.encoder_weight[0, :3] = 0.05 * bandwidth / float(sae.scale(rows).scaled[:, 0].abs().max())
        sae.encoder_bias[:4] = 2.0
        sae.activation.threshold[:4] = 2.0 + bandwidth * torch.tensor([0.2, 0.0, -1.0, 9.0])
    return sae, rows


def check_stored_zeros_are_not_active() -> None:
    """Every count, sum, score and gradient of stored codes is that of the dense ones."""
    sae, rows = sae_with_stored_zeros()
    codes, dense = pass_of(sae, rows, sparse=True).codes.detach(), pass_of(sae, rows, sparse=False).codes.detach()
    stored = codes.by_latent.offsets.diff()
    assert stored[:4].tolist() == [N, N, N, 0]
    counts = (dense > 0).sum(0)
    assert counts[NEAR_ONLY] == 0
    assert 0 < counts[NEAR_OR_ACTIVE] < N
    assert int((codes.values == 0).sum()) > N
    assert torch.equal(codes.to_dense(), dense)

    assert torch.equal(sparsity.activation_counts(codes), counts)
    torch.testing.assert_close(sparsity.l1(codes), sparsity.l1(dense), rtol=1e-13, atol=0)
    assert sum(len(part.rows) for part in sparsity.active_entries(codes)) == int(counts.sum())
    sae.samples_since_active.fill_(3)
    sae.count_activity_(codes)
    assert torch.equal(sae.samples_since_active, torch.where(counts > 0, 0, 3 + N))

    labels = torch.arange(N) % 5
    one, other = class_counts(codes, labels, 5), class_counts(dense, labels, 5)
    assert torch.equal(one.rows, other.rows)
    highest = ExtremeRows(M, N, largest=True), ExtremeRows(M, N, largest=True)
    for collected, form in zip(highest, (codes, dense), strict=True):
        collected.add(form, 0)
    assert torch.equal(highest[0].examples().rows, highest[1].examples().rows)

    h = unit_rows(rows)
    for name in ("n", "h_sum", "b", "u", "v", "w"):
        got, expected = (getattr(moments.batch_moments(h, form), name) for form in (codes, dense))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=name)
        got, expected = (getattr(add_batch(moments.MonoMoments.zeros(D, M), h, form), name) for form in (codes, dense))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=name)
    check_mono_loss_of_stored_zeros(rows, codes, dense)


def check_mono_loss_of_stored_zeros(rows: Tensor, codes: SparseActivations, dense: Tensor) -> None:
    """Value, and gradient at each stored entry, zero or not; with memory that of the second of two steps."""
    for memory in (0.0, 0.9):
        found = []
        for form in (codes, dense):
            criterion = MonoLoss(memory=memory)
            criterion(rows.flip(0), form)
            leaf = (form.values if isinstance(form, SparseActivations) else form).clone().requires_grad_()
            again: Activations = form.with_values(leaf) if isinstance(form, SparseActivations) else leaf
            loss = criterion(rows, again)
            found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
        (value, of_stored), (expected, of_dense) = found
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        at_entries = of_dense[codes.rows, codes.flat_indices]
        torch.testing.assert_close(of_stored, at_entries, rtol=1e-9, atol=1e-14)
        near = codes.values == 0
        assert at_entries[near].norm() > 0.01 * at_entries.norm()
    assert float(mono_loss(rows, codes)) == float(mono_loss(rows, codes, sync=True))  # without processes the same call
