"""The reference itself, against cases worked out by hand and against plausible wrong variants."""

from __future__ import annotations

import numpy as np
import pytest

import reference


def test_identical_embeddings_score_one_orthogonal_zero_opposite_minus_one():
    z = np.array([[1.0, 3.0], [2.0, 0.5], [0.0, 0.0]])
    same = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(reference.mono_score_pairwise(same, z), [1.0, 1.0], atol=1e-15)
    orthogonal = np.array([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    np.testing.assert_allclose(reference.mono_score_pairwise(orthogonal, z), [0.0, 0.0], atol=1e-15)
    opposite = np.array([[1.0, 1.0], [-2.0, -2.0], [1.0, 0.0]])
    np.testing.assert_allclose(reference.mono_score_pairwise(opposite, z), [-1.0, -1.0], atol=1e-15)


THREE_E = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-5.0, 0.0]])
THREE_Z = np.array([[5.0], [3.0], [4.0], [1.0]])
"""Scaled by min 1 and max 5 the rows weigh 1, 1/2, 3/4, 0; the cosines of the first three are 0, r, r, r = 1/sqrt 2.

Pairs: 1 * 1/2 (cos 0), 1 * 3/4 (cos r), 1/2 * 3/4 (cos r): (9/8) r / (13/8) = 9 r / 13.
"""
THREE_SCORE = 9 / 13 / np.sqrt(2)


def test_three_rows_by_hand():
    np.testing.assert_allclose(reference.mono_score_pairwise(THREE_E, THREE_Z), [THREE_SCORE], rtol=1e-14)
    assert reference.mono_loss(THREE_E, THREE_Z) == pytest.approx(1 - THREE_SCORE, rel=1e-15)
    # cosines of the six pairs: 0, r, -1, r, 0, -r
    assert reference.chance_pairwise(THREE_E) == pytest.approx((1 / np.sqrt(2) - 1) / 6, rel=1e-14)
    # about the minimum the activations are 4, 2, 3 and 0
    np.testing.assert_allclose(reference.n_eff(THREE_Z), [81 / 29], rtol=1e-15)


def test_without_the_shift_or_with_self_pairs_the_hand_value_is_missed():
    h = reference.unit_rows(THREE_E)
    for a, with_self_pairs in ((THREE_Z, False), ((THREE_Z - 1) / 4, True)):
        u, v, w = a.sum(), (a**2).sum(), (a * h).sum(axis=0)
        wrong = w @ w / u**2 if with_self_pairs else (w @ w - v) / (u**2 - v)
        assert abs(wrong - THREE_SCORE) > 0.05


def test_center_moves_the_embeddings_only():
    e, z, center = np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0]]), np.array([[1.0], [2.0], [0.0]]), np.array([1.0, 1.5])
    moved = reference.mono_score_pairwise(e - center, z)
    np.testing.assert_array_equal(reference.mono_score_pairwise(e, z, center), moved)
    assert abs(moved[0] - reference.mono_score_pairwise(e, z)[0]) > 0.5
    assert reference.mono_loss(e, z, center) == 1 - moved[0]
    assert reference.chance_pairwise(e, center) == reference.chance_pairwise(e - center)


def test_undefined_is_nan_and_left_out_of_the_loss():
    e = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    dead, constant, single, two = [0, 0, 0], [100.1, 100.1, 100.1], [0, 7, 0], [1, 1, 0]
    z = np.array([dead, constant, single, two], dtype=float).T
    np.testing.assert_array_equal(reference.mono_score_pairwise(e, z), [np.nan, np.nan, np.nan, 1.0])
    assert reference.mono_loss(e, z) == 0.0
    assert reference.mono_loss(e, z[:, :3]) == 1.0
    np.testing.assert_array_equal(reference.n_eff(z), [np.nan, np.nan, 1.0, 2.0])
    assert np.isnan(reference.chance_pairwise(e[:1]))
    assert np.isnan(reference.mono_score_pairwise(e[:1], z[:1])).all()


def test_lift():
    np.testing.assert_allclose(reference.lift([0.5, 1.0, 0.2, np.nan], 0.2), [0.375, 1.0, 0.0, np.nan], atol=1e-16)
    assert np.isnan(reference.lift([0.5], 1.0)).all()


