"""R2, explained variance, NMSE and MSE against loops; predicting the mean gives 0."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from monoloss.errors import InputError
from monoloss.functional import reconstruction
from monoloss.functional.reconstruction import ReconstructionQuality, ReconstructionSums, reconstruction_quality


def some_pair(seed: int, n: int = 50, d: int = 6, offset: float = 3.0) -> tuple[Tensor, Tensor]:
    """Inputs far from 0 whose dimensions vary by very different amounts, and an imperfect reconstruction."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-2, 1, d, dtype=torch.float64)
    x = offset + torch.randn(n, d, generator=generator, dtype=torch.float64) * spread
    return x, x + 0.3 * torch.randn(n, d, generator=generator, dtype=torch.float64) * spread


def assert_matches_reference(quality: ReconstructionQuality, x: Tensor, y: Tensor, rtol: float = 1e-12) -> None:
    for field in fields(ReconstructionQuality):
        name = {"r2": "r2_uniform"}.get(field.name, field.name)
        expected = getattr(reference, name)(x, y)
        np.testing.assert_allclose(float(getattr(quality, field.name)), expected, rtol=rtol, err_msg=name)


def test_matches_loops():
    x, y = some_pair(0)
    assert_matches_reference(reconstruction_quality(x, y), x, y)
    assert_matches_reference(reconstruction_quality(x.t().contiguous().t(), y), x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_summed_in_float64(dtype):
    x, y = (part.to(dtype) for part in some_pair(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quality = reconstruction_quality(x, y)
    assert quality.r2.dtype == torch.float64
    assert_matches_reference(quality, x, y)
    assert_matches_reference(reconstruction_quality(x, y.float()), x, y)


def test_offset_loses_no_digits():
    x, y = some_pair(2, n=400, offset=1e5)
    sums = ReconstructionSums.zeros(6)
    for part_x, part_y in zip(x.split(7), y.split(7), strict=True):
        sums = sums.merge(ReconstructionSums.of_batch(part_x, part_y))
    assert_matches_reference(sums.quality(), x, y, rtol=1e-9)
    # the raw second moment, shifted at the end, has lost them
    raw = sum((part.square().sum(0) for part in x.split(7)), torch.zeros(6, dtype=torch.float64)) - 400 * x.mean(0) ** 2
    exact = (x - x.mean(0)).square().sum(0)
    assert ((raw - exact).abs() / exact).max() > 1e-3
    assert ((sums.m2 - exact).abs() / exact).max() < 1e-8


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 50), max_size=4), scale=st.floats(1e-3, 1e3))
def test_order_split_and_unit_do_not_matter(seed, cuts, scale):
    x, y = some_pair(seed)
    whole = reconstruction_quality(x, y)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    bounds, sums = [0, *sorted(cuts), 50], ReconstructionSums.zeros(6)
    for start, stop in pairwise(bounds):
        part = order[start:stop]
        sums = sums.merge(ReconstructionSums.of_batch(x[part], y[part]))
    scaled = reconstruction_quality(x * scale, y * scale)
    for field in fields(ReconstructionQuality):
        expected = getattr(whole, field.name)
        torch.testing.assert_close(getattr(sums.quality(), field.name), expected, rtol=1e-10, atol=1e-12)
        unit = scale**2 if field.name == "mse" else 1.0
        torch.testing.assert_close(getattr(scaled, field.name), expected * unit, rtol=1e-10, atol=1e-12)


def test_blocks_do_not_change_the_sums(monkeypatch):
    x, y = some_pair(3)
    whole = ReconstructionSums.of_batch(x, y)
    monkeypatch.setattr(reconstruction, "_BLOCK_ELEMENTS", 40)
    blocks = ReconstructionSums.of_batch(x, y)
    for field in fields(ReconstructionSums):
        torch.testing.assert_close(getattr(blocks, field.name), getattr(whole, field.name), rtol=1e-12, atol=0)
    x[17] = 0.0
    with pytest.raises(InputError, match=r"row 17"):
        ReconstructionSums.of_batch(x, y)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_predicting_the_mean_gives_zero_and_perfection_one(offset):
    x, _ = some_pair(4, offset=offset)
    quality = reconstruction_quality(x, x.mean(0).expand_as(x))
    assert abs(quality.r2) < 1e-11
    assert abs(quality.explained_variance) < 1e-11
    perfect = reconstruction_quality(x, x)
    assert (perfect.r2, perfect.explained_variance, perfect.nmse, perfect.mse) == (1.0, 1.0, 0.0, 0.0)


def test_wrong_variants_are_seen():
    x, y = some_pair(5)
    quality = reconstruction_quality(x, y)
    error = (x - y).square()
    about_zero = (1 - error.sum(0) / x.square().sum(0)).mean()  # R2 about 0 instead of about the mean
    assert abs(about_zero - quality.r2) > 0.01
    mean = x.mean(0).expand_as(x)
    about_zero_of_mean = 1 - (x - mean).square().sum() / x.square().sum()
    assert about_zero_of_mean > 0.3  # where predicting the mean must be 0
    assert abs(reconstruction_quality(x, mean).explained_variance) < 1e-11
    pooled_nmse = error.sum() / x.square().sum()  # one ratio of sums instead of the mean of the rows' ratios
    assert abs(pooled_nmse - quality.nmse) / quality.nmse > 0.05
    summed_over_dimensions = error.sum(1).mean()
    assert abs(summed_over_dimensions - quality.mse) > 0.1
    assert abs(quality.r2 - quality.explained_variance) > 1e-3


