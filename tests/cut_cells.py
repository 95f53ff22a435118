"""Cells of which a completeness function lets only a part be seen."""

import numpy as np

from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.truncated import TruncatedExpectation, Truncation, unobserved_moments
from cohortgmm.mixture.observations.completeness import Completeness
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]

# Quasi-random nodes err by about one node per edge: 1e-5 of the unseen share with 2^17 of them, 1e-4 with 2^14. What
# that does to a mean or a standard deviation is multiplied by how little the seen cells tell about them, here up to
# some thirty.
MANY, FEW = 1 << 17, 1 << 14

SHARE_ERROR = {MANY: 5e-5, FEW: 5e-4}


def above(c, feature=0):
    """Cells are seen where a feature is above c."""
    return lambda x: (x[:, feature] > c).astype(float)


def within(lower, upper):
    return lambda x: ((x > lower) & (x < upper)).all(axis=1).astype(float)


def everywhere(x):
    return np.ones(len(x))


def constantly(c):
    return lambda x: np.full(len(x), c)


def slope(x):
    return np.clip(1.0 - x[:, 0], 0.0, 1.0)


def selection_of(function, noise_at=None, seed=7):
    return Truncation(Completeness(function), noise_at, seed)


def unseen_share(model, function, n_nodes=MANY, noise_at=None, seed=7, at=None):
    """Share of a mixture that is not seen, from nodes made for it, or for ``at``."""
    nodes = selection_of(function, noise_at, seed).nodes(model if at is None else at, n_nodes)
    return unobserved_moments(model, nodes).nk.sum()


def truncated(x, selection, start, n_nodes=FEW, noise=None):
    """The E-step with its nodes made for ``start``."""
    cells = Measurements(x, noise, background=start.background)
    seen = choose_estep(cells, start.n_components, start.covariance_type)
    return TruncatedExpectation(seen, selection, n_nodes).begin(start)


def seen_of(x, function, seed=0):
    """The cells that are chosen with the probabilities that ``function`` gives."""
    return x[np.random.default_rng(seed).random(len(x)) < function(x)]
