"""Responsibilities and log-densities from joint ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp, softmax

from cohortgmm.mixture.numerics.posterior import normalize, responsibilities

VALUES = st.floats(-1e4, 1e4)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    joint=hnp.arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=VALUES), seed=st.integers(0, 99)
)
def test_they_are_scipys(joint, seed):
    background = np.random.default_rng(seed).uniform(-1e4, 1e4, size=joint.shape[1])
    resp, log_prob = normalize(joint.copy())
    # Joint log-densities of 1e4 nats leave twelve decimals of their differences.
    np.testing.assert_allclose(resp, softmax(joint, axis=0), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(log_prob, logsumexp(joint, axis=0), rtol=1e-12, atol=1e-12)
    beside, log_prob = normalize(joint.copy(), background.copy())
    whole = np.vstack([joint, background])
    np.testing.assert_allclose(beside, softmax(whole, axis=0)[:-1], rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(log_prob, logsumexp(whole, axis=0), rtol=1e-12, atol=1e-12)


def test_what_responsibilities_lack_of_one_is_the_backgrounds():
    joint = np.log([[0.2, 0.3, 0.1], [0.2, 0.1, 0.4]])
    resp, log_prob = normalize(joint.copy(), np.log([0.6, 0.1, 0.5]))
    np.testing.assert_allclose(resp, [[0.2, 0.6, 0.1], [0.2, 0.2, 0.4]], rtol=1e-14)
    np.testing.assert_allclose(log_prob, np.log([1.0, 0.5, 1.0]), atol=1e-15)


def test_a_background_of_density_zero_is_none():
    joint = np.log([[0.2, 0.3], [0.2, 0.1]])
    without, with_none = normalize(joint.copy()), normalize(joint.copy(), np.full(2, -np.inf))
    for left, right in zip(without, with_none, strict=True):
        assert np.array_equal(left, right)


def test_cells_that_only_the_background_could_have_made_are_its_own():
    resp, log_prob = normalize(np.full((2, 1), -np.inf), np.array([-3.0]))
    assert np.array_equal(resp, np.zeros((2, 1)))
    assert log_prob.tolist() == [-3.0]


@pytest.mark.parametrize("level", [-1e9, -800.0, 0.0, 800.0, 1e9])
def test_densities_that_underflow_or_overflow_have_responsibilities(level):
    resp, log_prob = normalize(level + np.log([[3.0], [1.0]]), level + np.log([4.0]))
    # 1e9 nats keep seven decimals.
    np.testing.assert_allclose(resp, [[0.375], [0.125]], rtol=1e-6)
    assert log_prob[0] == pytest.approx(level + np.log(8.0), rel=1e-14)


def test_a_component_far_below_the_best_one_has_a_tiny_share_or_none():
    resp, _ = normalize(np.array([[0.0, 0.0], [-600.0, -800.0]]))
    assert resp[1, 0] == pytest.approx(np.exp(-600.0), rel=1e-12)
    assert resp[1, 1] == 0.0


@pytest.mark.parametrize("background", [None, np.array([-np.inf])])
def test_a_cell_that_nothing_could_have_made_has_a_density_of_zero(background):
    resp, log_prob = normalize(np.full((2, 1), -np.inf), background)
    assert log_prob.tolist() == [-np.inf]
    assert np.isfinite(resp).all()


def test_the_joint_densities_are_overwritten_and_the_backgrounds_are_not():
    joint, background = np.log([[0.2, 0.3], [0.2, 0.1]]), np.log([0.6, 0.6])
    kept = background.copy()
    resp, _ = normalize(joint, background)
    assert resp is joint
    assert np.array_equal(background, kept)


@pytest.mark.parametrize("background", [None, np.log([0.6, 0.1])])
def test_the_log_likelihood_is_the_sum_of_the_log_densities(background):
    joint = np.log([[0.2, 0.3], [0.2, 0.1]])
    resp, log_likelihood = responsibilities(joint.copy(), background)
    expected, log_prob = normalize(joint.copy(), background)
    assert np.array_equal(resp, expected)
    assert type(log_likelihood) is float
    assert log_likelihood == pytest.approx(log_prob.sum(), rel=1e-15)
