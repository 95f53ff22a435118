"""Every combination of noise, missing features, selection and background, with references for its fits."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from cohortgmm.errors import CohortgmmError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

COVARIANCE_TYPES = ["full", "diag"]

EPS = 1e-4

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


def start_for(problem, covariance_type, n_components=2):
    """A broad start that is the same for all forms of the same cells."""
    d = problem.x.shape[1]
    means = np.linspace(-1.0, 4.0, n_components)[:, None] * np.ones(d)
    covariances = np.full((n_components, d), 4.0)
    covariances = covariances if covariance_type == "diag" else covariances[:, :, None] * np.eye(d)
    return GaussianMixture(np.full(n_components, 1 / n_components), means, covariances)
