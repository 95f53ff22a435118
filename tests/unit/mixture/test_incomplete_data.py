"""Fits of cells part of which is hidden, in every combination: a right and finite answer, or one clear error."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special, stats

from cohortgmm.errors import CohortgmmError, ConfigError, DataError, SingularCovarianceError
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

COVARIANCE_TYPES = ["full", "diag"]

EPS = 1e-4

NOISES = ["no noise", "shared", "shared full", "own", "own full"]

#: What may be hidden: noise, missing features, background, selection.
EVERYTHING = list(product(["no noise", "shared full", "own"], [False, True], [False, True], [False, True]))

#: Each by itself, and together with what it might get in the way of.
SOME = {
    "plain": ("no noise", False, False, False),
    "shared noise": ("shared", False, False, False),
    "own noise": ("own", False, False, False),
    "own covariances": ("own full", False, False, False),
    "missing": ("no noise", True, False, False),
    "background": ("no noise", False, True, False),
    "truncated": ("no noise", False, False, True),
    "missing through noise": ("own", True, False, False),
    "noise and background": ("shared full", False, True, False),
    "all at once": ("own", True, True, True),
}


#: Fewer of them, where each costs several fits.
FEW = ["plain", "own noise", "missing", "background", "truncated", "all at once"]


@pytest.fixture(autouse=True)
def few_nodes(tune):
    """The unseen part to within a hundredth."""
    tune(most_nodes=1 << 12)


@dataclass
class Problem:
    """Cells and the arguments of their fit."""

    x: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    cut: float | None = None

    @property
    def noise(self):
        return self.options.get("noise")

    @property
    def is_per_cell(self):
        shared = ((self.x.shape[1],), (self.x.shape[1],) * 2)
        return self.noise is not None and self.noise.shape not in shared

    def fit(self, n_components=2, **options):
        return fit_mixture(self.x, n_components, **({"eps": EPS, "n_init": 1, "max_iter": 60} | self.options | options))

    def of(self, rows):
        """Some of the cells."""
        options = dict(self.options)
        if self.is_per_cell:
            options["noise"] = self.noise[rows]
        return Problem(self.x[rows], options, self.cut)


#: Cells below the cut are seen with this probability, those of which that is not known with the other.
SEEN_BELOW, SEEN_SOMEWHERE = 0.6, 0.8


def seen_at(cut):
    def completeness(x):
        return np.where(np.isnan(x[:, 0]), SEEN_SOMEWHERE, np.where(x[:, 0] > cut, 1.0, SEEN_BELOW))

    return completeness


def hide(x, combination, *, seed=0, kept=()):
    """Cells with noise of a tenth of their spread or so, a fifth of the values gone, a box around most, a cut."""
    kind, missing, background, truncated = combination
    n, d = x.shape
    rng, options = np.random.default_rng(seed), {}
    low, high = np.quantile(x, [0.05, 0.95], axis=0)
    problem = Problem(x.copy(), options)
    if kind != "no noise":
        variances = rng.uniform(0.05, 0.3, size=(n, d))
        correlations = 0.02 * (np.ones((d, d)) - np.eye(d))
        options["noise"] = {
            "shared": variances[0],
            "shared full": np.diag(variances[0]) + correlations,
            "own": variances,
            "own full": variances[:, :, None] * np.eye(d) + correlations,
        }[kind]
    if missing:
        gone = rng.random(x.shape) < 0.2
        gone[list(kept)] = False
        gone[np.arange(min(n, d)), np.arange(min(n, d))] = False  # every feature is there in some cell
        problem.x[gone] = np.nan
    if background:
        options["background"] = Background(low - 1.0, high + 1.0, 0.1)
    if truncated:
        problem.cut = float(np.median(x[:, 0]))
        options["completeness"] = seen_at(problem.cut)
    return problem


def blobs(n=120, d=2, seed=0):
    """Two components and a few cells that belong to neither."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 5.0 * (np.arange(n) % 3 == 0)[:, None]
    x[1 :: n // 6] = rng.uniform(-3, 8, size=x[1 :: n // 6].shape)
    return x


# ---- references ----------------------------------------------------------------------------------------------------


def log_density(model, problem):
    """Log-densities by their definition, for cells with the same features at a time; NaN for cells without any."""
    x, d, result = problem.x.astype(float), model.n_features, np.full(len(problem.x), np.nan)
    noise = np.zeros((len(x), d, d))
    if problem.noise is not None:
        own = np.asarray(problem.noise, dtype=float)
        is_diagonal = own.ndim == 1 + problem.is_per_cell
        # An infinite variance is a missing feature, which is left out below.
        noise = noise + (np.where(np.isinf(own), 0.0, own)[..., None] * np.eye(d) if is_diagonal else own)
    patterns, kinds = np.unique(~np.isnan(x), axis=0, return_inverse=True)
    for kind, pattern in enumerate(patterns):
        rows, there = np.flatnonzero(kinds.ravel() == kind), np.flatnonzero(pattern)
        if not len(there):
            continue
        cells, blur = x[np.ix_(rows, there)], noise[np.ix_(rows, there, there)]
        parts = []
        for k in np.flatnonzero(model.weights):
            covariance = model.full_covariances[k][np.ix_(there, there)] + blur
            shift = cells - model.means[k, there]
            distance = np.einsum("nd,nd->n", shift, np.linalg.solve(covariance, shift[:, :, None])[:, :, 0])
            determinant = np.linalg.slogdet(2 * np.pi * covariance)[1]
            parts.append(np.log(model.weights[k]) - 0.5 * (determinant + distance))
        if model.background is not None and model.background.amp > 0:
            lower, upper = model.background.lower[there], model.background.upper[there]
            scale = np.sqrt(np.einsum("ndd->nd", blur))
            with np.errstate(divide="ignore", invalid="ignore"):
                share = special.ndtr((cells - lower) / scale) - special.ndtr((cells - upper) / scale)
                share = np.where(scale > 0, share, (cells >= lower) & (cells <= upper))
                parts.append(np.log(model.background.amp) + np.log(share / (upper - lower)).sum(axis=1))
        result[rows] = special.logsumexp(parts, axis=0)
    return result


def seen_share(model, problem):
    """Share of all cells that is seen: below the cut, only some of them are."""
    noise = np.zeros(1)
    if problem.noise is not None:
        own = problem.noise if problem.is_per_cell else problem.noise[None]
        noise = own[:, 0] if own.ndim == 2 else own[:, 0, 0]
    scales = np.sqrt(model.full_covariances[:, 0, 0] + noise[:, None])
    below = float((stats.norm.cdf(problem.cut, model.means[:, 0], scales) @ model.weights).mean())
    if model.background is not None:
        low, high = model.background.lower[0], model.background.upper[0]
        # Noise of at most 0.3 moves hardly any of a box of some units over the cut, and as many back.
        below += model.background.amp * float(np.clip((problem.cut - low) / (high - low), 0, 1))
    return 1 - (1 - SEEN_BELOW) * below


def assert_right(fit, problem, *, floor=EPS):
    """Finite, a mixture, above the floor, of the likelihood it says, with the unseen and the empty counted."""
    model = fit.model
    assert all(np.isfinite(array).all() for array in (*model.arrays().values(), fit.history))
    assert model.weights.min() >= 0
    amp = 0.0 if model.background is None else model.background.amp
    assert 0 <= amp <= 1
    assert model.weights.sum() + amp == pytest.approx(1, rel=1e-9)
    # Rebuilding from eigenvectors rounds at 1e-16 of the largest one.
    values = np.linalg.eigvalsh(model.full_covariances)
    assert np.all(values[:, 0] >= floor * (1 - 1e-9) - 1e-15 * values[:, -1])
    assert fit.log_likelihood == fit.history[-1]
    assert len(fit.history) == fit.n_iter + 1
    assert fit.n_empty == np.isnan(problem.x).all(axis=1).sum()
    expected = np.nanmean(log_density(model, problem)) - np.log(fit.completeness)
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-6, abs=1e-6)
    n = len(problem.x) - fit.n_empty
    assert fit.n_unobserved == pytest.approx(n * (1 - fit.completeness) / fit.completeness, rel=1e-9, abs=1e-9)
    if problem.cut is None:
        assert (fit.completeness, fit.n_unobserved) == (1, 0)
        assert np.diff(fit.history).min(initial=0) >= -1e-9 * max(1, np.abs(fit.history).max())
    else:
        # 2^12 nodes, noise that is drawn at random.
        assert fit.completeness == pytest.approx(seen_share(model, problem), abs=0.015)
    responsibilities = model.responsibilities(problem.x, problem.noise)
    assert np.isfinite(responsibilities).all()
    assert responsibilities.min() >= 0
    assert responsibilities.sum(axis=1).max() <= 1 + 1e-9


