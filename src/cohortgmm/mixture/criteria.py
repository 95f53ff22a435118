"""Information criteria, which compare mixtures with different numbers of components."""

import math


def n_free_parameters(
    n_components: int,
    n_features: int,
    covariance_type: str,
    *,
    n_frozen: tuple[int, int, int] = (0, 0, 0),
    background: bool = False,
) -> int:
    """Free parameters of a mixture: means, covariances and K − 1 weights.

    ``n_frozen`` weights, means and covariances do not count; a ``background`` with a fitted amplitude is one weight more.
    """
    per_covariance = n_features if covariance_type == "diag" else n_features * (n_features + 1) // 2
    frozen_weights, frozen_means, frozen_covariances = n_frozen
    n_weights = max(n_components - frozen_weights + background - 1, 0)
    n_means, n_covariances = n_components - frozen_means, n_components - frozen_covariances
    return n_means * n_features + n_covariances * per_covariance + n_weights


def aic(log_likelihood: float, n_parameters: int) -> float:
    """Akaike's information criterion, −2 log L + 2 p (Akaike 1974); ``log_likelihood`` is the total in nats."""
    return -2.0 * log_likelihood + 2.0 * n_parameters


def bic(log_likelihood: float, n_parameters: int, n_cells: int) -> float:
    """Bayesian information criterion, −2 log L + p log n (Schwarz 1978); ``log_likelihood`` is the total in nats."""
    return -2.0 * log_likelihood + n_parameters * math.log(n_cells)
