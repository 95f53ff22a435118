"""Mixtures and cells of known truth."""

import numpy as np
import pytest

from cohortgmm.mixture.model import GaussianMixture


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