def assert_right_or_one_error(problem, n_components=2, **options):
    """Returns the fit, or None after an error."""
    message = "an answer"
    try:
        fit = problem.fit(n_components, **options)
    except CohortgmmError as error:
        fit, message = None, str(error)
    assert message
    assert "\n" not in message
    if fit is not None:
        assert_right(fit, problem)
    return fit


def assert_same_bits(fit, other):
    for name, array in fit.model.arrays().items():
        assert np.array_equal(array, other.model.arrays()[name]), name
    assert np.array_equal(fit.history, other.history)
    assert np.array_equal(fit.floored, other.floored)
    assert fit.n_unobserved == other.n_unobserved
    assert fit.n_iter == other.n_iter


def start_for(problem, covariance_type, n_components=2):
    """A broad start that is the same for all forms of the same cells."""
    d = problem.x.shape[1]
    means = np.linspace(-1.0, 4.0, n_components)[:, None] * np.ones(d)
    covariances = np.full((n_components, d), 4.0)
    covariances = covariances if covariance_type == "diag" else covariances[:, :, None] * np.eye(d)
    return GaussianMixture(np.full(n_components, 1 / n_components), means, covariances)


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


# ---- noise and missing features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [np.zeros(2), np.zeros((2, 2)), np.zeros((120, 2)), np.zeros((120, 2, 2))])
@pytest.mark.parametrize("name", ["plain", "missing", "all at once"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_noise_of_zero_is_none(zeros, name, covariance_type):
    _, *others = SOME[name]
    without = hide(blobs(), ("no noise", *others))
    noisy = Problem(without.x, without.options | {"noise": zeros}, without.cut)
    start = start_for(without, covariance_type)
    options = {"covariance_type": covariance_type, "initial": start, "tol": 1e-9, "max_iter": 500}
    fit, expected = noisy.fit(**options), without.fit(**options)
    assert_right(fit, noisy)
    # The plain fit is not accelerated, and nodes with noise have more dimensions.
    error = 1e-2 if without.cut is not None else 1e-6
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood, abs=error)
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=20 * error if error > 1e-3 else 1e-3)


