"""Mixtures and cells of known truth, what moments and fits are compared by, and the sizes where the ways part."""

from contextlib import ExitStack
from dataclasses import fields

import numpy as np
import pytest

from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.estep.noisy import NoisyExpectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.tuning import tuned
from cohortgmm.mixture.result import MixtureFit


@pytest.fixture(scope="session")
def make_mixture():
    """Factory of random, well-conditioned mixtures: means ~ spread, eigenvalues between 0.3 and about 3."""

    def make(n_components, n_features, covariance_type="full", *, seed=0, spread=3.0):
        rng = np.random.default_rng(seed)
        means = spread * rng.normal(size=(n_components, n_features))
        if covariance_type == "diag":
            covariances = rng.uniform(0.3, 3.0, size=(n_components, n_features))
        else:
            roots = rng.normal(size=(n_components, n_features, n_features)) / np.sqrt(n_features)
            covariances = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(n_features)
        return GaussianMixture(rng.dirichlet(np.full(n_components, 5.0)), means, covariances)

    return make


@pytest.fixture(scope="session")
def make_cells(make_mixture):
    """Factory of cells drawn from such a mixture."""

    def make(n, n_features, *, n_components=3, seed=0, spread=3.0):
        return make_mixture(n_components, n_features, seed=seed, spread=spread).sample(n, seed)[0]

    return make


@pytest.fixture(scope="session")
def start_at_cells():
    """Factory of broad starts: random cells as means, equal weights, the covariance of the data."""

    def make(x, n_components, covariance_type="full", *, seed=0):
        means = x[np.random.default_rng(seed).choice(len(x), n_components, replace=False)]
        covariance = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
        if covariance_type == "diag":
            covariance = np.diag(covariance)
        return GaussianMixture(
            np.full(n_components, 1 / n_components), means, np.repeat(covariance[None], n_components, axis=0)
        )

    return make


@pytest.fixture(scope="session")
def floor_only():
    """Factory of constraints that freeze nothing."""

    def make(n_components, floor, *, strict=False):
        return Constraints(floor, strict, Frozen.from_argument(None, n_components))

    return make


@pytest.fixture(scope="session")
def moments_by_definition():
    """Factory of moments by their definition, with (n, K, D) temporaries, from responsibilities (n, K)."""

    def make(x, resp, means, covariance_type="full", log_likelihood=0.0):
        deviation = x[:, None, :] - means
        second = np.einsum("nk,nki,nkj->kij", resp, deviation, deviation, optimize=True)
        if covariance_type == "diag":
            second = np.diagonal(second, axis1=1, axis2=2)
        return Moments(resp.sum(axis=0), np.einsum("nk,nkd->kd", resp, deviation), second, log_likelihood, len(x))

    return make


@pytest.fixture(scope="session")
def assert_same_moments():
    """Check of moments, each component by its own scale: one of small variances is not lost among the others."""

    def check(left, right, rtol):
        np.testing.assert_allclose(left.nk, right.nk, rtol=rtol, atol=rtol)
        variances = right.second if right.second.ndim == 2 else np.diagonal(right.second, axis1=1, axis2=2)
        # What a component of less than a tenth of a cell is made of may be left out with good reason.
        for k in np.flatnonzero(right.nk > 0.1):
            largest = variances[k].max()
            np.testing.assert_allclose(left.second[k], right.second[k], rtol=rtol, atol=rtol * largest)
            np.testing.assert_allclose(
                left.first[k], right.first[k], rtol=rtol, atol=rtol * np.sqrt(right.nk[k] * largest)
            )
        assert left.log_likelihood == pytest.approx(right.log_likelihood, rel=rtol)
        assert left.n == right.n

    return check


@pytest.fixture(scope="session")
def assert_bit_identical():
    """Check that two fits are the same in every bit."""

    def check(left, right):
        for name, array in left.model.arrays().items():
            assert np.array_equal(array, getattr(right.model, name)), name
        for field in fields(MixtureFit):
            if field.name != "model":
                assert np.array_equal(getattr(left, field.name), getattr(right, field.name)), field.name

    return check


@pytest.fixture(scope="session")
def assert_sound():
    """Check that a fit is finite, of mass one, positive definite, and has the likelihood of its history."""

    def check(fit, x):
        model, x = fit.model, np.asarray(x, dtype=float)
        assert all(np.isfinite(array).all() for array in (*model.arrays().values(), fit.history))
        assert model.weights.min() >= 0
        assert model.weights.sum() == pytest.approx(1, rel=1e-12)
        assert np.linalg.eigvalsh(model.full_covariances).min() > 0
        assert fit.log_likelihood == fit.history[-1]
        assert len(fit.history) == fit.n_iter + 1
        assert np.isfinite(model.log_prob(x)).all()
        assert np.isfinite(model.responsibilities(x)).all()

    return check


@pytest.fixture
def tune():
    """Function that sets sizes of :class:`~cohortgmm.mixture.numerics.tuning.Tuning` for the rest of the test."""
    with ExitStack() as stack:
        yield lambda **sizes: stack.enter_context(tuned(**sizes))


@pytest.fixture
def small_tiles(tune):
    """Tiles of so few rows that some hundred cells take several of them, in every E-step."""
    tune(tile_values=1, quadratic_values=1, screened_values=(1, 1), listed_rows=100)


@pytest.fixture
def screen_everything(tune):
    """Fits of full covariances leave out pairs and settled cells, however small they are."""
    tune(few_features=0, few_products=0)


@pytest.fixture
def bounded(monkeypatch):
    """Pairs of noisy cells are bounded before they are evaluated, as where few of them matter."""
    monkeypatch.setattr(NoisyExpectation, "bounds_are_expensive", False)


@pytest.fixture(params=["bounded", "all evaluated"])
def both_ways(monkeypatch, request):
    """Pairs of noisy cells are bounded first, or not where many matter."""
    monkeypatch.setattr(NoisyExpectation, "bounds_are_expensive", request.param == "all evaluated")
