"""Fits of cells part of which is hidden, in every combination: a right and finite answer, or one clear error."""

from itertools import product

import numpy as np
import pytest
from combinations import (
    COVARIANCE_TYPES,
    EPS,
    SOME,
    Problem,
    assert_right,
    assert_right_or_one_error,
    blobs,
    hide,
    seen_at,
    start_for,
)

from cohortgmm.errors import CohortgmmError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

NOISES = ["no noise", "shared", "shared full", "own", "own full"]

#: What may be hidden: noise, missing features, background, selection.
EVERYTHING = list(product(["no noise", "shared full", "own"], [False, True], [False, True], [False, True]))


@pytest.fixture(autouse=True)
def few_nodes(tune):
    """The unseen part to within a hundredth."""
    tune(most_nodes=1 << 12)


# ---- every combination ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combination", EVERYTHING)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_every_combination_is_fitted_at_a_likelihood_as_high_as_the_truth(combination, covariance_type):
    """More precisely, as the mixture that EM finds from the labels of the cells."""
    problem = hide(blobs(), combination)
    fit = problem.fit(covariance_type=covariance_type, n_init=4)
    assert_right(fit, problem)
    labels = np.arange(120) % 3 == 0
    clean = blobs()
    covariances = np.array([np.cov(clean[labels == k], rowvar=False, bias=True) for k in (0, 1)])
    if covariance_type == "diag":
        covariances = np.einsum("kdd->kd", covariances).copy()
    truth = GaussianMixture(np.array([2, 1]) / 3, np.array([[0.0, 0.0], [5.0, 5.0]]), covariances)
    reference = problem.fit(covariance_type=covariance_type, initial=truth)
    # Where EM ends by its tolerance, or that of the nodes.
    assert fit.log_likelihood >= reference.log_likelihood - 2e-2


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("combination", EVERYTHING)
def test_every_combination_takes_no_notice_of_the_units(combination):
    """Cells, noise, box, floor and completeness in other units, and about another origin."""
    problem, scale, shift = hide(blobs(80), combination), 7.0, 40.0
    start = start_for(problem, "full")
    moved = Problem(problem.x * scale + shift, dict(problem.options), problem.cut)
    if problem.noise is not None:
        moved.options["noise"] = problem.noise * scale**2
    if "background" in problem.options:
        box = problem.options["background"]
        moved.options["background"] = Background(box.lower * scale + shift, box.upper * scale + shift, box.amp)
    if "completeness" in problem.options:
        moved.options["completeness"] = seen_at(problem.cut * scale + shift)
    there = GaussianMixture(start.weights, start.means * scale + shift, start.covariances * scale**2)
    fit = problem.fit(initial=start, max_iter=8, tol=0)
    other = moved.fit(initial=there, max_iter=8, tol=0, eps=EPS * scale**2)
    n_values = np.count_nonzero(~np.isnan(problem.x)) / (len(problem.x) - fit.n_empty)
    # Nodes on the cut may come to lie on its other side.
    error = 1e-8 if problem.cut is None else 1e-5
    np.testing.assert_allclose(other.history, fit.history - n_values * np.log(scale), rtol=error, atol=error)
    np.testing.assert_allclose((other.model.means - shift) / scale, fit.model.means, atol=1e3 * error)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("combination", EVERYTHING)
def test_every_combination_takes_no_notice_of_the_order_of_cells(combination):
    kind, *_, truncated = combination
    problem = hide(blobs(80), combination)
    start = start_for(problem, "full")
    if truncated and kind == "own":
        problem.options["noise_at"] = np.full(2, 0.1)  # else drawn from the cells, by their position
    fit, other = (
        p.fit(initial=start, max_iter=8, tol=0) for p in (problem, problem.of(np.random.default_rng(0).permutation(80)))
    )
    np.testing.assert_allclose(other.history, fit.history, rtol=1e-8)
    np.testing.assert_allclose(other.model.means, fit.model.means, atol=1e-5)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("combination", EVERYTHING)
def test_every_combination_is_the_same_for_cells_that_come_twice(combination):
    """Per cell; but for the nodes, which are more for more cells."""
    *_, truncated = combination
    problem = hide(blobs(80), combination)
    start = start_for(problem, "diag")
    options = {"initial": start, "covariance_type": "diag", "max_iter": 8, "tol": 0}
    fit, other = (p.fit(**options) for p in (problem, problem.of(np.tile(np.arange(80), 2))))
    error = 2e-2 if truncated else 1e-8
    assert other.log_likelihood == pytest.approx(fit.log_likelihood, abs=error)
    np.testing.assert_allclose(other.model.means, fit.model.means, atol=20 * error if truncated else 1e-5)
    assert other.n_empty == 2 * fit.n_empty


