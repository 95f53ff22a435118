"""Fitting a Gaussian mixture by expectation-maximisation."""

import os
from dataclasses import dataclass, replace
from numbers import Integral
from typing import BinaryIO

import numpy as np

from cohortgmm.archive import read_arrays
from cohortgmm.errors import ConfigError, DataError, FitError, SingularCovarianceError
from cohortgmm.mixture.gaussian import covariance_floor, floor_covariances
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.start import STARTS
from cohortgmm.mixture.steps import expect, maximize

COVARIANCE_TYPES = ("full", "diag")
SINGULARITY_HANDLING = ("guarded", "robust", "strict")


@dataclass(frozen=True, eq=False, repr=False)
class MixtureFit:
    """A fitted mixture and how it was reached.

    Attributes
    ----------
    model
        The mixture.
    log_likelihood
        Mean log-likelihood of the fitted cells under ``model``, in nats per cell.
    n_iter
        Number of EM iterations (M-steps) made from the start that was kept.
    converged
        Whether the last iteration gained less than ``tol``.
    history
        (n_iter + 1,) mean log-likelihood per cell of the start and after every iteration.
    floored
        (K,) components whose covariance sits at the floor in ``model``: too few distinct cells for their features.
    """

    model: GaussianMixture
    log_likelihood: float
    n_iter: int
    converged: bool
    history: np.ndarray
    floored: np.ndarray

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return f"MixtureFit({self.model!r}, log_likelihood={self.log_likelihood:.6g}, n_iter={self.n_iter}, {state})"

    def save(self, file: str | os.PathLike | BinaryIO) -> None:
        """Write to an ``.npz`` file, which :meth:`GaussianMixture.load` reads too."""
        np.savez(
            file,
            **self.model.arrays(),
            n_iter=self.n_iter,
            converged=self.converged,
            history=self.history,
            floored=self.floored,
        )

    @classmethod
    def load(cls, file: str | os.PathLike) -> "MixtureFit":
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            If the file holds something else.
        """
        model = GaussianMixture.load(file)
        arrays = read_arrays(file, ("n_iter", "converged", "history", "floored"), content="fit")
        history = arrays["history"]
        n_iter, converged = int(arrays["n_iter"]), bool(arrays["converged"])
        return cls(model, float(history[-1]), n_iter, converged, history, arrays["floored"])


def fit_mixture(
    x: np.ndarray,
    n_components: int,
    *,
    covariance_type: str = "full",
    max_iter: int = 100,
    tol: float = 1e-3,
    n_init: int = 1,
    eps: float = 1e-4,
    singularity_handling: str = "guarded",
    init: str = "kmeans",
    initial: GaussianMixture | None = None,
    random_state: int | np.random.SeedSequence | np.random.Generator | None = 0,
) -> MixtureFit:
    """Fit a Gaussian mixture to cells by EM (Dempster, Laird & Rubin 1977).

    Parameters
    ----------
    x
        (n, D) cells, finite, n ≥ ``n_components``; computed in float64 whatever the type.
    n_components
        Number of components K.
    covariance_type
        ``"full"`` or ``"diag"``.
    max_iter
        Largest number of iterations.
    tol
        Stop when the mean log-likelihood per cell rises by less than this, in nats.
    n_init
        Number of starts; the one that ends at the highest likelihood is kept.
    eps
        Floor under the eigenvalues of the covariances, in squared units of x.
    singularity_handling
        What happens to an eigenvalue below the floor: ``"guarded"`` raises it to ``eps``; ``"robust"`` raises it to
        1 % of the mean variance of the features (or ``eps`` if that is more); ``"strict"`` makes it the end of that
        start, and an error if every start ends so. The start itself may be singular.
    init
        ``"kmeans"`` or ``"random"`` (cells as means, the data's covariance).
    initial
        Start from this mixture instead (one start), with its covariances brought above the floor.
    random_state
        Seed of the starts, or a generator.

    Returns
    -------
    MixtureFit

    Raises
    ------
    ConfigError
        For an argument out of its range.
    DataError
        For data of the wrong shape, with NaN or infinite values, or with fewer cells than components.
    SingularCovarianceError
        With ``singularity_handling="strict"``, naming component and eigenvalue.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> fit = fit_mixture(x, 1)
    >>> np.allclose(fit.model.means[0], x.mean(axis=0))
    True
    """
    _check_arguments(n_components, covariance_type, max_iter, tol, n_init, eps, singularity_handling, init)
    x = check_cells(x, n_components)
    if initial is not None and (
        initial.means.shape != (n_components, x.shape[1]) or initial.covariance_type != covariance_type
    ):
        raise ConfigError(
            f"initial has {initial.n_components} {initial.covariance_type} components in {initial.n_features} features; "
            f"the fit asks for {n_components} {covariance_type} components in {x.shape[1]}"
        )
    floor = covariance_floor(x, eps, singularity_handling)
    strict = singularity_handling == "strict"
    if initial is not None:
        # From a start below the floor the first iteration would lose likelihood and pass for converged.
        initial = replace(initial, covariances=floor_covariances(initial.covariances, floor, strict=strict)[0])
    rng = np.random.default_rng(random_state)
    best, singular = None, None
    for _ in range(1 if initial is not None else n_init):
        start = initial or STARTS[init](x, n_components, covariance_type, floor, rng)
        try:
            fit = _run(x, start, max_iter, tol, floor, strict)
        except SingularCovarianceError as error:  # another start may do better
            singular = error
            continue
        if best is None or fit.log_likelihood > best.log_likelihood:
            best = fit
    if best is None:
        raise singular
    return best


def _run(x: np.ndarray, model: GaussianMixture, max_iter: int, tol: float, floor: float, strict: bool) -> MixtureFit:
    """EM from one start; the model returned is the one its last log-likelihood was computed with."""
    history: list[float] = []
    floored = np.zeros(model.n_components, dtype=bool)
    while True:
        moments = expect(x, model)
        history.append(moments.log_likelihood / moments.n)
        if not np.isfinite(history[-1]):
            raise FitError(
                f"the log-likelihood became {history[-1]} after {len(history) - 1} iterations; rescale the data"
            )
        converged = len(history) > 1 and history[-1] - history[-2] < tol
        if converged or len(history) > max_iter:
            return MixtureFit(model, history[-1], len(history) - 1, converged, np.array(history), floored)
        model, floored = maximize(moments, model.means, floor, strict=strict)


def check_cells(x: np.ndarray, n_components: int = 1) -> np.ndarray:
    """Cells as a float64 array (n, D), refused if they cannot be fitted.

    Raises
    ------
    DataError
        If x is not two-dimensional and numeric, has NaN or infinite values, or fewer cells than components.
    """
    try:
        x = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"cells must be a numeric array (n, D): {error}") from None
    if x.ndim != 2 or x.shape[1] == 0:
        raise DataError(f"cells must be an array of shape (n, D), got {x.shape}")
    if len(x) < n_components:
        raise DataError(f"{len(x)} cells are too few for {n_components} components")
    bad = ~np.isfinite(x)
    if bad.any():
        raise DataError(
            f"{np.count_nonzero(bad)} NaN or infinite values, the first in cell {int(bad.any(axis=1).argmax())}: "
            "remove or impute them"
        )
    return x


def _check_arguments(n_components, covariance_type, max_iter, tol, n_init, eps, singularity_handling, init) -> None:
    for name, value, allowed in (
        ("covariance_type", covariance_type, COVARIANCE_TYPES),
        ("singularity_handling", singularity_handling, SINGULARITY_HANDLING),
        ("init", init, tuple(STARTS)),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    for name, value, good in (
        ("n_components", n_components, isinstance(n_components, Integral) and n_components >= 1),
        ("max_iter", max_iter, isinstance(max_iter, Integral) and max_iter >= 1),
        ("n_init", n_init, isinstance(n_init, Integral) and n_init >= 1),
        ("tol", tol, tol >= 0),
        ("eps", eps, 0 < eps < np.inf),
    ):
        if not good:
            raise ConfigError(f"{name} is out of range: {value!r}")
