"""SparseActivations: its parts, copies and dense form, its shared structure, and the codes that it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import monoloss.sparse.activations
from monoloss.errors import InputError
from monoloss.functional.loss import mono_loss
from monoloss.sparse import SparseActivations
from monoloss.sparse.activations import offsets_of_sorted_rows
from support.embeddings import fixed_k, ragged, some_activations
from support.sparse_codes import factors, integers, with_gaps


def test_parts_and_copies():
    codes = with_gaps()
    assert codes.shape == (5, 5)
    assert len(codes) == 5
    assert (codes.dtype, codes.device.type) == (torch.float64, "cpu")
    assert codes.rows.tolist() == [1, 1, 3, 3, 3]
    assert fixed_k(some_activations(3)).rows.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert repr(codes) == "SparseActivations(5 rows, 5 latents, 5 entries, torch.float64)"
    dense = torch.zeros(5, 5, dtype=torch.float64)
    for row, latent, value in zip(codes.rows, codes.flat_indices, codes.flat_values, strict=True):
        dense[row, latent] = value
    for same in (codes, copy.deepcopy(codes), pickle.loads(pickle.dumps(codes)), codes.to("cpu"), codes.detach()):
        assert torch.equal(same.to_dense(), dense)
    assert codes.to(torch.float32).to_dense().dtype == torch.float32
    assert not codes.with_values(codes.values.clone().requires_grad_()).detach().values.requires_grad


@pytest.mark.parametrize("shape", [(6, 13), (1, 4), (0, 4), (3, 1)])
def test_from_dense_and_back(shape):
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    codes = SparseActivations.from_dense(dense)
    assert torch.equal(codes.to_dense(), dense)
    assert bool((codes.values != 0).all())


def test_to_dense_and_from_dense_are_differentiable():
    dense = some_activations(5).requires_grad_()
    weights = torch.linspace(1, 2, dense.numel(), dtype=dense.dtype).view_as(dense)
    (gradient,) = torch.autograd.grad((ragged(dense).to_dense() * weights).sum(), dense)
    assert torch.equal(gradient, torch.where(dense != 0, weights, 0.0))


def test_offsets_of_sorted_rows():
    assert offsets_of_sorted_rows(integers(0, 0, 2), 4).tolist() == [0, 2, 2, 3, 3]


def test_structure_is_built_once_for_all_products_and_copies(monkeypatch):
    calls = []
    build = monoloss.sparse.activations._group_by_latent
    monkeypatch.setattr(monoloss.sparse.activations, "_group_by_latent", lambda codes: calls.append(1) or build(codes))
    dense = some_activations(20, dtype=torch.float32)
    codes = SparseActivations.from_dense(dense)  # as the library's own codes, these are not checked
    left, _ = factors(codes, dtype=torch.float32)
    loss = mono_loss(left, codes.with_values(codes.values.clone().requires_grad_()))
    loss.backward()
    mono_loss(left, codes.to(torch.float64))
    assert len(calls) == 1


REFUSED = [
    ([[1.0]], [[3]], 3, None, "indices: got index 3 in row 0; expected indices from 0 to 2"),
    ([[1.0, 1.0], [1.0, 1.0]], [[0, 1], [1, -1]], 3, None,
     "indices: got index -1 in row 1; expected indices from 0 to 2"),
    ([[1.0, 1.0], [1.0, 2.0]], [[0, 1], [2, 2]], 3, None,
     "indices: got index 2 twice in row 1; expected each index at most once in a row"),
    ([1.0, 1.0, 1.0], [1, 0, 1], 3, [0, 0, 3],
     "indices: got index 1 twice in row 1; expected each index at most once in a row"),
    ([1.0, 1.0], [1, 0], 3, [0, 2, 1, 2], "row_offsets: got 2 before 1 (row 1); expected offsets that never fall"),
    ([1.0, 1.0], [1, 0], 3, [0, 1],
     "row_offsets: got offsets from 0 to 1; expected offsets from 0 to the number of entries, 2"),
    ([1.0, 1.0], [1, 0], 3, [1, 2],
     "row_offsets: got offsets from 1 to 2; expected offsets from 0 to the number of entries, 2"),
    ([1.0, 1.0], [1, 0], 3, [[0, 2]],
     "row_offsets: got shape (1, 2), dtype torch.int64; expected an int64 tensor of shape (n + 1,)"),
    ([1.0, 1.0], [1, 0], 3, [0.0, 2.0],
     "row_offsets: got shape (2,), dtype torch.float32; expected an int64 tensor of shape (n + 1,)"),
    ([1.0], [0], 3, None, "values: got shape (1,); expected shape (n, k), or 1-D values with row_offsets"),
    ([[1.0]], [[0]], 3, [0, 1], "values: got shape (1, 1); expected shape (entries,) where row_offsets are given"),
    ([[1]], [[0]], 3, None, "values: got dtype torch.int64; expected a floating-point dtype"),
    ([[1.0]], [[0.0]], 3, None, "indices: got dtype torch.float32; expected torch.int64"),
    ([[1.0]], [[0, 1]], 3, None, "indices: got shape (1, 2); expected the shape of values, (1, 1)"),
    ([[1.0]], [[0]], 0, None, "n_latents: got 0; expected an integer at least 1"),
]  # fmt: skip


@pytest.mark.door
@pytest.mark.parametrize(("values", "indices", "n_latents", "offsets", "text"), REFUSED)
def test_codes_that_do_not_fit_are_refused(values, indices, n_latents, offsets, text):
    row_offsets = None if offsets is None else torch.tensor(offsets)
    with pytest.raises(InputError) as refusal:
        SparseActivations(torch.tensor(values), torch.tensor(indices), n_latents, row_offsets)
    assert str(refusal.value) == text


@pytest.mark.door
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c: c.with_values(torch.ones(4)), "values: got shape (4,); expected shape (5,)"),
        (lambda _: SparseActivations([[1.0]], [[0]], 2), "values: got list; expected a tensor"),
        (lambda c: SparseActivations(c.values, c.indices.to("meta"), 5, c.row_offsets),
         "indices: got device meta; expected the device of values, cpu"),
        (lambda c: SparseActivations(c.values, c.indices, 5, c.row_offsets.to("meta")),
         "row_offsets: got device meta; expected the device of values, cpu"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(call, text):
    with pytest.raises(InputError) as refusal:
        call(with_gaps())
    assert str(refusal.value).startswith(text)
