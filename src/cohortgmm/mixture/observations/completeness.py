"""Cells that never had a chance to be seen: truncated and incomplete sampling (Melchior & Goulding 2018).

A cell at v is seen with probability Ω(v), so that the share Z = ∫ p Ω of all cells is seen. To those that are seen, EM
adds those that are not: n / Z times the integral of p (1 − Ω), here a sum over nodes y_j with weights v_j,

    U(θ) = Σ_j v_j (1 − Ω(y_j)) p(y_j; θ),    log-likelihood Σ_i log p(x_i; θ) − n log(1 − U(θ)).

−log(1 − U) is convex in U, and U in its turn convex in the joint log-densities: EM with n / (1 − U) v_j (1 − Ω(y_j))
p_k(y_j) pseudo-cells of component k at node j never loses log-likelihood as long as the nodes stay where they are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.arrays import dense_array
from cohortgmm.display import format_error
from cohortgmm.errors import DataError, DivergedError
from cohortgmm.mixture.em.mstep import Moments
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.tiles import tile_slices
from cohortgmm.mixture.observations.noise import Noise

#: Largest share of cells that may be unseen.
_LARGEST_SHARE = 0.999

#: Divergence, in nats, of a component from the one its nodes were made for, up to which they serve; and up to which
#: they need not be made again in the end.
_COVERED, _SETTLED = 0.05, 0.005

#: Half of the nodes are spread evenly over the components, half by their weights.
_EVEN = 0.5

#: Nodes over the background.
_BACKGROUND_NODES = 1 << 14

#: Cells named in an error.
_NAMED = 5

NoiseAt = Callable[[np.ndarray], np.ndarray | Noise] | np.ndarray | Noise


class Completeness:
    """A user's completeness function, with its answers checked.

    Parameters
    ----------
    function
        Callable (m, D) → (m,) in [0, 1]: probability that a cell measured there is in the data.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(function):
            raise DataError(f"completeness must be a callable (m, D) -> (m,), got {type(function).__name__}")
        self._function = function

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(m,) probability of being seen.

        The function is not called for no places.

        Raises
        ------
        DataError
            If the function fails, or returns another shape, NaN or numbers beyond [0, 1].
        """
        if not len(x):
            return np.empty(0)
        try:
            values = self._function(x.copy())
        except Exception as error:
            raise DataError(f"the completeness function failed on {len(x)} places: {format_error(error)}") from error
        try:
            values = np.asarray(dense_array(values, "they"), dtype=np.float64)
        except DataError as error:
            kind = type(values).__name__
            raise DataError(f"the completeness function returned {kind}, not numbers: {error}") from None
        if values.shape != (len(x),):
            raise DataError(f"the completeness function returned shape {values.shape} for {len(x)} places")
        bad = ~((values >= 0) & (values <= 1))
        if bad.any():
            i = int(np.argmax(bad))
            place = ", ".join(f"{value:.4g}" for value in x[i])
            raise DataError(f"the completeness function returned {values[i]:.4g} at ({place}): must be within [0, 1]")
        return values

    def check_cells(self, tiles: Iterable[tuple[slice, np.ndarray]], name_of: Callable[[int], str] = str) -> None:
        """Refuse cells that could not have been seen, or of which that cannot be told.

        Parameters
        ----------
        tiles
            Rows, and the cells (m, D) there, NaN where a feature is missing.
        name_of
            Function from the row of a cell to its name in an error.
        """
        unseen = []
        for tile, x in tiles:
            rows = np.flatnonzero(~np.isnan(x).all(axis=1))
            try:
                unseen += (tile.start + rows[self(x[rows]) == 0]).tolist()
            except DataError as error:
                hint = "; cells with missing features are among them" if np.isnan(x).any() else ""
                first, last = name_of(tile.start), name_of(tile.stop - 1)
                raise DataError(f"cells {first} to {last}: {error}{hint}") from error
        if unseen:
            shown = ", ".join(map(name_of, unseen[:_NAMED])) + (", ..." if len(unseen) > _NAMED else "")
            raise DataError(
                f"completeness is 0 for {len(unseen)} observed cells ({shown}): the function does not describe how "
                "these cells were chosen"
            )


@dataclass(frozen=True, eq=False)
class Nodes:
    """Where the unseen part of a mixture is evaluated.

    Attributes
    ----------
    points
        (J, D).
    log_weights
        (J,) logarithm of weight × (1 − completeness).
    origin
        The mixture they were made for.
    background_share
        Share of the background's cells that is not seen.
    """

    points: np.ndarray
    log_weights: np.ndarray
    origin: GaussianMixture
    background_share: float = 0.0

    def distance(self, model: GaussianMixture) -> float:
        """Largest divergence, in nats, of a component of ``model`` from the one the nodes were made for."""
        if model is self.origin:
            return 0.0
        whitener = self.origin.factors.whitener
        shift = model.means - self.origin.means
        if model.covariance_type == "diag":
            trace = (model.covariances * whitener**2).sum(axis=1)
            moved = (shift * whitener) ** 2
        else:
            root = whitener.transpose(0, 2, 1) @ model.factors.root
            trace = (root**2).sum(axis=(1, 2))
            moved = (shift[:, None, :] @ whitener)[:, 0] ** 2
        growth = 2.0 * (model.factors.half_log_det - self.origin.factors.half_log_det)
        return float((0.5 * (trace - model.n_features - growth + moved.sum(axis=1))).max())


@dataclass(frozen=True, eq=False)
class Selection:
    """How cells came to be seen.

    Attributes
    ----------
    completeness
        Probability of being seen, of the cell as it is measured.
    noise_at
        Measurement noise of a cell at any place: callable (m, D) → (m, D, D) or (m, D), or one for all; None if the
        cells have none.
    seed
        Of the quasi-random numbers.
    """

    completeness: Completeness
    noise_at: NoiseAt | None
    seed: int

    def nodes(self, model: GaussianMixture, n_nodes: int) -> Nodes:
        """Nodes for mixtures near to ``model``: quasi-random points of its components, made a little wider.

        Parameters
        ----------
        model
            The mixture.
        n_nodes
            Number of points J, of which those that are certainly seen are left out.
        """
        d, k = model.n_features, model.n_components
        width = 1.0 + 0.5 / np.sqrt(d)
        shares = (1 - _EVEN) * model.shares + _EVEN / k
        counts = 1 << np.round(np.log2(np.maximum(shares * n_nodes, 1))).astype(
            int
        )  # Sobol's points come in powers of 2
        n_dimensions = 2 * d if self.noise_at is not None else d
        normal = np.concatenate(
            [_normal(_sobol(n, n_dimensions, self.seed + i)) for i, n in enumerate(counts.tolist())]
        )
        points = width * normal[:, :d]
        parts = np.split(points, np.cumsum(counts)[:-1])
        for mean, root, part in zip(model.means, model.factors.root, parts, strict=True):
            part[:] = mean + (part * root if root.ndim == 1 else part @ root.T)
        unseen = 1.0 - self.completeness(self._measured(points, normal[:, d:]))
        kept = unseen > 0
        points, unseen = points[kept], unseen[kept]
        proposal = GaussianMixture.from_factors(counts / counts.sum(), model.means, width**2 * model.covariances)
        log_weights = np.log(unseen) - np.log(counts.sum()) - proposal.log_prob(points)
        return Nodes(points, log_weights, model, self._background_share(model))

    def _background_share(self, model: GaussianMixture) -> float:
        if model.background is None:
            return 0.0
        d = model.n_features
        uniform = _sobol(_BACKGROUND_NODES, 2 * d if self.noise_at is not None else d, self.seed)
        points = model.background.lower + uniform[:, :d] * (model.background.upper - model.background.lower)
        return float(np.mean(1.0 - self.completeness(self._measured(points, _normal(uniform[:, d:])))))

    def _measured(self, points: np.ndarray, normal: np.ndarray | None) -> np.ndarray:
        """The points with noise."""
        if self.noise_at is None:
            return points
        return points + scaled_noise(points, self.noise_at, normal)


def _sobol(n: int, d: int, seed: int) -> np.ndarray:
    """(n, d) scrambled Sobol points in the unit cube, short of its edges."""
    from scipy.stats import qmc

    points = qmc.Sobol(d, seed=seed).random(1 << max(n - 1, 1).bit_length())[:n]
    return np.clip(points, 1e-12, 1.0 - 1e-12)


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Standard normal numbers from uniform ones."""
    from scipy.special import ndtri

    return ndtri(uniform)


