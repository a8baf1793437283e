"""Checks of tensors: what passes, and the sentence for what does not."""

from __future__ import annotations

import pytest
import torch

from monoloss import MonoLoss, SparseActivations, SparseAutoencoder, TopKConfig, mono_loss, mono_score
from monoloss.checks.tensors import check_matrix, check_rows, check_same_device, check_vector
from monoloss.errors import InputError

ROWS = torch.ones(3, 2)


def test_right_tensors_pass():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_matrix("x", ROWS.to(dtype), rows=3, width=2)
    check_matrix("x", torch.ones(0, 0))
    check_vector("x", torch.ones(2), 2)
    check_vector("x", torch.ones(5))
    check_rows(ROWS, torch.ones(3, 7), torch.ones(2))
    check_rows(ROWS, SparseActivations.from_dense(torch.ones(3, 7)))
    check_rows(torch.ones(0, 2), torch.ones(0, 7))
    check_same_device("x", torch.device("cpu"), "y", torch.device("cpu"))


@pytest.mark.door
@pytest.mark.parametrize(
    ("check", "text"),
    [
        (
            lambda: check_matrix("x", [[1.0]], width=2),
            "x: got list; expected a floating-point tensor of shape (n, 2)",
        ),
        (
            lambda: check_matrix("x", torch.ones(3, 2, dtype=torch.int64)),
            "x: got dtype torch.int64; expected a floating-point tensor of shape (n, any width)",
        ),
        (
            lambda: check_matrix("x", torch.ones(3), rows=3),
            "x: got shape (3,); expected a floating-point tensor of shape (3, any width)",
        ),
        (
            lambda: check_matrix("x", ROWS, rows=4, width=2),
            "x: got shape (3, 2); expected a floating-point tensor of shape (4, 2)",
        ),
        (lambda: check_vector("x", 1.0, 2), "x: got float; expected a floating-point tensor of shape (2,)"),
        (
            lambda: check_vector("x", torch.ones(3), 2),
            "x: got shape (3,), dtype torch.float32; expected a floating-point tensor of shape (2,)",
        ),
        (
            lambda: check_vector("x", ROWS),
            "x: got shape (3, 2), dtype torch.float32; expected a floating-point tensor of shape (any width,)",
        ),
        (lambda: check_vector("x", torch.tensor([1.0, torch.nan])), "x: got NaN or infinity; expected finite numbers"),
        (
            lambda: check_rows(torch.ones(3, 0), ROWS),
            "embeddings: got shape (3, 0); expected a width of at least 1",
        ),
        (lambda: check_rows(ROWS, torch.ones(2, 7)), "activations: got 2 rows; expected as many as embeddings has, 3"),
        (
            lambda: check_rows(ROWS, SparseActivations.from_dense(torch.ones(2, 7))),
            "activations: got 2 rows; expected as many as embeddings has, 3",
        ),
        (
            lambda: check_rows(ROWS, ROWS, torch.ones(3)),
            "center: got shape (3,), dtype torch.float32; expected a floating-point tensor of shape (2,)",
        ),
        (
            lambda: check_rows(ROWS, torch.ones(3, 7, device="meta")),
            "activations: got device meta; expected the device of embeddings, cpu",
        ),
    ],
)
def test_error_texts(check, text):
    with pytest.raises(InputError) as caught:
        check()
    assert str(caught.value) == text


ODD = {
    "layout torch.sparse_coo": lambda x: x.to_sparse(),
    "layout torch.sparse_csr": lambda x: x.to_sparse_csr(),
    "layout torch._mkldnn": lambda x: x.to_mkldnn(),
    "a nested tensor": lambda x: torch.nested.nested_tensor(list(x)),
    "a quantised tensor": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "dtype torch.float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
}
CALLS = {
    "embeddings": lambda x: mono_score(x, torch.ones(3, 2)),
    "activations": lambda x: mono_loss(ROWS, x),
    "inputs": lambda x: SparseAutoencoder(2, TopKConfig("topk", 4, 1)).encode(x),
    "values": lambda x: SparseActivations(x, torch.tensor([[0, 1]] * 3), 2),
    "center": lambda x: MonoLoss(center=x[0] if x.layout == torch.strided and not x.is_nested else x),
}


@pytest.mark.door
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors|quantize|Quantiz|TypedStorage).*")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("got", ODD)
def test_tensors_of_other_kinds_are_refused(got, name):
    try:
        odd = ODD[got](torch.ones(3, 2))
    except RuntimeError:
        pytest.skip("this build of torch makes no such tensor")
    with pytest.raises(InputError) as refused:
        CALLS[name](odd)
    assert str(refused.value).startswith(f"{name}: got {got}; expected ")


@pytest.mark.door
def test_no_latents_are_refused():
    with pytest.raises(InputError) as refused:
        mono_score(ROWS, ROWS[:, :0])
    assert str(refused.value) == "activations: got shape (3, 0); expected at least 1 latent"


@pytest.mark.door
def test_tensors_without_values_are_refused():
    with torch.device("meta"), pytest.raises(InputError) as refused:
        mono_score(torch.ones(3, 2), torch.ones(3, 2))
    assert str(refused.value) == (
        "activations: got a tensor without values, on the meta device; expected one with values"
    )