def test_dimensions_without_variance_are_left_out_of_r2():
    x, y = some_pair(6)
    expected = reconstruction_quality(x, y).r2
    constant = torch.full((50, 1), 0.1, dtype=torch.float64)
    wide_x, wide_y = torch.cat([x, constant, constant * 1001], 1), torch.cat([y, constant + 5, constant], 1)
    sums = ReconstructionSums.zeros(8)
    for part_x, part_y in zip(wide_x.split(3), wide_y.split(3), strict=True):
        sums = sums.merge(ReconstructionSums.of_batch(part_x, part_y))
    torch.testing.assert_close(sums.quality().r2, expected, rtol=1e-12, atol=0)
    assert_matches_reference(sums.quality(), wide_x, wide_y)
    counted = torch.cat([1 - (x - y).square().sum(0) / (x - x.mean(0)).square().sum(0), torch.zeros(2)]).mean()
    assert abs(counted - expected) > 0.1  # counting them as 0


def test_undefined_is_nan():
    ones = torch.ones(4, 3)
    constant = reconstruction_quality(ones * 0.1, ones)
    assert torch.isnan(constant.r2)
    assert torch.isnan(constant.explained_variance)
    assert constant.nmse == pytest.approx(81, rel=1e-5)
    single = reconstruction_quality(ones[:1], ones[:1])
    assert torch.isnan(single.r2)
    assert single.mse == 0
    empty = reconstruction_quality(ones[:0], ones[:0])
    assert all(torch.isnan(getattr(empty, field.name)) for field in fields(empty))


def test_a_reconstruction_that_needs_a_gradient_is_fine():
    x, y = some_pair(7)
    assert not reconstruction_quality(x, y.requires_grad_()).r2.requires_grad


@pytest.mark.parametrize(
    ("argument", "row", "value"),
    [("inputs", 3, 0.0), ("inputs", 5, float("nan")), ("reconstruction", 4, float("inf"))],
)
def test_bad_rows_are_refused(argument, row, value):
    x, y = some_pair(8)
    {"inputs": x, "reconstruction": y}[argument][row] = value
    with pytest.raises(InputError, match=rf"{argument}: got a row .*\(row {row}\)"):
        reconstruction_quality(x, y)


@pytest.mark.parametrize(("argument", "value"), [("inputs", 0.0), ("inputs", torch.nan), ("reconstruction", torch.inf)])
def test_sums_that_saw_bad_rows_give_no_figures(argument, value, monkeypatch):
    """Away from the CPU nothing is raised at once: the bad rows are counted, and the figures are refused."""
    monkeypatch.setattr(reconstruction, "_refuse_first", lambda *_: None)
    x, y = some_pair(9)
    {"inputs": x, "reconstruction": y}[argument][3:5] = value
    sums = ReconstructionSums.of_batch(*some_pair(9)).merge(ReconstructionSums.of_batch(x, y))
    with pytest.raises(InputError, match=f"{argument}: got 2 rows"):
        sums.quality()


@pytest.mark.door
@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (
            torch.ones(2, 3),
            torch.ones(2, 4),
            "reconstruction: got shape (2, 4); expected a floating-point tensor of shape (2, 3)",
        ),
        (
            torch.ones(2, 3).long(),
            torch.ones(2, 3),
            "inputs: got dtype torch.int64; expected a floating-point tensor of shape (n, any width)",
        ),
        ([[1.0]], torch.ones(1, 1), "inputs: got list; expected a floating-point tensor of shape (n, any width)"),
        (torch.ones(2, 0), torch.ones(2, 0), "inputs: got shape (2, 0); expected a width of at least 1"),
        (
            torch.ones(2, 3),
            torch.ones(2, 3, device="meta"),
            "reconstruction: got device meta; expected the device of inputs, cpu",
        ),
        (
            torch.tensor([[1.0], [0.0]]),
            torch.ones(2, 1),
            "inputs: got a row of zeros (row 1); expected rows of finite numbers, not all zero",
        ),
        (
            torch.tensor([[1.0], [float("nan")]]),
            torch.ones(2, 1),
            "inputs: got a row with NaN or infinity (row 1); expected rows of finite numbers, not all zero",
        ),
        (
            torch.ones(2, 1),
            torch.tensor([[float("nan")], [1.0]]),
            "reconstruction: got a row with NaN or infinity (row 0); expected rows of finite numbers",
        ),
    ],
)
def test_error_texts(x, y, text):
    with pytest.raises(InputError) as caught:
        reconstruction_quality(x, y)
    assert str(caught.value) == text