def noise_of_places(points: np.ndarray, noise_at: NoiseAt, name: str = "noise_at") -> Noise:
    """Measurement noise of cells at places (m, D).

    Raises
    ------
    DataError
        If the function fails, or returns another shape or values that are no finite covariances.
    """
    m, d = points.shape
    noise = noise_at
    if callable(noise_at):
        try:
            noise = noise_at(points.copy())
        except Exception as error:
            raise DataError(f"{name} failed on {m} places: {format_error(error)}") from error
    try:
        if not isinstance(noise, Noise):
            noise = _noise_by_contract(noise, m, d, of_function=callable(noise_at))
        elif not (noise.is_shared or callable(noise_at)):
            raise DataError("noise of each cell says nothing of other places: give a function, or one for all")
        if not np.isfinite(noise.values).all():
            raise DataError("values that are not finite")
        return Noise.read(noise, m, d)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _noise_by_contract(values: Any, m: int, d: int, *, of_function: bool) -> Noise:
    """What a function gave for m places, each its own; or an array, one for all."""
    values = dense_array(values, "the noise")
    if not of_function:
        shapes, kind = ((d,), (d, d)), "one for all"
    elif values.shape == (d,):
        return Noise.shared(values)
    else:
        shapes, kind = ((m, d), (m, d, d)), "one for each place"
    if values.shape not in shapes:
        hint = "; cohortgmm.Noise.shared(values) is one for all" if of_function else ""
        raise DataError(f"must be {kind}, of shape {shapes[0]} or {shapes[1]}, got {values.shape}{hint}")
    return Noise.per_cell(values) if of_function else Noise.shared(values)