def test_memory_by_hand():
    """Two batches of one row each, memory 1/2: u = 1/2 + 1, v = 1/2 + 1 for a latent at 1; 2.25 < 3, so undefined."""
    e1, e2 = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]])
    one = np.array([[1.0]])
    assert np.isnan(reference.memory_scores([(e1, one), (e2, one)], 0.5)).all()
    # Two rows a batch: u = 1 + 2 = 3, v = 3, w = 1/2 (2, 0) + 2 (.6, .8) = (2.2, 1.6); (7.4 - 3) / (9 - 3)
    pair = np.array([[1.0], [1.0]])
    batches = [(np.vstack([e1, e1]), pair), (np.vstack([e2, e2]), pair)]
    np.testing.assert_allclose(reference.memory_scores(batches, 0.5), [7.4 - 3.0] / np.array(6.0), rtol=1e-14)
    # memory 0 is the last batch alone
    np.testing.assert_allclose(reference.memory_scores(batches, 0.0), [1.0], rtol=1e-14)
    # v faded by the square (the exact variant) is another number: v = 1/4 * 2 + 2
    assert abs(reference.memory_scores(batches, 0.5)[0] - (7.4 - 2.5) / (9 - 2.5)) > 0.01
    assert np.isnan(reference.memory_scores([(e1, np.zeros((1, 1)))], 0.5)).all()


def test_memory_without_its_rule_leaves_the_range():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(1, 4)), np.ones((1, 1))), (rng.normal(size=(1, 4)), np.full((1, 1), 1e-3))]
    assert np.isnan(reference.memory_scores(batches, 0.9)).all()
    u, v = 0.9 + 1e-3, 0.9 + 1e-6
    h = [reference.unit_rows(e)[0] for e, _ in batches]
    w = 0.9 * h[0] + 1e-3 * h[1]
    assert abs((w @ w - v) / (u**2 - v)) > 1  # the score that the rule keeps out


def test_purity_by_hand():
    z = np.array([[1.0, 0.0, -1.0], [2.0, 0.0, 4.0], [6.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    got = reference.class_purity(z, np.array([0, 0, 1, 2]), 3)
    np.testing.assert_allclose(got["binary"], [2 / 3, np.nan, 1 / 2])
    np.testing.assert_allclose(got["weighted"], [6 / 9, np.nan, 1 / 2])
    assert got["mean_binary"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got["mass_binary"] == pytest.approx((9 * 2 / 3 + 8 * 1 / 2) / 17)
    assert got["mass_weighted"] == pytest.approx((6 + 4) / 17)
    assert abs(got["mean_binary"] - np.nan_to_num(got["binary"]).mean()) > 0.1  # dead counted 0


def test_purity_multi_label_by_hand():
    z = np.array([[1.0], [2.0], [3.0], [10.0]])
    labels = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], dtype=bool)
    got = reference.class_purity(z, labels)
    assert got["binary"][0] == pytest.approx(2 / 3)
    assert got["weighted"][0] == pytest.approx(4 / 6)
    nothing = reference.class_purity(z, np.zeros((4, 2), dtype=bool))
    assert np.isnan(nothing["binary"]).all()
    assert np.isnan(nothing["mean_weighted"])
    assert np.isnan(nothing["mass_binary"])


def test_reconstruction_by_hand():
    x = np.array([[1.0, 10.0, 2.0], [3.0, 10.0, 4.0], [5.0, 10.0, 0.0]])
    y = np.array([[1.0, 10.0, 3.0], [3.0, 11.0, 3.0], [3.0, 10.0, 0.0]])
    assert reference.r2_uniform(x, y) == pytest.approx((1 - 4 / 8 + 1 - 2 / 8) / 2)
    assert reference.explained_variance(x, y) == pytest.approx(1 - 7 / 16)
    assert reference.nmse(x, y) == pytest.approx((1 / 105 + 2 / 125 + 4 / 125) / 3)
    assert reference.mse(x, y) == pytest.approx(7 / 9)
    mean = np.repeat(x.mean(axis=0, keepdims=True), 3, axis=0)
    assert reference.r2_uniform(x, mean) == pytest.approx(0.0, abs=1e-15)
    assert reference.explained_variance(x, mean) == pytest.approx(0.0, abs=1e-15)
    assert np.isnan(reference.r2_uniform(mean, mean))
    assert np.isnan(reference.explained_variance(mean, mean))


def test_codes_by_hand():
    pre = np.array([[3.0, 1.0, 3.0, -1.0], [0.5, -2.0, -3.0, -1.0]])
    np.testing.assert_array_equal(reference.top_k_codes(pre, 1), [[3, 0, 0, 0], [0.5, 0, 0, 0]])
    np.testing.assert_array_equal(reference.top_k_codes(pre, 2), [[3, 0, 3, 0], [0.5, 0, 0, 0]])
    np.testing.assert_array_equal(reference.batch_top_k_codes(pre, 1), [[3, 0, 3, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(reference.batch_top_k_codes(pre, 2), [[3, 1, 3, 0], [0.5, 0, 0, 0]])
    assert reference.l0(reference.batch_top_k_codes(pre, 2)) == 2.0
