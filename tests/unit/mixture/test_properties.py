"""What holds for any data: hypothesis draws them, the same ones in every run."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.quadratic import QuadraticExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.cells import CellData

PROPERTY = settings(max_examples=100, derandomize=True, deadline=None)

# A floor far below every eigenvalue of the data here; a fit that still touched it is not an example of the property.
NO_FLOOR = 1e-12

COVARIANCE_TYPES = st.sampled_from(["full", "diag"])


@st.composite
def problems(draw, max_components=3):
    """Cells around a few centres, and a broad start at some of them that no iteration here can collapse."""
    n_features = draw(st.integers(1, 3))
    n_components = draw(st.integers(1, max_components))
    covariance_type = draw(COVARIANCE_TYPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(40, 120))
    centres = draw(st.floats(0, 5)) * rng.normal(size=(3, n_features))
    x = centres[rng.integers(3, size=n)] + rng.normal(size=(n, n_features))
    covariance = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    if covariance_type == "diag":
        covariance = np.diag(covariance)
    start = GaussianMixture(
        rng.dirichlet(np.full(n_components, 5.0)),
        x[rng.choice(n, n_components, replace=False)],
        np.repeat(covariance[None], n_components, axis=0),
    )
    return x, start, rng


def few_iterations(x, start, max_iter=8):
    fit = fit_mixture(
        x,
        start.n_components,
        covariance_type=start.covariance_type,
        initial=start,
        tol=0,
        max_iter=max_iter,
        eps=NO_FLOOR,
    )
    assume(not fit.floored.any())
    return fit


def assert_same_path(fit, other, shift=0.0, tolerance=1e-8):
    """The same likelihood at every iteration; rounding may end one of them a step early once nothing is gained."""
    steps = min(len(fit.history), len(other.history))
    np.testing.assert_allclose(other.history[:steps], fit.history[:steps] + shift, rtol=0, atol=tolerance)


def e_steps(x, model):
    """Moments of the cells by every way there is for this type of covariances."""
    cells = CellData(x)
    ways = [DenseExpectation(cells), QuadraticExpectation(cells, model.covariance_type)]
    if model.covariance_type == "full":
        ways.append(ScreenedExpectation(cells, model.n_components))
    return [way(model) for way in ways]


def falls_by(fit):
    return np.max(-np.diff(fit.history) / np.maximum(1.0, np.abs(fit.history[1:])), initial=0.0)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@PROPERTY
@given(problems(max_components=5), st.integers(1, 60))
def test_likelihood_never_falls_with_the_floor_inactive(problem, max_iter):
    x, start, _ = problem
    assert falls_by(few_iterations(x, start, max_iter)) <= 1e-10


# Cells within ±10 over a floor of 1e-3 bound condition numbers by 1e5, hence rounding by 1e-11 of the likelihood.
@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@PROPERTY
@given(
    x=hnp.arrays(
        np.float64,
        st.tuples(st.integers(6, 40), st.integers(1, 4)),
        elements=st.one_of(st.integers(-3, 3).map(float), st.floats(-10, 10)),
    ),
    n_components=st.integers(1, 6),
    covariance_type=COVARIANCE_TYPES,
    handling=st.sampled_from(["guarded", "robust"]),
    init=st.sampled_from(sorted(STARTS)),
    eps=st.sampled_from([1e-3, 1e-2, 1.0, 100.0]),
)
def test_likelihood_never_falls_with_the_floor_active(x, n_components, covariance_type, handling, init, eps):
    fit = fit_mixture(
        x,
        n_components,
        covariance_type=covariance_type,
        singularity_handling=handling,
        init=init,
        eps=eps,
        tol=0,
        max_iter=30,
    )
    assert falls_by(fit) <= 1e-10
    assert fit.model.weights.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(fit.model.responsibilities(x).sum(axis=1), 1, atol=1e-10)
    assert np.linalg.eigvalsh(fit.model.full_covariances).min() >= eps * (1 - 1e-9)
    assert fit.log_likelihood == pytest.approx(fit.model.log_prob(x).mean(), rel=1e-10, abs=1e-10)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@PROPERTY
@given(problems(), st.floats(-3, 3), st.floats(-100, 100))
def test_affine_maps_of_the_cells_map_the_fit(problem, log_scale, shift):
    x, start, rng = problem
    d = x.shape[1]
    # Condition numbers stay below 25, so the map costs at most two or three digits.
    stretch = np.exp(log_scale) * rng.uniform(0.2, 5, size=d)
    if start.covariance_type == "diag":
        matrix = np.diag(stretch)[rng.permutation(d)]
        variances = start.covariances @ (matrix**2).T
        moved = GaussianMixture(start.weights, start.means @ matrix.T + shift, variances)
    else:
        left, right = np.linalg.qr(rng.normal(size=(2, d, d)))[0]
        matrix = left @ np.diag(stretch) @ right
        moved = GaussianMixture(start.weights, start.means @ matrix.T + shift, matrix @ start.covariances @ matrix.T)
    fit, other = few_iterations(x, start), few_iterations(x @ matrix.T + shift, moved)
    assert_same_path(fit, other, shift=-np.linalg.slogdet(matrix)[1])
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(other.model.weights, fit.model.weights, atol=1e-6)
    np.testing.assert_allclose(other.model.means, fit.model.means @ matrix.T + shift, atol=1e-6 * max(1, scale))
    expected = matrix @ fit.model.full_covariances @ matrix.T
    np.testing.assert_allclose(other.model.full_covariances, expected, atol=1e-6 * scale**2)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@PROPERTY
@given(problems(max_components=5))
def test_labels_of_the_start_do_not_matter(problem):
    x, start, rng = problem
    order = rng.permutation(start.n_components)
    permuted = GaussianMixture(start.weights[order], start.means[order], start.covariances[order])
    fit, other = few_iterations(x, start), few_iterations(x, permuted)
    assert_same_path(fit, other, tolerance=1e-10)
    for name, array in other.model.arrays().items():
        np.testing.assert_allclose(array, getattr(fit.model, name)[order], rtol=1e-7, atol=1e-8)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@PROPERTY
@given(problems())
def test_order_of_the_cells_does_not_matter(problem):
    x, start, rng = problem
    fit, other = few_iterations(x, start), few_iterations(x[rng.permutation(len(x))], start)
    assert_same_path(fit, other, tolerance=1e-10)
    np.testing.assert_allclose(other.model.means, fit.model.means, rtol=1e-7, atol=1e-8)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@PROPERTY
@given(problems(), st.integers(2, 4))
def test_repeating_the_cells_multiplies_the_total_likelihood_and_keeps_the_fit(problem, times):
    x, start, _ = problem
    repeated = np.tile(x, (times, 1))
    for once, again in zip(e_steps(x, start), e_steps(repeated, start), strict=True):
        assert again.log_likelihood == pytest.approx(times * once.log_likelihood, rel=1e-12)
        np.testing.assert_allclose(again.nk, times * once.nk, rtol=1e-10)
    fit, other = few_iterations(x, start), few_iterations(repeated, start)
    assert_same_path(fit, other, tolerance=1e-10)
    for name, array in other.model.arrays().items():
        np.testing.assert_allclose(array, getattr(fit.model, name), rtol=1e-7, atol=1e-8)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@PROPERTY
@given(problems())
def test_moments_of_the_fit_are_those_of_the_cells(problem):
    """After any M-step the mixture has the mean of the data, and its covariance (its variances, for diagonal ones)."""
    x, start, _ = problem
    model = few_iterations(x, start).model
    mean = model.weights @ model.means
    np.testing.assert_allclose(mean, x.mean(axis=0), atol=1e-10)
    within = np.einsum("k,kij->ij", model.weights, model.full_covariances)
    total = within + np.einsum("k,ki,kj->ij", model.weights, model.means - mean, model.means - mean)
    np.testing.assert_allclose(np.diag(total), x.var(axis=0), rtol=1e-9)
    if model.covariance_type == "full":
        np.testing.assert_allclose(total, np.atleast_2d(np.cov(x, rowvar=False, bias=True)), atol=1e-9)
