"""Fitting a Gaussian mixture by expectation-maximisation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cohortgmm.arguments import check_choice, check_count, check_number, generator
from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError, DataError, FitError
from cohortgmm.mixture.density.parameters import SUM_TO_ONE
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.em.loop import Climb
from cohortgmm.mixture.estep.grouped import expectation_of
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import covariance_floor
from cohortgmm.mixture.numerics.tiles import one_blas_thread
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.completeness import (
    CellNoise,
    Completeness,
    NoiseAt,
    Selection,
    TruncatedExpectation,
)
from cohortgmm.mixture.observations.measurements import Measurements
from cohortgmm.mixture.result import MixtureFit, as_mixture
from cohortgmm.mixture.settings import effective_settings

COVARIANCE_TYPES = ("full", "diag")
SINGULARITY_HANDLING = ("guarded", "robust", "strict")

#: Of several starts for hidden cells, every other one is of another kind: k-means often ends in the same clusters.
_SECOND = {"kmeans": "kmeans++"}

#: Nodes of the unseen part: fewest, most, and for every cell. Their error is to be far below that of the sample.
_FEWEST_NODES, _MOST_NODES = 1 << 12, 1 << 17
_NODES_PER_CELL = 32


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
    noise: np.ndarray | None = None,
    completeness: Callable[[np.ndarray], np.ndarray] | None = None,
    noise_at: NoiseAt | None = None,
    background: Background | None = None,
    frozen: Mapping[str, Sequence[int] | str] | None = None,
) -> MixtureFit:
    """Fit a Gaussian mixture to cells by EM (Dempster, Laird & Rubin 1977).

    Cells may be measured with noise (Bovy, Hogg & Roweis 2011: the mixture is that of the cells behind the noise),
    lack features, be a selection (Melchior & Goulding 2018: the mixture is that of all cells, seen or not), or be
    mixed with a uniform background, all of it at the same time.

    Parameters
    ----------
    x
        (n, D) cells, n ≥ ``n_components`` (1, where all means and covariances are frozen): an array, a table or a sparse
        matrix of real numbers within 1e100 of zero; computed in float64 whatever the type. NaN, or what is masked, is a
        missing feature: the likelihood is the exact marginal one; a cell without any feature is left out and counted.
        Float32 and float64 arrays are never copied whole if nothing is missing, so they may be mapped from a file
        (``numpy.load(..., mmap_mode="r")``).
    n_components
        Number of components K.
    covariance_type
        ``"full"`` or ``"diag"``.
    max_iter
        Largest number of iterations. None is 100, and 2,000 with noise, missing features, completeness,
        background or frozen parameters.
    tol
        Stop when the mean log-likelihood per cell rises by less than this, in nats. None is 1e-3, and 1e-6 where
        ``max_iter`` is 2,000: EM creeps there.
    n_init
        Number of starts; the one that ends at the highest likelihood is kept. None is 1, and 10 where ``max_iter``
        is 2,000. There, all starts go up to 50 iterations (to 1e-4 nats per cell), and the best goes on.
    eps
        Floor under the eigenvalues of the covariances, in squared units of x.
    singularity_handling
        What happens to an eigenvalue below the floor: ``"guarded"`` raises it to ``eps``; ``"robust"`` raises it to
        1 % of the mean variance of the features (or ``eps`` if that is more); ``"strict"`` makes it the end of that
        start, and an error if every start ends so. The start itself may be singular.
    init
        ``"kmeans"``: clusters of k-means; ``"kmeans++"``: those around its seeds; ``"random"``: cells as means, the
        data's covariance; ``"minmax"``: means drawn from the box that holds the cells, round covariances; ``"none"``:
        ``initial``. Starts disregard noise and selection; missing features are filled in from the nearest cells.
        Where ``max_iter`` is 2,000, every other start of ``"kmeans"`` is one of ``"kmeans++"``.
    split_merge
        Rounds of split-and-merge moves after every start (Ueda et al. 2000), with three components or more. A round
        tries up to six moves, each an EM of its own, and keeps the first that ends at a higher likelihood; without
        one, the rounds end.
    initial
        Start from this mixture (or the one of a :class:`~cohortgmm.MixtureFit`) instead: one start, with its covariances
        brought above the floor.
    random_state
        Seed of the starts, an integer of any size of at least 0; or a generator, or None for fresh entropy.
    n_threads
        Threads that share the cells, each with one BLAS thread. The result is the same for every number.
    cutoff
        Leave out components farther from a cell than this many standard deviations, counted as in one dimension: as
        many of a component's cells are beyond it as of a normal variable. The best component of a cell is always
        kept. None leaves out only what rounding hides. The log-likelihood is then a lower bound.
    noise
        Measurement noise: covariances (n, D, D) or variances (n, D) of the cells, or (D, D) or (D,) for all of them,
        in squared units of x; of n = D cells :class:`~cohortgmm.Noise`, which says whose a square array is. An infinite
        variance, also on the diagonal of a covariance, is a missing feature; what is
        said of a feature that is missing in x does not matter.
    completeness
        Callable (m, D) → (m,) in [0, 1]: probability that a cell measured there is in the data.
    noise_at
        With ``completeness``: measurement noise of a cell at any place behind the noise, as callable (m, D) →
        (m, D, D) or (m, D), or one for all. None is ``noise`` if that is shared, else the noise of randomly drawn
        cells.
    background
        A uniform background; its ``amp`` is where the fit starts, or stays there.
    frozen
        Components of ``initial`` that keep their weights, means or covariances, bit by bit: ``{"amp": [..], "mean":
        [..], "covar": [..]}`` with numbers of components or ``"all"``.

    Returns
    -------
    MixtureFit

    Raises
    ------
    ConfigError
        For an argument out of its range.
    DataError
        For data of the wrong shape, with infinite values, or with fewer cells than components; for noise that is no
        covariance; for a completeness function that fails, gives no probabilities, or zero for a cell that was seen.
    SingularCovarianceError
        With ``singularity_handling="strict"``, naming component and eigenvalue.
    DivergedError
        With ``completeness``, if nearly all cells would be unseen from every start.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> fit = fit_mixture(x, 1)
    >>> np.allclose(fit.model.means[0], x.mean(axis=0))
    True

    Cells with a variance of 1 behind noise with a variance of 3:

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
    hidden = not cells.is_plain or any(part is not None for part in (completeness, background, frozen))
    max_iter, tol, n_init = effective_settings(hidden, max_iter=max_iter, tol=tol, n_init=n_init).values()
    strict = singularity_handling == "strict"
    variances = cells.variances if singularity_handling == "robust" else None  # a pass over all cells
    floor = covariance_floor(variances, eps, singularity_handling)
    constraints = Constraints(floor, strict, Frozen.read(frozen, n_components))
    # What overflows ends a start with an error of ours, see `Climb`.
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        expectation = expectation_of(cells, n_components, covariance_type, cutoff)
        if completeness is not None:
            selection = _selection(cells, completeness, noise_at, rng)
            expectation = TruncatedExpectation(expectation, selection, _n_nodes(len(cells)))
        climb = Climb(expectation, constraints, max_iter, tol, accelerated=hidden)
        if initial is not None:
            starts = iter([_admitted(initial, background, constraints)])
        else:
            starts = _starts(cells, n_components, covariance_type, init, floor, background, n_init, hidden, rng)
        fit = _best_fit(climb, cells, starts, split_merge, trials=hidden and n_init > 1 and initial is None)
    return replace(fit, n_empty=cells.n_empty)


