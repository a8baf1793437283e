"""Device of sums, dtype of products, autocast and norms in float64."""

from __future__ import annotations

import pytest
import torch

from monoloss.precision import autocast_off, product_dtype, row_norms, sums_device
from support import bounds


def test_sums_are_on_the_device_of_the_data_but_for_mps():
    assert sums_device(torch.device("cpu")) == torch.device("cpu")
    assert sums_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert sums_device(torch.device("mps")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([], torch.float32),
        ([torch.float16], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32, torch.bfloat16], torch.float32),
        ([torch.float16, torch.float64], torch.float64),
        ([torch.float64, torch.float32], torch.float64),
    ],
)
def test_products_run_in_float32_at_least(dtypes, expected):
    assert product_dtype(*dtypes) == expected


def test_autocast_is_off_inside_and_on_again_outside():
    left, right = torch.ones(2, 3), torch.ones(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (left @ right).dtype == torch.bfloat16
        with autocast_off(torch.device("cpu")):
            assert (left @ right).dtype == torch.float32
        assert (left @ right).dtype == torch.bfloat16


@pytest.mark.parametrize("n", [0, 1, 512, 1100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_are_summed_in_float64(n, dtype):
    rows = torch.randn(n, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    norms = row_norms(rows)
    assert norms.dtype == torch.float64
    assert norms.shape == (n,)
    expected = rows.double().square().sum(1).sqrt()
    bounds.assert_within(norms, expected, bounds.of_sum(8, expected, torch.float64))


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_norms_of_float32_rows_neither_overflow_nor_underflow(size):
    rows = torch.tensor([[3.0, 4.0]]) * size
    assert float(row_norms(rows)) == pytest.approx(5.0 * size, rel=1e-6, abs=0)
    assert float(rows.square().sum(1).sqrt()) != pytest.approx(5.0 * size, rel=1e-6, abs=0)  # as float32 would