# ---- difficult cells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("distance", [1e6, -1e6])
def test_a_far_outlier_takes_one_component(name, covariance_type, distance):
    x = blobs()
    x[7] = distance
    problem = hide(x, SOME[name], kept=[7])
    fit = problem.fit(covariance_type=covariance_type)
    assert_right(fit, problem)
    alone = int(np.abs(fit.model.means[:, 0]).argmax())
    # Noise spreads it by less than a unit; seen from below the cut it stands for two cells.
    np.testing.assert_allclose(fit.model.means[alone], distance, atol=2.0)
    assert 0.5 / 120 < fit.model.weights[alone] < 3 / 120
    assert np.abs(fit.model.means[1 - alone]).max() < 10


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("distance", [1e4, 1e7, 1e9])
def test_an_outlier_in_the_only_component_does_not_end_it_below_its_start(name, covariance_type, distance):
    """The smallest eigenvalues are lost beside that of the outlier: whatever digits are left, EM has not to fall."""
    x = blobs(d=3)
    x[7] = distance * np.array([1.0, 1.1, 0.9])
    problem = hide(x, SOME[name], kept=[7])
    try:
        fit = problem.fit(1, covariance_type=covariance_type)
    except CohortgmmError:
        return
    assert np.isfinite(fit.model.covariances).all()
    assert fit.log_likelihood >= fit.history[0] - 1e-6
    if distance == 1e4:
        assert_right(fit, problem)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_distinct", [1, 5])
def test_cells_that_are_the_same_many_times_over_are_fitted_at_the_floor(name, covariance_type, n_distinct):
    x = np.repeat(blobs(30)[:n_distinct], 60 // n_distinct, axis=0)
    problem = hide(x, SOME[name])
    fit = problem.fit(covariance_type=covariance_type)
    assert_right(fit, problem)
    if n_distinct == 1 and name in ("plain", "missing", "truncated"):
        assert fit.floored.any()
        # The cut goes through the cells: half of the nodes within the floor are above it, as by chance.
        np.testing.assert_allclose(fit.model.means, np.tile(x[0], (2, 1)), atol=1e-6 if name != "truncated" else 1e-2)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_constant_feature_has_the_least_variance(name, covariance_type):
    x = blobs(90, 3)
    x[:, 1] = 2.5
    problem = hide(x, SOME[name])
    fit = problem.fit(covariance_type=covariance_type, tol=1e-8, max_iter=100)
    assert_right(fit, problem)
    alive = fit.model.weights > 0.02
    np.testing.assert_allclose(fit.model.means[alive, 1], 2.5, atol=0.15)
    # Behind noise, nothing is left of it; EM takes its time for the last of it.
    assert fit.model.full_covariances[alive, 1, 1].max() < (0.02 if problem.noise is not None else EPS * 1.01)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 3), (3, 3), (4, 1)])
def test_hardly_more_cells_than_components_give_a_right_answer_or_one_error(name, covariance_type, n, d):
    x = 3 * np.random.default_rng(n).normal(size=(n, d))
    fit = assert_right_or_one_error(hide(x, SOME[name]), 2, covariance_type=covariance_type)
    if name in ("plain", "shared noise", "background"):
        assert fit is not None


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_as_many_components_as_cells_have_one_each(name, covariance_type):
    x = 10.0 * np.arange(12.0).reshape(6, 2) * [1, -1]
    problem = hide(x, SOME[name])
    fit = assert_right_or_one_error(problem, 6, covariance_type=covariance_type)
    if name in ("plain", "shared noise", "own noise"):
        np.testing.assert_allclose(np.sort(fit.model.means[:, 0]), x[:, 0], atol=1e-3)
        np.testing.assert_allclose(fit.model.weights, 1 / 6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("n_components", [1, 3])
def test_one_feature_is_enough(name, n_components):
    problem = hide(blobs(90, 1), SOME[name])
    fits = [problem.fit(n_components, covariance_type=c, max_iter=30) for c in COVARIANCE_TYPES]
    for fit in fits:
        assert_right(fit, problem)
    if n_components == 1:  # a variance is a covariance
        # But for where the tolerance ends EM, which is extrapolated in other coordinates.
        error = 1e-4 if problem.cut is None else 1e-3
        assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, abs=error)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_one_component_is_the_normal_distribution_of_the_cells(kind, covariance_type):
    """Shared noise comes off the covariance, own noise does so where it is the same for all."""
    x = np.random.default_rng(0).normal(size=(150, 2)) @ np.array([[1.5, 0.4], [0.0, 1.2]])
    problem = hide(x, (kind, False, False, False))
    if problem.is_per_cell:
        problem.options["noise"] = np.repeat(problem.noise[:1], 150, axis=0)
    fit = problem.fit(1, covariance_type=covariance_type, tol=1e-13, max_iter=2000)
    assert_right(fit, problem)
    noise = np.zeros((2, 2))
    if problem.noise is not None:
        noise = problem.noise[0] if problem.is_per_cell else problem.noise
        noise = np.diag(noise) if noise.ndim == 1 else noise
    expected = np.cov(x, rowvar=False, bias=True) - noise
    if covariance_type == "full":
        np.testing.assert_allclose(fit.model.covariances[0], expected, atol=1e-5)
        np.testing.assert_allclose(fit.model.means[0], x.mean(axis=0), atol=1e-5)
    elif not kind.endswith("full"):  # correlated noise leaves no closed form for variances
        np.testing.assert_allclose(fit.model.covariances[0], np.diag(expected), atol=1e-5)
