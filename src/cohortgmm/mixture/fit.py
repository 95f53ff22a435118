"""Fitting a Gaussian mixture by expectation-maximisation: arguments in, :class:`MixtureFit` out."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from cohortgmm.arguments import check_choice, check_count, check_number, generator
from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError, ConvergenceWarning, DataError, FitError
from cohortgmm.mixture.density.checks import SUM_TO_ONE
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.em.loop import EM, EMResult
from cohortgmm.mixture.em.split_merge import split_and_merge
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.truncated import TruncatedExpectation, Truncation, n_nodes_for
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import covariance_floor
from cohortgmm.mixture.numerics.tiles import one_blas_thread
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.completeness import Completeness, NoiseAt, NoiseOfRandomCells
from cohortgmm.mixture.observations.measurements import Measurements
from cohortgmm.mixture.observations.noise import Noise
from cohortgmm.mixture.result import MixtureFit, as_mixture
from cohortgmm.mixture.settings import effective_settings

COVARIANCE_TYPES = ("full", "diag")
SINGULARITY_HANDLING = ("guarded", "robust", "strict")

#: With incomplete data, starts alternate between these two kinds, because k-means often finds the same clusters again.
_SECOND = {"kmeans": "kmeans++"}


def fit_mixture(
    x: np.ndarray,
    n_components: int,
    *,
    covariance_type: str = "full",
    max_iter: int | None = None,
    tol: float | None = None,
    n_init: int | None = None,
    eps: float = 1e-4,
    singularity_handling: str = "guarded",
    init: str = "kmeans",
    split_merge: int = 0,
    initial: GaussianMixture | None = None,
    random_state: int | np.random.SeedSequence | np.random.Generator | None = 0,
    n_threads: int = 1,
    cutoff: float | None = None,
    noise: Noise | np.ndarray | None = None,
    completeness: Callable[[np.ndarray], np.ndarray] | None = None,
    noise_at: NoiseAt | None = None,
    background: Background | None = None,
    frozen: Mapping[str, Sequence[int] | str] | None = None,
) -> MixtureFit:
    """Fit a Gaussian mixture to cells by EM (Dempster, Laird & Rubin 1977).

    Cells may be measured with noise (Bovy, Hogg & Roweis 2011: the mixture is that of the cells without noise),
    lack features, be selected (Melchior & Goulding 2018: the mixture is that of all cells, observed or not), or be mixed
    with a uniform background, also all at the same time.

    Parameters
    ----------
    x
        (n, D) cells, n ≥ ``n_components`` (or n ≥ 1 if all means and covariances are frozen): an array, a table or a
        sparse matrix of real numbers within 1e100 of zero, which are converted to float64. A NaN or masked value is a
        missing feature: the likelihood is the exact marginal one. A cell without any feature is left out and counted.
        Float32 and float64 arrays are never copied whole if nothing is missing, so they may be mapped from a file
        (``numpy.load(..., mmap_mode="r")``).
    n_components
        Number of components K.
    covariance_type
        ``"full"`` or ``"diag"``.
    max_iter
        Largest number of iterations. None means 100, or 2,000 if the data are incomplete: with noise, missing features,
        completeness, background or frozen parameters.
    tol
        Stop when the mean log-likelihood per cell rises by less than this, in nats. None means 1e-3, or 1e-6 with
        incomplete data (see ``max_iter``), with which EM converges slowly.
    n_init
        Number of starts; the one that ends at the highest likelihood is kept. None means 1, or 10 with incomplete data
        (see ``max_iter``). Then every start runs for up to 50 iterations, or until an iteration gains less than 1e-4
        nats per cell, and only the best is continued.
    eps
        Floor under the eigenvalues of the covariances, in squared units of x.
    singularity_handling
        Treatment of an eigenvalue below the floor: ``"guarded"`` raises it to ``eps``; ``"robust"`` raises it to 1 % of
        the mean variance of the features (or ``eps`` if that is more); ``"strict"`` gives up that start, and raises an
        error if every start is given up. The first mixture of a start that is made from the data may be singular.
    init
        ``"kmeans"``: the clusters of k-means; ``"kmeans++"``: the cells nearest to each seed of k-means, without its
        iterations; ``"random"``: random cells as means, the covariance of the data for all components; ``"minmax"``:
        means drawn from the box that holds the cells, spherical covariances; ``"none"``: ``initial``. Starts disregard
        noise and selection; missing features are filled in from the nearest cells. With incomplete data (see
        ``max_iter``), every second start of ``"kmeans"`` is one of ``"kmeans++"``.
    split_merge
        Rounds of split-and-merge moves after every start (Ueda et al. 2000), with three components or more. A round
        tries up to six moves, each with a run of EM, and keeps the first that ends at a higher likelihood. If none
        does, there are no further rounds.
    initial
        Start from this mixture (or the one of a :class:`~cohortgmm.MixtureFit`) and not from ``init``. There is one
        start, with its covariances raised to the floor.
    random_state
        Seed of the starts, an integer of any size of at least 0; or a generator, or None for fresh entropy.
    n_threads
        Threads that share the cells, each with one BLAS thread. The result is the same for every number.
    cutoff
        Leave out components farther from a cell than this many standard deviations, as in one dimension: the share of a
        component's cells beyond the cutoff is the same in any number of features, such as 0.27 % for a cutoff of 3. The
        best component of a cell is always kept. With a cutoff the log-likelihood is a lower bound. None leaves out only
        components whose contribution is smaller than the rounding error.
    noise
        Measurement noise, in squared units of x: covariances (n, D, D) or variances (n, D), one for each cell; or a
        covariance (D, D) or variances (D,) for all cells. With n = D, a (D, D) array could be either: wrap it in
        ``Noise.per_cell`` or ``Noise.shared`` (:class:`~cohortgmm.Noise`). An infinite variance, also on the diagonal
        of a covariance, is a missing feature. The noise of a feature that is missing in x does not matter.
    completeness
        Callable (m, D) → (m,) in [0, 1]: probability that a cell measured there is in the data.
    noise_at
        With ``completeness``: measurement noise of an unobserved cell, as a function of its features before the noise:
        a callable (m, D) → (m, D, D) or (m, D), or one array for all. None means ``noise`` if all cells share it, else
        the noise of randomly drawn cells.
    background
        A uniform background. The fit starts at its ``amp``, and keeps it if ``adjust_amp`` is False.
    frozen
        Components of ``initial`` that keep their weights, means or covariances, bit by bit: ``{"amp": [..], "mean":
        [..], "covar": [..]}`` with numbers of components or ``"all"``.

    Returns
    -------
    MixtureFit

    Warns
    -----
    ConvergenceWarning
        If the fit ends at ``max_iter`` without converging.

    Raises
    ------
    ConfigError
        For an argument out of its range.
    DataError
        For data of the wrong shape, with infinite values, or with fewer cells than components; for noise that is no
        covariance; for a completeness function that raises an error, returns values outside [0, 1], or returns zero for
        an observed cell.
    SingularCovarianceError
        With ``singularity_handling="strict"``, naming component and eigenvalue.
    DivergedError
        With ``completeness``, if every start leads to a mixture with nearly all of its cells unobserved.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> fit = fit_mixture(x, 1)
    >>> np.allclose(fit.model.means[0], x.mean(axis=0))
    True

    Cells with a variance of 1, measured with noise of variance 3:

    >>> x = np.random.default_rng(0).normal(scale=2.0, size=(20_000, 1))
    >>> float(fit_mixture(x, 1, noise=np.array([3.0])).model.covariances[0, 0, 0].round(1))
    1.0
    """
    check_choice("covariance_type", covariance_type, COVARIANCE_TYPES)
    check_choice("init", init, (*STARTS, "none"))
    check_choice("singularity_handling", singularity_handling, SINGULARITY_HANDLING)
    n_components = check_count("n_components", n_components, 1)
    split_merge, n_threads = check_count("split_merge", split_merge, 0), check_count("n_threads", n_threads, 1)
    max_iter = None if max_iter is None else check_count("max_iter", max_iter, 1)
    n_init = None if n_init is None else check_count("n_init", n_init, 1)
    tol = None if tol is None else check_number("tol", tol, 0)
    eps = check_number("eps", eps, 0, above=True)
    cutoff = None if cutoff is None else check_number("cutoff", cutoff, 0, above=True)
    rng = generator(random_state)
    initial = None if initial is None else as_mixture(initial, "initial")
    if background is not None and not isinstance(background, Background):
        raise ConfigError(f"background must be a cohortgmm.Background, got {format_value(background)}")
    if initial is not None and background is None:
        background = initial.background
    cells = Measurements(x, noise, n_threads, background)
    _check_together(cells, n_components, covariance_type, init, split_merge, initial, background, frozen)
    incomplete = not cells.is_plain or any(part is not None for part in (completeness, background, frozen))
    max_iter, tol, n_init = effective_settings(incomplete, max_iter=max_iter, tol=tol, n_init=n_init).values()
    variances = cells.variances if singularity_handling == "robust" else None  # takes a pass over all cells
    floor = covariance_floor(variances, eps, singularity_handling)
    constraints = Constraints(floor, singularity_handling == "strict", Frozen.from_argument(frozen, n_components))
    # Numbers that overflow end a start with one of our errors, see `EM.run`.
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        expectation = choose_estep(cells, n_components, covariance_type, cutoff)
        if completeness is not None:
            selection = _selection(cells, completeness, noise_at, rng)
            expectation = TruncatedExpectation(expectation, selection, n_nodes_for(len(cells)))
        em = EM(expectation, constraints, max_iter, tol, accelerated=incomplete)
        if initial is not None:
            starts = iter([_constrained(initial, background, constraints)])
        else:
            starts = _starts(cells, n_components, covariance_type, init, floor, background, n_init, incomplete, rng)
        with_trials = incomplete and n_init > 1 and initial is None
        result = _best_result(em, cells, starts, split_merge, with_trials)
    _warn_unless_converged(result, max_iter, tol)
    return _as_fit(result, cells.n_empty)


def _warn_unless_converged(result: EMResult, max_iter: int, tol: float) -> None:
    if not result.converged:
        message = (
            f"EM did not converge with max_iter={max_iter}: raise it, or tol ({tol:g}) if less precision is enough"
        )
        warnings.warn(message, ConvergenceWarning, stacklevel=3)


def _as_fit(result: EMResult, n_empty: int) -> MixtureFit:
    n, n_unobserved = result.moments.n, result.moments.n_unobserved
    return MixtureFit(
        GaussianMixture.from_parameters(result.model),
        result.log_likelihood,
        result.n_iter,
        result.converged,
        result.history,
        result.floored,
        n_unobserved,
        n / (n + n_unobserved),
        n_empty,
    )


def _best_result(
    em: EM, cells: Measurements, starts: Iterable[Parameters], split_merge: int, with_trials: bool
) -> EMResult:
    """Run EM from all starts and return the highest log-likelihood; with trials, only the best trial is run to its end."""
    tried: list[EMResult] = []
    failed: FitError | None = None
    for start in starts:
        try:
            result = em.trial().run(start) if with_trials else split_and_merge(em, cells, em.run(start), split_merge)
        except FitError as error:  # another start may succeed
            failed = error
            continue
        tried.append(result)
    tried.sort(key=lambda result: -result.log_likelihood)
    for result in tried:
        try:
            return split_and_merge(em, cells, em.run(result.model, result), split_merge) if with_trials else result
        except FitError as error:
            failed = error
    assert failed is not None  # there is at least one start
    raise failed


def _starts(
    cells: Measurements,
    n_components: int,
    covariance_type: str,
    init: str,
    floor: float,
    background: Background | None,
    n_init: int,
    vary: bool,
    rng: np.random.Generator,
) -> Iterator[Parameters]:
    if n_components == 1 and background is None:
        n_init = 1  # there is only one optimum
    kinds = (init, _SECOND.get(init, init)) if vary else (init,)
    for i in range(n_init):
        start = STARTS[kinds[i % len(kinds)]](cells.for_start(rng), n_components, covariance_type, floor, rng)
        yield start if background is None else start.with_background(background)


def _constrained(initial: Parameters, background: Background | None, constraints: Constraints) -> Parameters:
    """Bring a given start within the constraints: raised to the floor by EM, it would lose likelihood and end EM."""
    covariances, factors, _ = constraints.project(initial.covariances, initial)
    weights = _constrained_weights(initial, background, constraints.frozen.weights)
    return Parameters.from_factors(weights, initial.means, covariances, factors, background)


def _constrained_weights(initial: Parameters, background: Background | None, frozen: np.ndarray) -> np.ndarray:
    """Weights of a given start; the free ones share what the frozen ones and the background leave."""
    weights, amp = initial.weights, 0.0 if background is None else background.amp
    if background is initial.background and abs(weights.sum() + amp - 1.0) <= SUM_TO_ONE:
        return weights
    rest = 1.0 - amp - weights[frozen].sum()
    free = np.where(frozen, 0.0, weights)
    if rest < -SUM_TO_ONE or (free.sum() == 0 and rest > SUM_TO_ONE):
        beside = "" if background is None else f" beside a background of {amp:.6g}"
        raise ConfigError(
            f"the frozen weights sum to {weights[frozen].sum():.6g}{beside}: this must not exceed one, and must be "
            "one if all other weights are zero"
        )
    return np.where(frozen, weights, max(rest, 0.0) * free / max(free.sum(), np.finfo(float).tiny))


def _selection(
    cells: Measurements,
    completeness: Callable[[np.ndarray], np.ndarray],
    noise_at: NoiseAt | None,
    rng: np.random.Generator,
) -> Truncation:
    checked = Completeness(completeness)
    checked.check_cells((tile, cells.measured(tile)) for tile in cells.whole.tiles(cells.n_features))
    seed = int(rng.integers(1 << 31))
    if noise_at is None and cells.noise is not None:
        noise_at = cells.noise if cells.noise.is_shared else NoiseOfRandomCells(cells.noise.values, seed)
    return Truncation(checked, noise_at, seed)


def _check_together(
    cells: Measurements,
    n_components: int,
    covariance_type: str,
    init: str,
    split_merge: int,
    initial: GaussianMixture | None,
    background: Background | None,
    frozen: Mapping[str, Sequence[int] | str] | None,
) -> None:
    """Refuse arguments that do not fit together, or do not fit the cells."""
    # With all means and covariances frozen, only weights are fitted, and one cell with one feature is enough for them.
    known = Frozen.from_argument(frozen, n_components).all_components
    if len(cells) < (1 if known else n_components):
        raise DataError(f"{len(cells)} cells are too few for {n_components} components")
    never = np.flatnonzero(cells.n_measured == 0)
    if len(never) and not known:
        raise DataError(
            f"feature {never[0]} is missing in all cells: leave it out, or map the cells onto a known mixture "
            "(`initial`, with its means and covariances frozen)"
        )
    if init == "none" and initial is None:
        raise ConfigError('init "none" starts from `initial`, which is not given')
    if frozen and initial is None:
        raise ConfigError("frozen keeps parameters of `initial`, which is not given")
    if frozen and split_merge:
        raise ConfigError("split_merge moves components, which frozen forbids: use one of them")
    if background is not None and background.n_features != cells.n_features:
        raise ConfigError(f"the background has {background.n_features} features, the cells have {cells.n_features}")
    given = background is not None and (initial is None or background is not initial.background)
    if given and not cells.touches_background:  # the box of the background of `initial` may be empty
        raise DataError("the background's box holds none of the cells: check its lower and upper")
    if initial is not None and (
        initial.means.shape != (n_components, cells.n_features) or initial.covariance_type != covariance_type
    ):
        raise ConfigError(
            f"initial has {initial.n_components} {initial.covariance_type} components in {initial.n_features} features; "
            f"the fit asks for {n_components} {covariance_type} components in {cells.n_features}"
        )
