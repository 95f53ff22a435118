"""Fitting a Gaussian mixture by expectation-maximisation."""

import os
from dataclasses import dataclass
from numbers import Integral
from typing import BinaryIO

import numpy as np

from cohortgmm.archive import read_arrays
from cohortgmm.errors import ConfigError, DataError, FitError, SingularCovarianceError
from cohortgmm.mixture.data import CellData
from cohortgmm.mixture.expectation import DenseExpectation, Expectation, QuadraticExpectation
from cohortgmm.mixture.gaussian import covariance_floor, floor_covariances
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.moves import move, moves
from cohortgmm.mixture.screened import ScreenedExpectation
from cohortgmm.mixture.start import STARTS
from cohortgmm.mixture.steps import Moments, maximize
from cohortgmm.mixture.tiles import one_blas_thread

#: Up to this many features two products of quadratic features cost less than looking for what can be left out.
_FEW_FEATURES = 18

#: Up to this many products (n D² K) every component is evaluated for every cell.
_SMALL_WORK = 6_000_000

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
        (n_iter + 1,) mean log-likelihood per cell of the start and after every iteration; of the iterations that left
        settled cells alone a lower bound, of the last one always exact.
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
    split_merge: int = 0,
    initial: GaussianMixture | None = None,
    random_state: int | np.random.SeedSequence | np.random.Generator | None = 0,
    n_threads: int = 1,
) -> MixtureFit:
    """Fit a Gaussian mixture to cells by EM (Dempster, Laird & Rubin 1977).

    Parameters
    ----------
    x
        (n, D) cells, finite, n ≥ ``n_components``; computed in float64 whatever the type. Float32 and float64 arrays
        are never copied whole, so they may be mapped from a file (``numpy.load(..., mmap_mode="r")``).
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
        ``"kmeans"``: clusters of k-means; ``"kmeans++"``: those around its seeds; ``"random"``: cells as means, the
        data's covariance; ``"minmax"``: means drawn from the box that holds the cells, round covariances.
    split_merge
        Rounds of split-and-merge moves after every start (Ueda et al. 2000), with three components or more. A round
        tries up to six moves, each an EM of its own, and keeps the first that ends at a higher likelihood; without
        one, the rounds end.
    initial
        Start from this mixture instead (one start), with its covariances brought above the floor.
    random_state
        Seed of the starts, or a generator.
    n_threads
        Threads that share the cells, each with one BLAS thread. The result is the same for every number.

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
    _check_arguments(
        (
            ("covariance_type", covariance_type, COVARIANCE_TYPES),
            ("init", init, tuple(STARTS)),
            ("singularity_handling", singularity_handling, SINGULARITY_HANDLING),
        ),
        (
            ("n_components", n_components, 1),
            ("max_iter", max_iter, 1),
            ("n_init", n_init, 1),
            ("split_merge", split_merge, 0),
            ("n_threads", n_threads, 1),
        ),
        (("tol", tol, tol >= 0), ("eps", eps, 0 < eps < np.inf)),
    )
    cells = CellData(x, n_threads)
    if len(cells) < n_components:
        raise DataError(f"{len(cells)} cells are too few for {n_components} components")
    if initial is not None and (
        initial.means.shape != (n_components, cells.n_features) or initial.covariance_type != covariance_type
    ):
        raise ConfigError(
            f"initial has {initial.n_components} {initial.covariance_type} components in {initial.n_features} features; "
            f"the fit asks for {n_components} {covariance_type} components in {cells.n_features}"
        )
    floor = covariance_floor(cells, eps, singularity_handling)
    strict = singularity_handling == "strict"
    if initial is not None:
        # From a start below the floor the first iteration would lose likelihood and pass for converged.
        covariances, factors, _ = floor_covariances(initial.covariances, floor, strict=strict)
        initial = GaussianMixture.from_factors(initial.weights, initial.means, covariances, factors)
    rng = np.random.default_rng(random_state)
    expectation = _expectation(cells, n_components, covariance_type)
    best, singular = None, None
    with one_blas_thread():
        for _ in range(1 if initial is not None else n_init):
            start = initial or STARTS[init](cells, n_components, covariance_type, floor, rng)
            try:
                fit = _run(expectation.begin(), start, max_iter, tol, floor, strict)
                fit = _move(expectation, fit, split_merge, max_iter, tol, floor, strict)
            except SingularCovarianceError as error:  # another start may do better
                singular = error
                continue
            if best is None or fit.log_likelihood > best.log_likelihood:
                best = fit
    if best is None:
        raise singular
    return best


def _expectation(cells: CellData, n_components: int, covariance_type: str) -> Expectation:
    """The fastest way to the same moments, for this shape of data."""
    n, d = len(cells), cells.n_features
    if covariance_type == "diag" or d <= _FEW_FEATURES:
        return QuadraticExpectation(cells, covariance_type)
    if n_components == 1 or n * d * d * n_components <= _SMALL_WORK:
        return DenseExpectation(cells)
    return ScreenedExpectation(cells, n_components)


def _run(
    expect: Expectation, model: GaussianMixture, max_iter: int, tol: float, floor: float, strict: bool
) -> MixtureFit:
    """EM from one start; the model returned is the one its last log-likelihood was computed with."""
    floored = np.zeros(model.n_components, dtype=bool)
    moments = expect(model)
    history = [_mean_log_likelihood(moments, 0)]
    for n_iter in range(1, max_iter + 1):
        model, floored = maximize(moments, model.means, floor, strict=strict, suspected=floored)
        moments = expect(model, exact=n_iter == max_iter)
        history.append(_mean_log_likelihood(moments, n_iter))
        if moments.is_bound and history[-1] - history[-2] < tol:
            moments = expect(model)
            history[-1] = _mean_log_likelihood(moments, n_iter)
        if history[-1] - history[-2] < tol:
            return MixtureFit(model, history[-1], n_iter, True, np.array(history), floored)
    return MixtureFit(model, history[-1], max_iter, False, np.array(history), floored)


def _move(
    expectation: Expectation, fit: MixtureFit, n_rounds: int, max_iter: int, tol: float, floor: float, strict: bool
) -> MixtureFit:
    """Rounds of split-and-merge moves from a fit."""
    for _ in range(n_rounds if fit.model.n_components > 2 else 0):
        for i, j, k in moves(expectation.cells, fit.model):
            start = move(fit.model, (i, j), k, floor)
            try:
                moved = _run(expectation.begin(), start, max_iter, tol, floor, strict)
            except SingularCovarianceError:
                continue
            if moved.log_likelihood > fit.log_likelihood:
                fit = moved
                break
        else:
            break
    return fit


def _mean_log_likelihood(moments: Moments, n_iter: int) -> float:
    value = moments.log_likelihood / moments.n
    if not np.isfinite(value):
        raise FitError(f"the log-likelihood became {value} after {n_iter} iterations; rescale the data")
    return value


def _check_arguments(names, counts, numbers) -> None:
    """Raise for a name that is not among those allowed, a count below its least, or a number out of its range."""
    for name, value, allowed in names:
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    good_counts = ((name, value, isinstance(value, Integral) and value >= least) for name, value, least in counts)
    for name, value, good in (*good_counts, *numbers):
        if not good:
            raise ConfigError(f"{name} is out of range: {value!r}")
