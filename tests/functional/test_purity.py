"""Class purity against loops, on dense and sparse activations, single- and multi-label."""

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
from monoloss.functional import purity, sparsity
from monoloss.functional.purity import ClassPurityResult, PurityCounts, class_counts, class_purity, purity_from_counts
from monoloss.sparse import SparseActivations


def some_activations(seed: int, n: int = 60, m: int = 9, dtype: torch.dtype = torch.float64) -> Tensor:
    """Signed, mostly zero; latent 0 is dead, 1 negative only, 2 active on one row, 3 on every row."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, m, generator=generator, dtype=torch.float64)
    z = z * (torch.rand(n, m, generator=generator) < 0.4)
    z[:, 0] = 0.0
    z[:, 1] = -z[:, 1].abs()
    z[:, 2] = torch.eye(n, dtype=torch.float64)[n // 2] * 0.7
    z[:, 3] = 0.1 + z[:, 3].abs()
    return z.to(dtype)


def some_labels(seed: int, n: int = 60, c: int = 4, *, multi: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    if not multi:
        return torch.randint(0, c, (n,), generator=generator)
    labels = torch.rand(n, c, generator=generator) < 0.3
    labels[: n // 5] = False  # rows without a label
    labels[n // 2] = False
    return labels


def assert_matches_reference(result: ClassPurityResult, z: Tensor, labels: Tensor, c: int, rtol: float = 1e-13) -> None:
    expected = reference.class_purity(z, labels.numpy(), c)
    np.testing.assert_allclose(result.binary, expected["binary"], rtol=rtol)
    np.testing.assert_allclose(result.weighted, expected["weighted"], rtol=rtol)
    for ours, theirs in (
        (result.mean_binary, "mean_binary"),
        (result.mean_weighted, "mean_weighted"),
        (result.mass_weighted_binary, "mass_binary"),
        (result.mass_weighted_weighted, "mass_weighted"),
    ):
        np.testing.assert_allclose(float(ours), expected[theirs], rtol=rtol, err_msg=theirs)
    assert int(result.n_defined) == int((~np.isnan(expected["binary"])).sum())


def assert_same_counts(left: PurityCounts, right: PurityCounts, rtol: float = 1e-13) -> None:
    for field in fields(PurityCounts):
        torch.testing.assert_close(
            getattr(left, field.name), getattr(right, field.name), rtol=rtol, atol=0.0, msg=field.name
        )


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("form", ["dense", "ragged", "fixed k", "strided"])
def test_matches_loops(form, multi):
    z, labels = some_activations(0), some_labels(0, multi=multi)
    given_z: Tensor | SparseActivations = z
    if form == "ragged":
        given_z = SparseActivations.from_dense(z)
    if form == "fixed k":  # every latent stored in every row: zeros and negatives among them
        order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(60)])
        given_z = SparseActivations(z.gather(1, order), order, 9)
    if form == "strided":
        given_z = z.t().contiguous().t()
    assert_matches_reference(class_purity(given_z, labels, 4), z, labels, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_summed_in_float64(dtype):
    z, labels = some_activations(1, dtype=dtype), some_labels(1, multi=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = class_purity(z, labels, 4)
    assert result.weighted.dtype == torch.float64
    assert_matches_reference(result, z, labels, 4)


@pytest.mark.parametrize("multi", [False, True])
def test_blocks_do_not_change_the_sums(multi, monkeypatch):
    z, labels = some_activations(2), some_labels(2, multi=multi)
    codes = SparseActivations.from_dense(z)
    whole, whole_sparse = class_counts(z, labels, 4), class_counts(codes, labels, 4)
    monkeypatch.setattr(sparsity, "_BLOCK_ENTRIES", 25)
    assert_same_counts(class_counts(z, labels, 4), whole)
    assert_same_counts(class_counts(codes, labels, 4), whole_sparse)
    assert_same_counts(whole, whole_sparse)


@pytest.mark.parametrize("multi", [False, True])
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 60), max_size=4), scale=st.floats(1e-3, 1e3))
def test_order_split_and_scale_do_not_matter(multi, seed, cuts, scale):
    z, labels = some_activations(seed), some_labels(seed, multi=multi)
    whole = class_counts(z, labels, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    bounds = [0, *sorted(cuts), 60]
    added, streamed = PurityCounts.zeros(9, 4), PurityCounts.zeros(9, 4)
    for start, stop in pairwise(bounds):
        part = order[start:stop]
        added = added + class_counts(z[part], labels[part], 4)
        codes = SparseActivations.from_dense(z[part])
        assert class_counts(codes, labels[part], 4, into=streamed) is streamed
    assert_same_counts(added, whole)
    assert_same_counts(streamed, whole)

    plain = purity_from_counts(whole)
    factors = torch.ones(9, dtype=torch.float64)
    factors[4] = scale
    scaled = class_purity(z * factors, labels, 4)
    torch.testing.assert_close(scaled.binary, plain.binary, equal_nan=True, rtol=0, atol=0)  # ratios of counts
    torch.testing.assert_close(scaled.weighted, plain.weighted, equal_nan=True, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled.mass, plain.mass * factors, rtol=1e-12, atol=0)


def test_wrong_variants_are_seen():
    z, labels = some_activations(3), some_labels(3, multi=False)
    result = class_purity(z, labels, 4)
    dead = torch.isnan(result.binary)
    assert dead.tolist() == [True, True] + [False] * 7
    counted_zero = torch.nan_to_num(result.binary).mean()  # over all latents, dead = 0
    assert abs(counted_zero - result.mean_binary) > 0.05
    not_zero = class_purity((z != 0).double(), labels, 4)  # "active" = not zero: negative activations taken in
    assert (not_zero.binary - result.binary)[~dead].abs().max() > 0.05
    assert not torch.isnan(not_zero.binary[1])
    assert abs(result.mass_weighted_binary - result.mean_binary) > 0.01
    # rows count z below the line, but the class is chosen by rows
    chosen = class_counts(z, labels, 4).mass.gather(1, result.dominant_class.clamp(min=0)[:, None])[:, 0] / result.mass
    assert (result.weighted - chosen)[~dead].max() > 0.01


def test_multi_label_wrong_variants_are_seen():
    z, labels = some_activations(4), some_labels(4, multi=True)
    result, counts = class_purity(z, labels), class_counts(z, labels, 4)
    live = result.n_active > 0
    per_label = (counts.rows.max(1).values / counts.rows.sum(1))[live]  # a row of several classes counted once for each
    assert (result.binary[live] - per_label).abs().max() > 0.05
    all_rows = (z > 0).sum(0)[live]  # rows without a label counted below the line
    assert (result.binary[live] - counts.rows.max(1).values[live] / all_rows).abs().max() > 0.05
    assert (result.mass[live] - z.clamp(min=0).sum(0)[live]).abs().max() > 0.05
    assert torch.isnan(result.binary[2])  # its one row has no label
    assert result.dominant_class[2] == -1


def test_by_hand():
    z = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, 4.0], [6.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    result = class_purity(z, torch.tensor([0, 0, 1, 2]))
    assert result.binary[[0, 2]].tolist() == [2 / 3, 0.5]
    assert result.weighted[[0, 2]].tolist() == [6 / 9, 0.5]
    assert result.dominant_class.tolist() == [0, -1, 0]  # of a tie the lowest class
    assert result.n_active.tolist() == [3, 0, 2]
    assert result.mass.tolist() == [9, 0, 8]
    assert int(result.n_defined) == 2


def test_pure_latents_are_exactly_one_and_no_row_is_nan():
    z = torch.full((1000, 1), 0.1)  # of float32, so that sums in float64 are exact
    result = class_purity(z, torch.zeros(1000, dtype=torch.uint8), 3)
    assert result.binary.item() == result.weighted.item() == 1.0
    empty = class_purity(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3)
    assert torch.isnan(empty.binary).all()
    for mean in (empty.mean_binary, empty.mean_weighted, empty.mass_weighted_binary, empty.mass_weighted_weighted):
        assert torch.isnan(mean)
    assert int(empty.n_defined) == 0
    assert torch.isnan(class_purity(z, torch.zeros(1000, 2, dtype=torch.bool)).mean_binary)


def test_activations_that_need_a_gradient_are_fine():
    z = some_activations(5).requires_grad_()
    labels = some_labels(5, multi=False)
    for form in (z, SparseActivations.from_dense(z)):
        assert not class_purity(form, labels, 4).binary.requires_grad


def test_values_that_are_not_finite_are_refused_before_anything_is_added():
    labels = some_labels(6, multi=False)
    for value in (float("nan"), float("inf"), float("-inf")):
        z = some_activations(6)
        z[7, 5] = value
        into = PurityCounts.zeros(9, 4)
        for form in (z, SparseActivations.from_dense(z)):
            with pytest.raises(InputError, match="activations"):
                class_counts(form, labels, 4, into=into)
        assert_same_counts(into, PurityCounts.zeros(9, 4))
    large = torch.tensor([[3e38], [3e38]])  # overflows a float32 sum, not ours
    assert class_purity(large, torch.tensor([0, 1]), 2).weighted.item() == 0.5


def test_counts_that_saw_bad_values_give_no_result(monkeypatch):
    """Away from the CPU nothing is raised at once: the bad values are counted, and the result is refused."""
    monkeypatch.setattr(purity, "count_not_finite", lambda _: torch.tensor(2.0, dtype=torch.float64))
    z, labels = some_activations(6), some_labels(6, multi=False)
    counts = class_counts(z, labels, 4) + class_counts(z, labels, 4)
    assert counts.n_not_finite == 4
    with pytest.raises(InputError, match="activations: got 4 that"):
        purity_from_counts(counts)


def test_sums_that_round_apart_stay_in_range():
    sums = PurityCounts.zeros(1, 2)
    for name, value in (("rows", 3.0), ("n_active", 3.0), ("mass", 0.1 + 0.2), ("active_mass", 0.3)):
        getattr(sums, name)[..., :1].fill_(value)
    assert purity_from_counts(sums).weighted.item() == 1.0


LABELS = "integers (n,), one class a row, or bool (n, n_classes), any number of classes a row"


@pytest.mark.door
@pytest.mark.parametrize(
    ("z", "labels", "n_classes", "text"),
    [
        (torch.ones(2, 3), torch.tensor([0, 4]), 4, "labels: got 4 (row 1); expected labels from 0 to 3"),
        (torch.ones(2, 3), torch.tensor([-1, 0]), 4, "labels: got -1 (row 0); expected labels from 0 to 3"),
        (torch.ones(2, 3), torch.tensor([0]), 4, "labels: got 1 rows; expected as many as activations has, 2"),
        (torch.ones(2, 3), torch.ones(2, 4).bool(), 5, "labels: got 4 columns; expected one for each of 5 classes"),
        (
            torch.ones(2, 3),
            torch.tensor([0.0, 1.0]),
            4,
            f"labels: got shape (2,), dtype torch.float32; expected {LABELS}",
        ),
        (
            torch.ones(2, 3),
            torch.ones(2, 4).long(),
            None,
            f"labels: got shape (2, 4), dtype torch.int64; expected {LABELS}",
        ),
        (
            torch.ones(2, 3),
            [0, 1],
            None,
            f"labels: got list; expected a tensor of {LABELS}",
        ),
        (torch.ones(2, 3), torch.tensor([0, 1]), 0, "n_classes: got 0; expected at least 1"),
        (
            torch.ones(0, 3),
            torch.zeros(0).long(),
            None,
            "n_classes: got None and no rows; expected the number of classes",
        ),
        (
            torch.ones(2),
            torch.tensor([0, 1]),
            2,
            "activations: got shape (2,); expected a floating-point tensor of shape (n, any width)",
        ),
        (
            torch.ones(2, 3).long(),
            torch.tensor([0, 1]),
            2,
            "activations: got dtype torch.int64; expected a floating-point tensor of shape (n, any width)",
        ),
        (
            torch.tensor([[1.0, 0.0], [0.0, float("nan")]]),
            torch.tensor([0, 1]),
            2,
            "activations: got nan (row 1, latent 1); expected finite numbers",
        ),
        (
            SparseActivations(torch.tensor([[1.0], [float("inf")]]), torch.tensor([[2], [1]]), 3),
            torch.tensor([0, 1]),
            2,
            "activations: got inf (row 1, latent 1); expected finite numbers",
        ),
    ],
)
def test_error_texts(z, labels, n_classes, text):
    with pytest.raises(InputError) as caught:
        class_purity(z, labels, n_classes)
    assert str(caught.value) == text


@pytest.mark.door
def test_error_texts_of_counts():
    z, labels = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(InputError) as caught:
        class_counts(z, labels, 2, into=PurityCounts.zeros(3, 4))
    assert str(caught.value) == "into: got counts of shape (3, 4); expected shape (3, 2)"
    with pytest.raises(InputError) as caught:
        PurityCounts.zeros(3, 4) + PurityCounts.zeros(3, 2)
    assert str(caught.value) == "counts: got (3, 2) latents and classes; expected (3, 4) in both"
    with pytest.raises(InputError) as caught:
        class_counts(z, labels.to("meta"), 2)
    assert str(caught.value) == "labels: got device meta; expected the device of activations, cpu"
    counts = PurityCounts.zeros(3, 4)
    counts.n_not_finite.fill_(2)
    with pytest.raises(InputError) as caught:
        purity_from_counts(counts)
    assert str(caught.value) == "activations: got 2 that are NaN or infinite; expected finite numbers"