def _best_fit(climb: Climb, cells: Measurements, starts, split_merge: int, trials: bool) -> MixtureFit:
    """The fit of the highest likelihood; with ``trials``, of the start that is ahead after some iterations."""
    tried, failed = [], None
    for start in starts:
        try:
            fit = climb.trial().run(start) if trials else climb.move(cells, climb.run(start), split_merge)
        except FitError as error:  # another start may do better
            failed = error
            continue
        tried.append(fit)
    tried.sort(key=lambda fit: -fit.log_likelihood)
    for fit in tried:
        try:
            return climb.move(cells, climb.run(fit.model, fit), split_merge) if trials else fit
        except FitError as error:
            failed = error
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
) -> Iterator[GaussianMixture]:
    if n_components == 1 and background is None:
        n_init = 1  # there is one optimum
    kinds = (init, _SECOND.get(init, init)) if vary else (init,)
    for i in range(n_init):
        start = STARTS[kinds[i % len(kinds)]](cells.for_start(rng), n_components, covariance_type, floor, rng)
        yield start if background is None else start.with_background(background)


def _admitted(initial: GaussianMixture, background: Background | None, constraints: Constraints) -> GaussianMixture:
    """A given start within the constraints: below the floor, the first iteration would pass for the last one."""
    covariances, factors, _ = constraints.admit(initial.covariances, initial)
    weights = _admitted_weights(initial, background, constraints.frozen.weights)
    return GaussianMixture.from_factors(weights, initial.means, covariances, factors, background)


def _admitted_weights(initial: GaussianMixture, background: Background | None, frozen: np.ndarray) -> np.ndarray:
    """The weights of a given start, the free ones sharing what the frozen ones and the background leave."""
    weights, amp = initial.weights, 0.0 if background is None else background.amp
    if background is initial.background and abs(weights.sum() + amp - 1.0) <= SUM_TO_ONE:
        return weights
    rest = 1.0 - amp - weights[frozen].sum()
    free = np.where(frozen, 0.0, weights)
    if rest < -SUM_TO_ONE or (free.sum() == 0 and rest > SUM_TO_ONE):
        beside = "" if background is None else f" beside a background of {amp:.6g}"
        raise ConfigError(
            f"the frozen weights sum to {weights[frozen].sum():.6g}{beside}: together they must not exceed one, nor fall "
            "short of it where no other weight could take the rest"
        )
    return np.where(frozen, weights, max(rest, 0.0) * free / max(free.sum(), np.finfo(float).tiny))


def _selection(
    cells: Measurements, completeness: Callable, noise_at: NoiseAt | None, rng: np.random.Generator
) -> Selection:
    checked = Completeness(completeness)
    checked.check_cells((tile, cells.measured(tile)) for tile in cells.whole.tiles(cells.n_features))
    seed = int(rng.integers(1 << 31))
    if noise_at is None and cells.noise is not None:
        noise_at = cells.noise if cells.noise.is_shared else CellNoise(cells.noise.values, seed)
    return Selection(checked, noise_at, seed)


def _n_nodes(n: int) -> int:
    return min(max(1 << (_NODES_PER_CELL * n - 1).bit_length(), _FEWEST_NODES), _MOST_NODES)


def _check_together(cells, n_components, covariance_type, init, split_merge, initial, background, frozen) -> None:
    """Raise for arguments that do not go together, or with the cells."""
    known = Frozen.read(frozen, n_components).all_components  # any cell, in any feature, tells of the weights
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
    if given and not cells.touches_background:  # that of a known mixture may be elsewhere
        raise DataError("the background's box holds none of the cells: check its lower and upper")
    if initial is not None and (
        initial.means.shape != (n_components, cells.n_features) or initial.covariance_type != covariance_type
    ):
        raise ConfigError(
            f"initial has {initial.n_components} {initial.covariance_type} components in {initial.n_features} features; "
            f"the fit asks for {n_components} {covariance_type} components in {cells.n_features}"
        )
