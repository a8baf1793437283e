"""MonoScore against the pairwise loop: every kind of latent, layout and dtype; closed forms; chance, lift, n_eff."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from monoloss.errors import InputError
from monoloss.functional.moments import batch_moments, unit_rows
from monoloss.functional.score import chance, lift, mono_score, n_eff, score_of, summarise
from monoloss.sparse import SparseActivations
from support.embeddings import (
    DEAD,
    HIGH_CONSTANT,
    LAYOUTS,
    LOW_CONSTANT,
    SINGLE,
    as_dense,
    ragged,
    rows_of,
    some_activations,
    some_embeddings,
)
from support.mono_checks import (
    MIN_N_EFF,
    TOLERANCES,
    assert_same_scores,
    assert_scores,
    check_score_of_float32_at_offset_100,
    check_score_of_one_call,
)


def moments_of(embeddings, activations, center=None):
    return batch_moments(unit_rows(embeddings, center), activations)


def test_score_of_one_call():
    check_score_of_one_call()


def test_score_of_float32_at_offset_100():
    check_score_of_float32_at_offset_100()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0, -0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_score_is_that_of_the_pairs(layout, offset, dtype):
    embeddings = some_embeddings(150, dtype=dtype)
    activations = LAYOUTS[layout](some_activations(150, dtype=dtype, offset=offset))
    assert_scores(mono_score(embeddings, activations), embeddings, activations, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [100.0, -100.0])
def test_few_active_rows_far_from_zero(offset, dtype):
    embeddings = some_embeddings(150, dtype=dtype)
    dense = some_activations(150, dtype=dtype)
    dense = torch.where(dense != 0, dense + offset, 0.0)
    for layout in ("dense", "ragged"):
        activations = LAYOUTS[layout](dense)
        assert_scores(mono_score(embeddings, activations), embeddings, dense, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_range_far_from_zero(dtype):
    """A latent of every row whose range is a small part of its values, stored sparsely too."""
    embeddings = some_embeddings(200, dtype=dtype)
    for offset in (-100.0, 100.0):
        dense = (1e-3 * torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) ** 4 + offset).to(dtype)
        for activations in (dense, ragged(dense)):
            assert_scores(mono_score(embeddings, activations), embeddings, dense, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_thousand_rows(layout):
    for dtype, atol in TOLERANCES.items():
        embeddings = some_embeddings(2000, 24, dtype=dtype)
        activations = LAYOUTS[layout](some_activations(2000, dtype=dtype))
        assert_scores(mono_score(embeddings, activations), embeddings, activations, atol=atol)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_center(layout):
    embeddings = some_embeddings()
    activations, center = LAYOUTS[layout](some_activations()), embeddings.mean(0)
    assert_scores(mono_score(embeddings, activations, center=center), embeddings, activations, center)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_lose_nothing_but_their_own_rounding(layout, dtype):
    embeddings = some_embeddings(dtype=dtype)
    activations = LAYOUTS[layout](some_activations(dtype=dtype))
    assert_scores(mono_score(embeddings, activations), embeddings, activations, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast_changes_no_bit(layout):
    embeddings = some_embeddings(dtype=torch.float32)
    activations = LAYOUTS[layout](some_activations(dtype=torch.float32))
    plain = mono_score(embeddings, activations)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(mono_score(embeddings, activations).nan_to_num(7), plain.nan_to_num(7))


def test_memory_layout_does_not_matter():
    embeddings, activations = some_embeddings(d=16), some_activations()
    strided = [tensor.T.contiguous().T[::2, ::2] for tensor in (embeddings, activations)]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert_scores(mono_score(*strided), *strided)
    leaf = activations.clone().requires_grad_()
    assert not mono_score(embeddings.requires_grad_(), leaf).requires_grad


def test_undefined_latents():
    embeddings, activations = some_embeddings(), some_activations()
    scores = mono_score(embeddings, activations)
    undefined = [DEAD, LOW_CONSTANT, HIGH_CONSTANT, SINGLE]
    assert torch.isnan(scores).nonzero().flatten().tolist() == undefined
    zero = mono_score(embeddings, activations, undefined="zero")
    assert not zero[undefined].any()
    assert torch.equal(zero, scores.nan_to_num(0.0))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fewer_than_two_rows_define_nothing(layout, n):
    embeddings, activations = some_embeddings(n), LAYOUTS[layout](some_activations(2)[:n])
    moments = moments_of(embeddings, activations)
    assert torch.isnan(mono_score(embeddings, activations)).all()
    assert torch.isnan(chance(moments))
    summary = summarise(moments)
    assert (summary.n_rows, summary.n_defined, summary.mean_zero_filled) == (n, 0, 0.0)
    assert np.isnan([summary.mean, summary.median, summary.p90, summary.chance, summary.lift, summary.n_eff]).all()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[2.0, 1.0], [4.0, 2.0], [0.2, 0.1]], 1.0),
        ([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]], 0.0),
        ([[1.0, 3.0], [-2.0, -6.0]], -1.0),
    ],
)
def test_closed_forms(rows, expected):
    embeddings = torch.tensor(rows, dtype=torch.float64)
    activations = torch.tensor([[0.3], [2.0], [1.5]], dtype=torch.float64)[: len(rows)]
    floor = torch.zeros(1, 1, dtype=torch.float64)  # a silent row, so that every other row has weight
    embeddings = torch.cat([embeddings, torch.ones_like(embeddings[:1])])
    score = mono_score(embeddings, torch.cat([activations, floor]))
    np.testing.assert_allclose(float(score), expected, rtol=0, atol=1e-14)


def test_chance_lift_and_n_eff():
    embeddings, activations = some_embeddings(), some_activations()
    for center in (None, embeddings.mean(0)):
        moments = moments_of(embeddings, activations, center)
        expected = reference.chance_pairwise(embeddings, center)
        np.testing.assert_allclose(float(chance(moments)), expected, rtol=0, atol=1e-13)
        scores = reference.mono_score_pairwise(embeddings, activations, center)
        lifted = lift(score_of(moments), chance(moments)).numpy()
        np.testing.assert_allclose(lifted, reference.lift(scores, expected), rtol=0, atol=1e-11)
        np.testing.assert_allclose(n_eff(moments), np.nan_to_num(reference.n_eff(activations)), rtol=1e-12)


def test_nothing_stands_above_a_chance_of_one():
    moments = moments_of(torch.ones(3, 2, dtype=torch.float64), torch.tensor([[1.0], [2.0], [0.0]]).double())
    assert torch.isnan(lift(score_of(moments), chance(moments))).all()


def test_summary():
    embeddings, activations = some_embeddings(), some_activations()
    scores = reference.mono_score_pairwise(embeddings, activations)
    defined = ~np.isnan(scores)
    assert defined.sum() % 2 == 1
    for latents in (np.arange(13), np.arange(12)):  # an odd and an even number of defined latents
        kept, by_chance = scores[latents][defined[latents]], reference.chance_pairwise(embeddings)
        expected = {
            "n_rows": 64,
            "n_latents": len(latents),
            "n_defined": len(kept),
            "mean": kept.mean(),
            "median": np.median(kept),
            "p90": np.quantile(kept, 0.9),
            "mean_zero_filled": kept.sum() / len(latents),
            "chance": by_chance,
            "lift": reference.lift(kept, by_chance).mean(),
            "n_eff": np.median(reference.n_eff(activations)[latents][defined[latents]]),
        }
        got = dataclasses.asdict(summarise(moments_of(embeddings, activations[:, latents])))
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-11, atol=1e-12, err_msg=name)


seeds = st.integers(0, 2**16)


@given(seed=seeds, n=st.integers(2, 40))
@settings(max_examples=25)
def test_order_of_rows_does_not_matter(seed, n):
    embeddings, activations = some_embeddings(n, seed=seed), some_activations(n, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for layout in ("dense", "ragged"):
        z = LAYOUTS[layout](activations)
        one, other = mono_score(embeddings, z), mono_score(embeddings[order], rows_of(z, order))
        assert_same_scores(one, other, activations)


@given(seed=seeds, exponents=st.lists(st.floats(-6, 6), min_size=13, max_size=13))
@settings(max_examples=25)
def test_scale_of_a_latent_does_not_matter(seed, exponents):
    embeddings, activations = some_embeddings(30, seed=seed), some_activations(30, seed=seed)
    scale = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    for layout in ("dense", "ragged"):
        one = mono_score(embeddings, LAYOUTS[layout](activations))
        other = mono_score(embeddings, LAYOUTS[layout](activations * scale))
        assert_same_scores(one, other, activations, atol=1e-11)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
@settings(max_examples=25)
def test_rotation_and_length_of_embeddings_do_not_matter(seed, scale):
    embeddings, activations = some_embeddings(30, seed=seed), some_activations(30, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    one, other = mono_score(embeddings, activations), mono_score(scale * embeddings @ rotation, activations)
    assert_same_scores(one, other, activations)


@given(seed=seeds, dtype=st.sampled_from(list(TOLERANCES)))
@settings(max_examples=25)
def test_scores_lie_between_minus_one_and_one(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(4, 2, generator=generator).round().to(dtype) + torch.tensor([0.5, 0.25], dtype=dtype)
    activations = torch.randn(4, 30, generator=generator).to(dtype)
    scores = mono_score(embeddings, activations)
    judged = ~torch.isnan(scores) & torch.from_numpy(reference.n_eff(activations) >= MIN_N_EFF)
    assert bool(judged.any())
    assert bool((scores[judged].abs() <= 1.0 + TOLERANCES[dtype]).all())


FLOATS = "a floating-point tensor of shape (n, any width)"
REFUSED = [
    (lambda e, z: mono_score(e, z[:5]), "activations: got 5 rows; expected as many as embeddings has, 6"),
    (lambda e, z: mono_score(e, ragged(z[:5])), "activations: got 5 rows; expected as many as embeddings has, 6"),
    (lambda e, z: mono_score(e.long(), z), f"embeddings: got dtype torch.int64; expected {FLOATS}"),
    (lambda e, z: mono_score(e, z.int()), f"activations: got dtype torch.int32; expected {FLOATS}"),
    (lambda e, z: mono_score(e[0], z), f"embeddings: got shape (8,); expected {FLOATS}"),
    (lambda e, z: mono_score(e, z[:, 0]), f"activations: got shape (6,); expected {FLOATS}"),
    (lambda e, z: mono_score(e.tolist(), z), f"embeddings: got list; expected {FLOATS}"),
    (lambda e, z: mono_score(e, z.numpy()), f"activations: got ndarray; expected {FLOATS}"),
    (lambda e, z: mono_score(e[:, :0], z), "embeddings: got shape (6, 0); expected a width of at least 1"),
    (lambda e, z: mono_score(e, z.to("meta")),
     "activations: got device meta; expected the device of embeddings, cpu"),
    (lambda e, z: mono_score(e, z, center=e[0, :3]),
     "center: got shape (3,), dtype torch.float64; expected a floating-point tensor of shape (8,)"),
    (lambda e, z: mono_score(e, z, center=e[0].long()),
     "center: got shape (8,), dtype torch.int64; expected a floating-point tensor of shape (8,)"),
    (lambda e, z: mono_score(e, z, center=[0.0] * 8),
     "center: got list; expected a floating-point tensor of shape (8,)"),
    (lambda e, z: mono_score(e, z, undefined="skip"), "undefined: got 'skip'; expected one of 'nan', 'zero'"),
]  # fmt: skip


@pytest.mark.door
@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_input_that_does_not_fit_is_refused(call, text):
    with pytest.raises(InputError) as refusal:
        call(some_embeddings(6), some_activations(6))
    assert str(refusal.value) == text


def test_sparse_activations_of_any_dtype_meet_embeddings_of_any_dtype():
    for e_type, z_type in ((torch.float64, torch.float16), (torch.bfloat16, torch.float64)):
        embeddings, activations = some_embeddings(dtype=e_type), ragged(some_activations(dtype=z_type))
        assert isinstance(activations, SparseActivations)
        assert_scores(mono_score(embeddings, activations), embeddings, as_dense(activations), atol=1e-5)


@pytest.mark.parametrize("way", ["dense", "ragged"])
@pytest.mark.parametrize("spread", [2.0, 4.0, 6.0])
def test_float32_keeps_the_rows_behind_one_that_outweighs_them(spread, way):
    generator = torch.Generator().manual_seed(7)
    embeddings = torch.randn(2000, 24, generator=generator) + 3.0  # all alike: errors of the products add up
    activations = torch.exp(spread * torch.randn(2000, 16, generator=generator))
    scores = mono_score(embeddings, activations if way == "dense" else ragged(activations))
    judged = reference.n_eff(activations) >= 1.1
    error = np.abs(scores.numpy() - reference.mono_score_pairwise(embeddings, activations))
    assert judged.sum() > 8
    assert error[judged].max() <= 5e-6
