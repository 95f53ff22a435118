"""What the screened E-step leaves out, and why it may."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.pairs import PlainPairs
from cohortgmm.mixture.estep.quadratic import quadratic_features
from cohortgmm.mixture.estep.screened import ScreenedExpectation, separating_directions
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.cells import CellData


@pytest.fixture
def evaluated(monkeypatch):
    """Numbers of pairs that are evaluated, call by call."""
    numbers = []
    evaluate = PlainPairs.evaluate

    def count(self, k, rows):
        numbers.append(len(rows))
        evaluate(self, k, rows)

    monkeypatch.setattr(PlainPairs, "evaluate", count)
    return numbers


def test_only_the_own_component_is_evaluated_for_cells_far_from_the_others(make_mixture, evaluated):
    model = make_mixture(12, 20, spread=8.0)
    expectation = ScreenedExpectation(CellData(model.sample(1000, 0)[0]), 12)
    for _ in range(2):
        evaluated.clear()
        expectation(model)
        assert sum(evaluated) == 1000


def test_a_wrong_guess_is_made_once(make_mixture, evaluated):
    model = make_mixture(12, 20, spread=8.0)
    order = np.roll(np.arange(12), 1)
    other = GaussianMixture(model.weights[order], model.means[order], model.covariances[order])
    expectation = ScreenedExpectation(CellData(model.sample(1000, 0)[0]), 12)
    expectation(model)
    evaluated.clear()
    expectation(other)
    assert 2000 <= sum(evaluated) <= 12 * 1000
    evaluated.clear()
    expectation(other)
    assert sum(evaluated) == 1000


def test_pairs_that_matter_are_evaluated_and_some_of_the_others_are_not(make_mixture, evaluated):
    model = make_mixture(12, 20, spread=1.5)
    x = model.sample(1000, 0)[0]
    ScreenedExpectation(CellData(x), 12)(model)
    assert (model.responsibilities(x) > 1e-16).sum() <= sum(evaluated) < 0.9 * 12 * 1000


def test_two_clusters_are_told_apart_by_their_discriminant_direction(make_mixture):
    model = make_mixture(2, 12)
    within = np.tensordot(model.weights, model.covariances, 1)
    discriminant = np.linalg.solve(within, model.means[1] - model.means[0])
    last = separating_directions(model)[:, -1]
    cosine = last @ discriminant / np.linalg.norm(last) / np.linalg.norm(discriminant)
    assert abs(cosine) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(
    ("n_components", "n_features", "expected"),
    [(2, 1, 1), (2, 6, 6), (2, 30, 8), (9, 30, 8), (12, 30, 11), (12, 10, 10), (40, 30, 16)],
)
def test_directions_are_uncorrelated_within_components_and_keep_the_means_apart(
    make_mixture, n_components, n_features, expected
):
    model = make_mixture(n_components, n_features)
    directions = separating_directions(model)
    assert directions.shape == (n_features, expected)
    within = np.tensordot(model.weights, model.covariances, 1)
    np.testing.assert_allclose(directions.T @ within @ directions, np.eye(expected), atol=1e-10)
    if expected >= min(n_components - 1, n_features):
        # K means span K − 1 dimensions, so nothing of their distances is lost.
        apart = model.means - model.means[0]
        inside, whole = apart @ directions, np.einsum("kd,de,ke->k", apart, np.linalg.inv(within), apart)
        np.testing.assert_allclose((inside**2).sum(axis=1), whole, rtol=1e-9)


def bounds(model, x):
    """The bound of every joint log-density (K, n), as the E-step takes it."""
    cells = CellData(x)
    directions = separating_directions(model)
    parameters = ScreenedExpectation(cells, model.n_components)._bound_parameters(model, directions)
    return parameters @ quadratic_features((x - cells.mean) @ directions, "full")


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.sampled_from([1, 2, 8, 20, 40])),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.5, 3.0, 100.0]),
    shrink=st.floats(-6, 0),
    reach=st.sampled_from([1.0, 10.0, 1e4]),
    offset=st.sampled_from([0.0, 1e4]),
)
def test_the_bound_is_above_the_density_of_every_pair(make_mixture, shape, seed, spread, shrink, reach, offset):
    model = make_mixture(*shape, seed=seed, spread=spread)
    covariances = model.covariances.copy()
    covariances[0] *= 10**shrink
    model = GaussianMixture(model.weights, model.means + offset, covariances)
    rng = np.random.default_rng(seed)
    x = np.vstack([model.sample(50, rng)[0], offset + reach * rng.normal(size=(50, model.n_features))])
    joint = model.joint_log_prob(x - model.means[:, None, :])
    # Condition numbers of the projections up to 1e3 leave twelve digits of a squared distance.
    assert (bounds(model, x) >= joint - 1e-12 * np.maximum(100.0, np.abs(joint))).all()


def test_the_bound_is_the_density_where_the_subspace_is_the_whole_space(make_mixture):
    model = make_mixture(4, 6)
    x = model.sample(200, 0)[0]
    np.testing.assert_allclose(bounds(model, x), model.joint_log_prob(x - model.means[:, None, :]), atol=1e-9)


def test_components_of_weight_zero_are_never_in_the_running(make_mixture, evaluated):
    model = make_mixture(3, 6)
    model = GaussianMixture([0.5, 0.0, 0.5], model.means, model.covariances)
    x = make_mixture(3, 6).sample(192, 0)[0]
    assert (bounds(model, x)[1] < -1e299).all()
    moments = ScreenedExpectation(CellData(x), 3)(model)
    assert (moments.nk[1], moments.first[1].any(), moments.second[1].any()) == (0, False, False)
    assert evaluated[1] == 0


@pytest.mark.parametrize("seed", range(8))
def test_covariances_at_the_limit_of_double_precision_are_screened_too(assert_same_moments, seed):
    """Ratios of eigenvalues of 1e13 are let through by the floor; projected, they may have none below zero."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(3, 20, 20)))[0]
    covariances = (basis * 10 ** rng.uniform(-4, 8.9, size=(3, 1, 20))) @ basis.transpose(0, 2, 1)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    model = GaussianMixture(np.full(3, 1 / 3), rng.normal(size=(3, 20)), covariances)
    cells = CellData(model.sample(200, rng)[0])
    screened, dense = ScreenedExpectation(cells, 3)(model), DenseExpectation(cells)(model)
    np.testing.assert_allclose(screened.nk, dense.nk, atol=1e-6)
    assert screened.log_likelihood == pytest.approx(dense.log_likelihood, rel=1e-9)


@pytest.mark.parametrize(("amp", "cutoff"), [(0.5, 3), (1.0, 3), (1.0, None)])
@pytest.mark.parametrize(("n", "d"), [(300, 2), (20_000, 20)], ids=["few", "many"])
def test_components_that_lose_all_their_cells_to_the_background(n, d, amp, cutoff):
    x = np.random.default_rng(0).uniform(-20.0, 20.0, size=(n, d))
    far = GaussianMixture(np.ones(1), np.full((1, d), 500.0), np.eye(d)[None])
    box = Background([-20.0] * d, [20.0] * d, amp=amp)
    fit = fit_mixture(
        x, 1, initial=far, frozen={"mean": "all", "covar": "all"}, cutoff=cutoff, background=box, max_iter=20
    )
    assert (fit.model.weights.tolist(), fit.model.background.amp) == ([0.0], 1.0)
    assert fit.log_likelihood == pytest.approx(-d * np.log(40.0), rel=1e-12)