@pytest.mark.parametrize("form", ["variances", "covariances"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_huge_noise_on_one_feature_is_as_good_as_missing(form, background, covariance_type):
    x, rng = blobs(), np.random.default_rng(3)
    gone = rng.random(120) < 0.4
    noise = np.full(x.shape, 0.1)
    missing = Problem(np.where(gone[:, None] & [False, True], np.nan, x), {"noise": noise})
    noise = np.where(gone[:, None] & [False, True], 1e12, noise)
    noisy = Problem(x, {"noise": noise if form == "variances" else noise[:, :, None] * np.eye(2)})
    if background:
        for problem in (missing, noisy):
            # So wide in the second feature that what is seen of it through the noise is the same for all cells there.
            problem.options["background"] = Background([-4.0, -4.0], [9.0, 9.0], 0.1, adjust_amp=False)
    options = {"covariance_type": covariance_type, "initial": start_for(missing, covariance_type), "tol": 1e-9}
    fit, expected = (p.fit(max_iter=500, **options) for p in (noisy, missing))
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=2e-3)
    np.testing.assert_allclose(fit.model.covariances, expected.model.covariances, atol=5e-3)
    # Each value that is not there has the density of the noise, in which the mixture is lost.
    lost = gone.sum() * 0.5 * np.log(2 * np.pi * 1e12) / 120
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood - lost, abs=1e-6)