def scaled_noise(points: np.ndarray, noise_at: NoiseAt, normal: np.ndarray) -> np.ndarray:
    """Noise (m, D) at places (m, D), from standard normal numbers (m, D)."""
    return noise_of_places(points, noise_at).scale(normal)


class CellNoise:
    """The noise of an unseen cell where nobody says: that of any of the cells, whatever its place.

    Parameters
    ----------
    noise
        (n, D) or (n, D, D) noise of the cells, of which those with finite values count.
    seed
        Of the draw.

    Raises
    ------
    DataError
        If there are none.
    """

    def __init__(self, noise: np.ndarray, seed: int) -> None:
        finite = np.isfinite(noise).all(axis=tuple(range(1, noise.ndim)))
        self._noise, self._seed = noise[finite], seed
        if not len(self._noise):
            raise DataError("no cell has a finite noise in all features that unseen cells could have: give noise_at")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(self._seed)
        return self._noise[rng.integers(len(self._noise), size=len(x))]


class TruncatedExpectation(Expectation):
    """The seen cells by another E-step, and what is expected of the unseen ones.

    Parameters
    ----------
    seen
        E-step of the cells.
    selection
        How they came to be seen.
    n_nodes
        Number of nodes.
    nodes
        The nodes; None until :meth:`begin`.
    """

    def __init__(self, seen: Expectation, selection: Selection, n_nodes: int, nodes: Nodes | None = None) -> None:
        super().__init__(seen.cells)
        self._seen, self._selection, self._n_nodes, self.nodes = seen, selection, n_nodes, nodes

    def begin(self, model):
        nodes = self._selection.nodes(model, self._n_nodes)
        return TruncatedExpectation(self._seen.begin(model), self._selection, self._n_nodes, nodes)

    def covers(self, model):
        return self.nodes.distance(model) <= _COVERED

    def is_settled(self, model):
        return self.nodes.distance(model) <= _SETTLED

    def with_nodes(self, n_nodes: int) -> "TruncatedExpectation":
        """The same with another number of nodes."""
        return TruncatedExpectation(self._seen, self._selection, n_nodes)

    def __call__(self, model, *, exact=True):
        moments = self._seen(model, exact=exact)
        unseen = unseen_moments(model, self.nodes)
        share = float(unseen.nk.sum())
        if model.background is not None:
            share += model.background.amp * self.nodes.background_share
        if not share <= _LARGEST_SHARE:
            raise DivergedError(
                f"{share:.4g} of all cells would be unseen: the completeness leaves too little to tell, ask for fewer "
                "components or raise eps"
            )
        factor = moments.n / (1.0 - share)
        moments.nk += factor * unseen.nk
        moments.first += factor * unseen.first
        moments.second += factor * unseen.second
        moments.n_unobserved = factor * share
        moments.log_likelihood -= moments.n * np.log1p(-share)
        return moments


def unseen_moments(model: GaussianMixture, nodes: Nodes) -> Moments:
    """Moments of the unseen part of a mixture; ``nk`` sums to its share."""
    total = Moments.zeros(*model.means.shape, model.covariance_type)
    for tile in tile_slices(len(nodes.points), model.means.size):
        deviation = nodes.points[tile] - model.means[:, None, :]
        with np.errstate(over="ignore"):
            mass = np.exp(model.joint_log_prob(deviation) + nodes.log_weights[tile])
        if not np.isfinite(mass).all():
            total.nk[:] = np.inf
            return total
        total += Moments.weighted(deviation, mass, model.covariance_type)
    return total
