"""Measured cells, and their E-step by its definition: a loop over cells and components, nothing left out.

Bovy, Hogg & Roweis 2011, with T = Σ_oo + S_oo in the features o that a cell has: the cell behind the noise has the
posterior mean b = μ + Σ_·o T⁻¹ (x_o − μ_o) and covariance B = Σ − Σ_·o T⁻¹ Σ_o·.
"""

from dataclasses import dataclass
from math import erf, erfc, log, pi, sqrt

import numpy as np
from scipy.special import logsumexp

from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background


@dataclass
class Posterior:
    """What is known of every cell: (n, K) joint log-densities and distances, (n, K, D) b, (n, K, D, D) B."""

    joint: np.ndarray
    distance: np.ndarray
    background: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    n_observed: np.ndarray

    @property
    def log_prob(self):
        """(n,) log-density of the whole mixture; 0 for a cell without features."""
        whole = logsumexp(np.column_stack([self.joint, self.background]), axis=1)
        return np.where(self.n_observed > 0, whole, 0.0)

    @property
    def responsibilities(self):
        """(n, K) of the components."""
        return np.exp(self.joint - logsumexp(np.column_stack([self.joint, self.background]), axis=1)[:, None])

    def within(self, reach):
        """With the components farther than this squared distance left out, but for the best of every cell."""
        beyond = self.distance > reach
        beyond[np.arange(len(beyond)), self.joint.argmax(axis=1)] = False
        joint = np.where(beyond, -np.inf, self.joint)
        return Posterior(joint, self.distance, self.background, self.mean, self.covariance, self.n_observed)

    def moments(self, model):
        """Their sums over the cells that have a feature."""
        some = np.flatnonzero(self.n_observed)
        resp = self.responsibilities
        result = Moments.zeros(model.n_components, model.n_features, model.covariance_type)
        for i in some:
            for k in range(model.n_components):
                deviation = self.mean[i, k] - model.means[k]
                second = np.outer(deviation, deviation) + self.covariance[i, k]
                result.nk[k] += resp[i, k]
                result.first[k] += resp[i, k] * deviation
                result.second[k] += resp[i, k] * (np.diag(second) if model.covariance_type == "diag" else second)
        result.log_likelihood, result.n = self.log_prob[some].sum(), len(some)
        return result


def posterior_by_definition(model, x, noise=None):
    """Everything about every pair of cell and component."""
    x = np.asarray(x, dtype=float)
    (n, d), k = x.shape, model.n_components
    covariances = model.full_covariances
    joint, distance = np.full((n, k), -np.inf), np.zeros((n, k))
    background = np.full(n, -np.inf)
    mean, covariance, n_observed = np.zeros((n, k, d)), np.zeros((n, k, d, d)), np.zeros(n, dtype=int)
    for i in range(n):
        s = noise_covariance(noise, i, n, d)
        o = np.flatnonzero(~np.isnan(x[i]) & np.isfinite(np.diag(s)))
        n_observed[i] = len(o)
        for j in range(k):
            total = (covariances[j] + s)[np.ix_(o, o)]
            deviation = x[i, o] - model.means[j, o]
            score = np.linalg.solve(total, deviation)
            distance[i, j] = deviation @ score
            if model.weights[j] > 0:
                log_det = np.linalg.slogdet(total)[1]
                joint[i, j] = log(model.weights[j]) - 0.5 * (len(o) * log(2 * pi) + log_det + distance[i, j])
            mean[i, j] = model.means[j] + covariances[j][:, o] @ score
            covariance[i, j] = covariances[j] - covariances[j][:, o] @ np.linalg.solve(total, covariances[j][o])
        if model.background is not None and model.background.amp > 0:
            background[i] = log(model.background.amp) + background_log_density(model.background, x[i], s, o)
    return Posterior(joint, distance, background, mean, covariance, n_observed)


def e_step_by_definition(model, x, noise=None):
    """The moments of the cells about the means of the mixture."""
    return posterior_by_definition(model, x, noise).moments(model)


