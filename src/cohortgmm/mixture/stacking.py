"""Stacking: combine mixtures of the same cells, weighted by how well each predicts cells that it was not fitted to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from cohortgmm.arguments import generator
from cohortgmm.arrays import check_labels, dense_array
from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.posterior import normalize
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.noise import Noise
from cohortgmm.mixture.result import MixtureFit, as_mixture

_MAX_ITER, _TOL = 10_000, 1e-10


def cross_validate(
    x: np.ndarray,
    n_components: int,
    *,
    n_folds: int = 10,
    noise: Noise | np.ndarray | None = None,
    random_state: int = 0,
    **options: Any,
) -> np.ndarray:
    """Log-likelihood of every cell under a mixture that was fitted without it.

    Parameters
    ----------
    x, n_components, noise
        As in :func:`cohortgmm.fit_mixture`.
    n_folds
        Number of parts; each in turn is left out.
    random_state
        Seed of the division and of the fits.
    **options
        Further arguments of :func:`cohortgmm.fit_mixture`.

    Returns
    -------
    ndarray
        (n,) nats; with a completeness function, conditional on being observed. 0 for a cell without features.

    Raises
    ------
    ConfigError
        If there are fewer than two folds, or fewer cells than folds.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> cross_validate(x, 1, n_folds=5).shape
    (300,)
    """
    check_labels(noise, x, "noise")
    x = CellData(x, missing_allowed=True).x
    whole = isinstance(n_folds, Integral) and not isinstance(n_folds, bool)
    if not (whole and 2 <= n_folds <= len(x)):
        raise ConfigError(f"n_folds must be from 2 to the number of cells ({len(x)}), got {n_folds!r}")
    fold = generator(random_state).permutation(len(x)) % n_folds
    noise = None if noise is None else Noise.validated(noise, *x.shape)
    has_features = ~np.isnan(x).all(axis=1)
    result = np.zeros(len(x))
    for i in range(n_folds):
        out = fold == i
        inside, outside = (None if noise is None else noise.take(rows) for rows in (~out, out))
        fit = fit_mixture(x[~out], n_components, noise=inside, random_state=random_state, **options)
        result[out] = fit.model.log_prob(x[out], outside) - np.log(fit.completeness)
    return np.where(has_features, result, 0.0)


def stacking_weights(log_prob: np.ndarray) -> np.ndarray:
    """Weights with which several densities together predict best (Smyth & Wolpert 1999, Machine Learning 36).

    Parameters
    ----------
    log_prob
        (M, n) log-densities of the same cells under M models that were not fitted to them, as from
        :func:`cross_validate`.

    Returns
    -------
    ndarray
        (M,) weights, summing to one, of the highest likelihood.

    Examples
    --------
    >>> import numpy as np
    >>> stacking_weights(np.log([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]])).round(2).tolist()
    [0.71, 0.29]
    """
    try:
        log_prob = np.asarray(dense_array(log_prob, "they"), dtype=np.float64)
    except DataError as error:
        raise DataError(f"log_prob must be finite numbers of shape (M, n): {error}") from None
    if log_prob.ndim != 2 or log_prob.size == 0 or not np.isfinite(log_prob).all():
        raise DataError(f"log_prob must be finite numbers of shape (M, n), got shape {log_prob.shape}")
    weights = np.full(len(log_prob), 1.0 / len(log_prob))
    before = -np.inf
    for _ in range(_MAX_ITER):
        with np.errstate(divide="ignore"):
            resp, total = normalize(log_prob + np.log(weights)[:, None])
        weights = resp.mean(axis=1)
        if total.mean() - before < _TOL:
            break
        before = total.mean()
    return weights


def stack(models: Sequence[GaussianMixture], weights: np.ndarray | None = None) -> GaussianMixture:
    """Combine several mixtures into one that has all their components.

    Parameters
    ----------
    models
        Mixtures of the same features, all full or all diagonal; backgrounds must have the same box.
    weights
        (M,) share of each, as from :func:`stacking_weights`; None is equal shares.

    Returns
    -------
    GaussianMixture

    Raises
    ------
    DataError
        If the mixtures or the weights do not fit together.
    """
    if isinstance(models, GaussianMixture | MixtureFit | Mapping | str) or not isinstance(models, Iterable):
        raise ConfigError(f"models must be a list of mixtures, got {format_value(models)}")
    models = [as_mixture(model, f"models[{i}]") for i, model in enumerate(models)]
    shares = np.full(len(models), 1.0) if weights is None else dense_array(weights, "weights").astype(np.float64)
    if not models or shares.shape != (len(models),) or not np.all(shares >= 0) or not 0 < shares.sum() < np.inf:
        raise DataError(f"{len(models)} mixtures need as many weights of at least 0, got {shares.tolist()}")
    kinds = {(model.n_features, model.covariance_type) for model in models}
    if len(kinds) > 1:
        raise DataError(f"mixtures of different features or covariance types cannot be stacked: {sorted(kinds)}")
    shares = shares / shares.sum()
    boxes = [model.background for model in models if model.background is not None]
    for box in boxes[1:]:
        if not (np.array_equal(box.lower, boxes[0].lower) and np.array_equal(box.upper, boxes[0].upper)):
            raise DataError("mixtures with backgrounds in different boxes cannot be stacked")
    amp = sum(share * model.background.amp for share, model in zip(shares, models, strict=True) if model.background)
    return GaussianMixture(
        np.concatenate([share * model.weights for share, model in zip(shares, models, strict=True)]),
        np.concatenate([model.means for model in models]),
        np.concatenate([model.covariances for model in models]),
        replace(boxes[0], amp=float(min(amp, 1.0)), amp_min=0.0, amp_max=1.0) if boxes else None,
    )