@pytest.mark.parametrize("filler", [0.0, -3.0, 1e30])
@pytest.mark.parametrize("handling", ["guarded", "robust"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_an_infinite_variance_is_a_missing_feature_whatever_stands_there(filler, handling, covariance_type):
    """In the start, the floor and the fit."""
    x, gone = blobs(), np.random.default_rng(3).random((120, 2)) < 0.2
    noise = np.random.default_rng(4).uniform(0.05, 0.2, size=x.shape)
    missing = Problem(np.where(gone, np.nan, x), {"noise": noise})
    endless = Problem(np.where(gone, filler, x), {"noise": np.where(gone, np.inf, noise)})
    options = {"covariance_type": covariance_type, "singularity_handling": handling}
    fit, expected = (p.fit(**options) for p in (endless, missing))
    np.testing.assert_allclose(fit.history, expected.history, rtol=1e-9)
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=1e-6)
    assert fit.n_empty == expected.n_empty == gone.all(axis=1).sum()


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_cells_without_any_feature_are_counted_and_change_nothing(name, covariance_type):
    problem = hide(blobs(100), SOME[name])
    rest = np.setdiff1d(np.arange(100), [0, 50, 51, 99])
    hidden = Problem(problem.x.copy(), problem.options, problem.cut)
    hidden.x[[0, 50, 51, 99]] = np.nan
    options = {"covariance_type": covariance_type, "initial": start_for(problem, covariance_type), "max_iter": 20}
    if problem.noise is not None and "completeness" in problem.options:
        options["noise_at"] = np.full(2, 0.1)  # else drawn from the cells, by their position
    fit = hidden.fit(**options, tol=0)
    assert fit.n_empty == 4 + np.isnan(problem.x[rest]).all(axis=1).sum()
    expected = problem.of(rest).fit(**options, tol=0)
    if name == "plain":  # nothing hidden: no acceleration
        assert fit.log_likelihood >= expected.log_likelihood - 1e-9
        return
    np.testing.assert_allclose(fit.history, expected.history, rtol=1e-9)
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=1e-6)


@pytest.mark.parametrize("name", list(SOME))
def test_a_feature_that_is_missing_in_all_cells_is_an_error(name):
    problem = hide(blobs(d=3), SOME[name])
    problem.x[:, 1] = np.nan
    with pytest.raises(DataError, match="feature 1 is missing in all cells: leave it out"):
        problem.fit()