def noise_covariance(noise, i, n, d):
    """(D, D) noise of cell i, whichever of the four shapes the noise has; one of n = D rows is shared."""
    if noise is None:
        return np.zeros((d, d))
    noise = np.asarray(noise, dtype=float)
    own = noise if noise.shape in ((d,), (d, d)) else noise[i]
    if own.ndim == 2:
        return own
    result = np.zeros((d, d))
    np.fill_diagonal(result, own)
    return result


def background_log_density(background, x, s, features):
    """Logarithm of the uniform density at one cell, blurred feature by feature."""
    total = 0.0
    for f in features:
        lower, upper, scale = background.lower[f], background.upper[f], sqrt(s[f, f])
        if scale > 0:
            share = normal_between((x[f] - upper) / scale, (x[f] - lower) / scale)
        else:
            share = float(lower <= x[f] <= upper)
        total += (log(share) if share > 0 else -np.inf) - log(upper - lower)
    return total


def normal_between(low, high):
    """Probability that a standard normal variable lies between, from the side on which no digits are lost."""
    if low > 0:
        return 0.5 * (erfc(low / sqrt(2)) - erfc(high / sqrt(2)))
    if high < 0:
        return 0.5 * (erfc(-high / sqrt(2)) - erfc(-low / sqrt(2)))
    return 0.5 * (erf(high / sqrt(2)) - erf(low / sqrt(2)))


NOISES = (
    "none",
    "shared variances",
    "shared covariance",
    "few variances",
    "few covariances",
    "own variances",
    "own covariances",
    "few, some infinite",
    "own, some infinite",
)
GAPS = ("complete", "few patterns", "any pattern", "both")


def make_noise(kind, n, d, rng, scale=1.0):
    """Noise of cells with variances around ``scale``."""

    def variances(*shape):
        return scale * rng.uniform(0.1, 2.0, size=(*shape, d))

    def covariances(*shape):
        root = rng.normal(size=(*shape, d, d)) * np.sqrt(scale / d)
        return root @ np.swapaxes(root, -1, -2) + 0.1 * scale * np.eye(d)

    if kind == "none":
        return None
    which = rng.integers(2, size=n)
    if kind.startswith("few") and kind != "few covariances":
        noise = variances(2)[which]
    elif kind.startswith("own") and kind != "own covariances":
        noise = variances(n)
    else:
        made = {
            "shared variances": lambda: variances(),
            "shared covariance": lambda: covariances(),
            "few covariances": lambda: covariances(2)[which],
            "own covariances": lambda: covariances(n),
        }
        return made[kind]()
    if kind == "few, some infinite":
        noise[which == 1, 0] = np.inf
    if kind == "own, some infinite":
        noise[rng.random((n, d)) < 0.2] = np.inf
    return noise


def make_gaps(kind, x, rng):
    """The cells with some features missing; one in all but complete cells has none at all."""
    x = np.array(x)
    n, d = x.shape
    if kind == "complete":
        return x
    if kind in ("few patterns", "both"):
        x[rng.random(n) < 0.4, 0] = np.nan
        x[rng.random(n) < 0.3, d - 1] = np.nan
    if kind in ("any pattern", "both"):
        x[(rng.random((n, d)) < 0.3) & (rng.random(n) < (0.15 if kind == "both" else 1.0))[:, None]] = np.nan
    x[n // 2] = np.nan
    return x


def with_background(model, amp=0.2, **bounds):
    """The mixture beside a box of which about half of its cells are in."""
    centre, width = model.means.mean(axis=0), 2.0 + np.ptp(model.means, axis=0)
    return model.with_background(Background(centre - 0.5 * width, centre + 0.5 * width, amp, **bounds))


def shifted(model, shift):
    """The mixture and its background moved."""
    background = model.background
    if background is not None:
        background = Background(background.lower + shift, background.upper + shift, background.amp)
    return GaussianMixture(model.weights, model.means + shift, model.covariances, background)
