"""Each step of the scaling of input rows against NumPy, what undoes it, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monoloss.errors import InputError
from monoloss.sae import scaling
from monoloss.sae.config import InputScaling
from monoloss.sae.scaling import scale_inputs
from support.embeddings import some_embeddings

STEPS = list(itertools.product([False, True], repeat=3))


def check_against_numpy(unit_norm: bool, center: bool, standardise: bool) -> None:
    rows = some_embeddings(20, 6) * 3.0
    mean = torch.linspace(-0.2, 0.3, 6, dtype=torch.float64) if center else None
    got = scale_inputs(rows, InputScaling(unit_norm, center, standardise), mean)

    x = rows.numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if unit_norm else x
    np.testing.assert_allclose(got.target, x, rtol=1e-13)
    x = x - mean.numpy() if mean is not None else x
    if standardise:
        x = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got.scaled, x, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(got.scaled * got.scale + got.shift, got.target, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("unit_norm", "center", "standardise"), STEPS)
def test_each_step(unit_norm: bool, center: bool, standardise: bool) -> None:
    check_against_numpy(unit_norm, center, standardise)


def test_another_floor_of_the_deviation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_STD_FLOOR", 1e-6)
    with pytest.raises(AssertionError):
        check_against_numpy(True, False, True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("unit_norm", [False, True])
def test_rows_that_are_not_finite_are_refused(unit_norm: bool, value: float) -> None:
    rows = some_embeddings(5, 4)
    rows[3, 1] = value
    with pytest.raises(InputError, match=r"inputs: got .*\(row 3\)"):
        scale_inputs(rows, InputScaling(unit_norm=unit_norm), None)


def test_a_row_of_zeros_has_no_length_to_scale_to_1() -> None:
    rows = some_embeddings(5, 4)
    rows[2] = 0.0
    with pytest.raises(InputError, match=r"inputs: got a row of zeros \(row 2\)"):
        scale_inputs(rows, InputScaling(unit_norm=True), None)
    assert torch.equal(scale_inputs(rows, InputScaling(unit_norm=False), None).scaled, rows)