@pytest.mark.parametrize("noise", [np.array([0.1, np.inf]), np.tile([0.1, np.inf], (120, 1))])
def test_a_feature_of_infinite_noise_in_all_cells_is_that_error_too(noise):
    with pytest.raises(DataError, match="feature 1 is missing in all cells: leave it out"):
        Problem(blobs(), {"noise": noise}).fit()


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("noise", [None, np.array([0.1, np.inf]), np.tile([0.1, np.inf], (400, 1))])
def test_where_the_components_are_known_a_feature_may_be_missing_in_all_cells(covariance_type, noise):
    rng = np.random.default_rng(5)
    covariances = np.array([[[1.0, 0.4], [0.4, 2.0]], [[0.5, 0.0], [0.0, 1.0]]])
    covariances = covariances if covariance_type == "full" else np.diagonal(covariances, axis1=1, axis2=2)
    known = GaussianMixture([0.5, 0.5], [[0.0, 3.0], [4.0, -3.0]], covariances)
    x = np.where(rng.random(400) < 0.3, 0.0, 4.0) + rng.normal(size=400)
    cells = np.column_stack([x, np.full(400, np.nan if noise is None else 7.0)])
    blur, variances = (0.0 if noise is None else 0.1), np.array([1.0, 0.5])
    fit = fit_mixture(
        cells, 2, initial=known, covariance_type=covariance_type, noise=noise, frozen={"mean": "all", "covar": "all"}
    )
    scale = np.sqrt(variances + blur)
    density = np.exp(-0.5 * ((x[:, None] - [0.0, 4.0]) / scale) ** 2) / scale / np.sqrt(2 * np.pi)
    best = optimize.minimize_scalar(lambda w: -np.log(density @ [w, 1 - w]).mean(), bounds=(0, 1), method="bounded")
    assert fit.model.weights[0] == pytest.approx(best.x, abs=1e-3)
    assert fit.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    one = fit_mixture(
        cells[:1], 2, initial=known, covariance_type=covariance_type, frozen={"mean": "all", "covar": "all"}
    )
    assert one.model.weights.sum() == pytest.approx(1)
    with pytest.raises(DataError, match=r"feature 1 is missing in all cells: leave it out, or map the cells onto"):
        fit_mixture(cells, 2, initial=known, covariance_type=covariance_type, noise=noise, frozen={"mean": "all"})


@pytest.mark.parametrize("name", list(SOME))
def test_cells_without_any_value_are_an_error(name):
    problem = hide(blobs(60), SOME[name])
    problem.x[:] = np.nan
    problem.options.pop("background", None)
    with pytest.raises(DataError, match="0 cells are too few for 2 components"):
        problem.fit()


@pytest.mark.parametrize("name", list(SOME))
def test_fewer_cells_than_components_are_an_error(name):
    problem = hide(blobs(60), SOME[name])
    with pytest.raises(DataError, match=r"\d+ cells are too few for 61 components"):
        problem.fit(61)
    few = problem.of(np.arange(5))
    few.x[1:4] = np.nan
    with pytest.raises(DataError, match="2 cells are too few for 3 components"):
        few.fit(3)


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_an_error(name, value):
    problem = hide(blobs(60), SOME[name])
    problem.x[11, 1] = value
    with pytest.raises(DataError, match="1 infinite values, the first in cell 11"):
        problem.fit()


# ---- backgrounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["background", "noise and background", "all at once"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_box_without_any_cell_is_an_error(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    problem.options["background"] = Background([1000.0, 1000.0], [1001.0, 1001.0], 0.1)
    with pytest.raises(DataError, match="the background's box holds none of the cells"):
        problem.fit(covariance_type=covariance_type)


@pytest.mark.parametrize("name", ["background", "noise and background", "all at once"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("adjust_amp", [False, True])
def test_a_box_of_part_of_the_cells_has_a_share_of_those(name, covariance_type, adjust_amp):
    problem = hide(blobs(), SOME[name])
    box = Background([2.0, 2.0], [9.0, 9.0], 0.2, adjust_amp=adjust_amp)
    problem.options["background"] = box
    fit = problem.fit(covariance_type=covariance_type)
    assert_right(fit, problem)
    assert adjust_amp or fit.model.background.amp == 0.2
    complete = ~np.isnan(problem.x).any(axis=1)
    outside = complete & (problem.x < 0).all(axis=1)  # three standard deviations of the noise from the box
    share = fit.model.background_probability(problem.x, problem.noise)
    assert share[outside].max() < 1e-2
    assert adjust_amp or share[complete].max() > 1e-2


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_background_of_no_amplitude_is_none(covariance_type):
    x = blobs()
    options = {
        "covariance_type": covariance_type,
        "initial": start_for(Problem(x), covariance_type),
        "tol": 1e-10,
        "max_iter": 1000,
    }
    box = Background([-4.0, -4.0], [9.0, 9.0], 0.0, adjust_amp=False)
    fit, expected = fit_mixture(x, 2, background=box, **options), fit_mixture(x, 2, **options)
    assert fit.model.background.amp == 0
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-7)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_background_of_all_cells_leaves_finite_components(covariance_type):
    problem = Problem(blobs(), {"background": Background([-9.0, -9.0], [19.0, 19.0], 1.0, adjust_amp=False)})
    fit = problem.fit(covariance_type=covariance_type)
    assert not fit.model.weights.any()
    assert np.isfinite(fit.model.means).all()
    assert fit.log_likelihood == pytest.approx(-2 * np.log(28), rel=1e-12)


# ---- forms of the same cells ---------------------------------------------------------------------------------------


def in_fortran_order(array, folder):
    return np.asfortranarray(array)


def mapped(array, folder):
    path = folder / f"{id(array)}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def read_only(array, folder):
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array, folder):
    return np.repeat(array, 3, axis=0)[::3]


@pytest.mark.parametrize("form", [in_fortran_order, mapped, read_only, strided])
@pytest.mark.parametrize("name", FEW)
def test_the_form_of_the_arrays_changes_no_bit(tmp_path, form, name):
    problem = hide(blobs(90, 3), SOME[name])
    other = Problem(form(problem.x, tmp_path), dict(problem.options), problem.cut)
    if problem.noise is not None:
        other.options["noise"] = form(problem.noise, tmp_path)
    before = problem.x.copy()
    fit, same = (p.fit(max_iter=4) for p in (problem, other))
    np.testing.assert_allclose(same.history, fit.history, rtol=1e-12)
    if form is not in_fortran_order:  # whose sums over features are made where they are, in their own order
        assert_same_bits(fit, same)
    assert np.array_equal(problem.x, before, equal_nan=True)


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_float32_is_fitted_as_its_float64_values(name, covariance_type):
    problem = hide(blobs(90), SOME[name])
    fits = []
    for kind in (np.float32, np.float64):
        form = Problem(problem.x.astype(np.float32).astype(kind), dict(problem.options), problem.cut)
        if problem.noise is not None:
            form.options["noise"] = problem.noise.astype(np.float32).astype(kind)
        fits.append(form.fit(covariance_type=covariance_type, max_iter=10))
    np.testing.assert_allclose(fits[0].history, fits[1].history, rtol=1e-10)
    np.testing.assert_allclose(fits[0].model.means, fits[1].model.means, rtol=1e-7, atol=1e-7)
    assert fits[0].model.means.dtype == np.float64


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_number_of_threads_changes_no_bit(name, covariance_type):
    problem = hide(blobs(400), SOME[name])
    options = {"covariance_type": covariance_type, "max_iter": 4}
    assert_same_bits(problem.fit(**options), problem.fit(n_threads=3, **options))


# ---- starts, seeds and moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("init", list(STARTS))
def test_every_way_to_start_ends_in_a_right_fit(name, covariance_type, init):
    problem = hide(blobs(), SOME[name])
    fit = problem.fit(3, covariance_type=covariance_type, init=init, max_iter=6)
    assert_right(fit, problem)


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_given_start_is_where_the_fit_begins(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    start = start_for(problem, covariance_type)
    options = {"covariance_type": covariance_type, "initial": start}
    fit = problem.fit(init="none", **options)
    assert_right(fit, problem)
    assert_same_bits(fit, problem.fit(init="random", random_state=0, **options))
    first = start if "background" not in problem.options else start.with_background(problem.options["background"])
    assert fit.history[0] == pytest.approx(
        np.nanmean(log_density(first, problem)) - (0 if problem.cut is None else np.log(seen_share(first, problem))),
        abs=1e-9 if problem.cut is None else 2e-2,
    )
    with pytest.raises(ConfigError, match='init "none" starts from `initial`, which is not given'):
        problem.fit(init="none")


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moves_never_end_at_a_lower_likelihood(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    options = {"covariance_type": covariance_type, "max_iter": 6, "init": "random", "random_state": 3}
    plain, moved = (problem.fit(3, split_merge=rounds, **options) for rounds in (0, 2))
    assert_right(moved, problem)
    assert moved.log_likelihood >= plain.log_likelihood


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_seeds_make_the_fit(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    options = {"covariance_type": covariance_type, "init": "random", "max_iter": 4, "tol": 0}
    seeds = (5, 5, np.random.default_rng(5), np.random.SeedSequence(5), 6)
    fits = [problem.fit(3, random_state=seed, **options) for seed in seeds]
    for again in fits[1:4]:
        assert_same_bits(fits[0], again)
    assert not np.array_equal(fits[0].model.means, fits[4].model.means)
    for fit in (fits[4], problem.fit(3, random_state=None, **options)):
        assert_right(fit, problem)


# ---- the floor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("handling", ["guarded", "robust", "strict"])
def test_few_distinct_cells_are_fitted_at_the_floor_or_refused(name, covariance_type, handling):
    x = np.repeat(5 * np.random.default_rng(0).normal(size=(3, 2)), 30, axis=0)
    problem = hide(x, SOME[name])
    if handling == "strict":
        fit = assert_right_or_one_error(problem, 3, covariance_type=covariance_type, singularity_handling="strict")
        if problem.noise is None and "background" not in problem.options:
            assert fit is None
            with pytest.raises(SingularCovarianceError, match="of 3 has a singular covariance"):
                problem.fit(3, covariance_type=covariance_type, singularity_handling="strict")
        else:  # behind noise, EM may not have come as far
            assert fit is None or not fit.floored.any()
        return
    floor = EPS
    if handling == "robust":
        floor = max(EPS, 0.01 * float(np.nanvar(problem.x, axis=0).mean()))
    fit = problem.fit(3, covariance_type=covariance_type, singularity_handling=handling)
    assert_right(fit, problem, floor=floor)
    if name in ("plain", "missing", "truncated"):
        smallest = np.linalg.eigvalsh(fit.model.full_covariances).min()
        assert smallest == pytest.approx(floor, rel=1e-6)


# ---- values at the limits of what is numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize(("covariance_type", "scale"), [("full", 1e8), ("full", 1e-8), ("diag", 1e8)])
def test_small_and_large_numbers_give_a_right_answer_or_one_error(name, covariance_type, scale):
    problem = hide(blobs(), SOME[name])
    scaled = Problem(problem.x * scale, dict(problem.options), None if problem.cut is None else problem.cut * scale)
    if problem.noise is not None:
        scaled.options["noise"] = problem.noise * scale**2
    if "background" in problem.options:
        box = problem.options["background"]
        scaled.options["background"] = Background(box.lower * scale, box.upper * scale, box.amp)
    if problem.cut is not None:
        scaled.options["completeness"] = seen_at(scaled.cut)
    fit = scaled.fit(covariance_type=covariance_type, eps=EPS * scale**2)
    assert_right(fit, scaled, floor=EPS * scale**2)
    expected = problem.fit(covariance_type=covariance_type)
    present = np.count_nonzero(~np.isnan(problem.x)) / (120 - fit.n_empty)
    # The ways of a start and of EM are the same; rounding may end them at another iteration.
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood - present * np.log(scale), abs=1e-2)


@pytest.mark.parametrize("value", [1e100, 1e160, 1e300])
@pytest.mark.parametrize("name", ["plain", "own noise", "background"])
def test_a_value_that_is_hardly_a_number_gives_a_finite_answer_or_one_error(name, value):
    problem = hide(blobs(60), SOME[name], kept=[3])
    problem.x[3] = value
    with np.errstate(all="ignore"):
        try:
            fit = problem.fit()
        except CohortgmmError:
            return
        assert np.isfinite(fit.history).all()
        assert all(np.isfinite(array).all() for array in fit.model.arrays().values())
