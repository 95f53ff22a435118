"""The E-step of selected cells: truncated and incomplete sampling (Melchior & Goulding 2018).

A cell at x is observed with probability Ω(x), so that a share Z = ∫ p Ω of all cells is observed and U = 1 − Z is not.
EM adds n U / Z unobserved cells to the n observed ones. U is a sum over quadrature nodes y_j with weights v_j,

    U(θ) = Σ_j v_j (1 − Ω(y_j)) p(y_j; θ),    log-likelihood Σ_i log p(x_i; θ) − n log(1 − U(θ)).

−log(1 − U) is convex in U, and U is convex in the joint log-densities log p_k(y_j) (p_k is weight times density). Its
tangent in these log-densities is therefore a lower bound. EM with n / (1 − U) v_j (1 − Ω(y_j)) p_k(y_j) pseudo-cells of
component k at node j maximises this bound, and never lowers the log-likelihood while the nodes stay where they are.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from cohortgmm.errors import DivergedError
from cohortgmm.mixture.density.evaluate import log_prob
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.numerics.tiles import tile_slices
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.completeness import Completeness, NoiseAt, scaled_noise

#: Largest share of all cells that may be unobserved.
_LARGEST_SHARE = 0.999

#: The nodes are redrawn if a component diverges from the one that they were drawn for by more nats than the first
#: number while EM runs, or than the second when EM has converged.
_VALID, _REDRAWN_AT_END = 0.05, 0.005

#: This share of the nodes is divided evenly among the components, the rest by their weights.
_EVEN = 0.5

#: Quadrature nodes for every cell: the error of the sum over nodes must be far below the sampling error of the cells,
#: which falls with their number.
_NODES_PER_CELL = 32

#: Quadrature nodes of a trial run, and of the background.
_TRIAL_NODES = 1 << 12
_BACKGROUND_NODES = 1 << 14


@dataclass(frozen=True, eq=False)
class QuadratureNodes:
    """Places at which the unobserved part of a mixture is evaluated.

    Attributes
    ----------
    points
        (J, D).
    log_weights
        (J,) logarithm of quadrature weight × (1 − completeness).
    proposal
        The mixture that the nodes were drawn for.
    background_share
        Share of the background's cells that is unobserved.
    """

    points: np.ndarray
    log_weights: np.ndarray
    proposal: Parameters
    background_share: float = 0.0

    def distance(self, model: Parameters) -> float:
        """Largest Kullback-Leibler divergence, in nats, of a component of ``model`` from that of the proposal."""
        if model is self.proposal:
            return 0.0
        whitener = self.proposal.factors.whitener
        shift = model.means - self.proposal.means
        if model.covariance_type == "diag":
            trace = (model.covariances * whitener**2).sum(axis=1)
            moved = (shift * whitener) ** 2
        else:
            root = whitener.transpose(0, 2, 1) @ model.factors.root
            trace = (root**2).sum(axis=(1, 2))
            moved = (shift[:, None, :] @ whitener)[:, 0] ** 2
        growth = 2.0 * (model.factors.half_log_det - self.proposal.factors.half_log_det)
        return float((0.5 * (trace - model.n_features - growth + moved.sum(axis=1))).max())


@dataclass(frozen=True, eq=False)
class Truncation:
    """How the observed cells were selected from all cells.

    Attributes
    ----------
    completeness
        Probability that a cell is observed, as a function of its measured features.
    noise_at
        Measurement noise of a cell as a function of its features before the noise: callable (m, D) → (m, D, D) or
        (m, D), or one array for all; None if the cells have no noise.
    seed
        Seed of the quasi-random numbers.
    """

    completeness: Completeness
    noise_at: NoiseAt | None
    seed: int

    def nodes(self, model: Parameters, n_nodes: int) -> QuadratureNodes:
        """Draw nodes for mixtures near to ``model``: quasi-random points of its components, made a little wider.

        Parameters
        ----------
        model
            The mixture.
        n_nodes
            Number of points J; those that are observed with certainty are left out.
        """
        d, k = model.n_features, model.n_components
        width = 1.0 + 0.5 / np.sqrt(d)
        shares = (1 - _EVEN) * model.component_weights + _EVEN / k
        # Sobol's points come in powers of 2.
        counts = 1 << np.round(np.log2(np.maximum(shares * n_nodes, 1))).astype(int)
        n_dimensions = 2 * d if self.noise_at is not None else d
        normal = np.concatenate(
            [_normal(_sobol(n, n_dimensions, self.seed + i)) for i, n in enumerate(counts.tolist())]
        )
        points = width * normal[:, :d]
        parts = np.split(points, np.cumsum(counts)[:-1])
        for mean, root, part in zip(model.means, model.factors.root, parts, strict=True):
            part[:] = mean + (part * root if root.ndim == 1 else part @ root.T)
        unobserved = 1.0 - self.completeness(self._measured(points, normal[:, d:]))
        kept = unobserved > 0
        points, unobserved = points[kept], unobserved[kept]
        proposal = Parameters.from_factors(counts / counts.sum(), model.means, width**2 * model.covariances)
        log_weights = np.log(unobserved) - np.log(counts.sum()) - log_prob(proposal, points)
        return QuadratureNodes(points, log_weights, model, self._background_share(model))

    def _background_share(self, model: Parameters) -> float:
        if model.background is None:
            return 0.0
        d = model.n_features
        uniform = _sobol(_BACKGROUND_NODES, 2 * d if self.noise_at is not None else d, self.seed)
        points = model.background.lower + uniform[:, :d] * (model.background.upper - model.background.lower)
        return float(np.mean(1.0 - self.completeness(self._measured(points, _normal(uniform[:, d:])))))

    def _measured(self, points: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Add noise to the points, from standard normal numbers."""
        return points if self.noise_at is None else points + scaled_noise(points, self.noise_at, normal)


def _sobol(n: int, d: int, seed: int) -> np.ndarray:
    """(n, d) scrambled Sobol points in the unit cube, at some distance from its faces."""
    from scipy.stats import qmc  # only needed with a completeness function; it takes longer to load than a small fit

    points = qmc.Sobol(d, seed=seed).random(1 << max(n - 1, 1).bit_length())[:n]
    return np.clip(points, 1e-12, 1.0 - 1e-12)


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Standard normal numbers from uniform ones."""
    from scipy.special import ndtri  # as above

    return ndtri(uniform)


def n_nodes_for(n: int) -> int:
    """Number of quadrature nodes for n cells, a power of 2."""
    sizes = tuning()
    return min(max(1 << (_NODES_PER_CELL * n - 1).bit_length(), sizes.fewest_nodes), sizes.most_nodes)


class TruncatedExpectation(Expectation):
    """Moments of the observed cells from another E-step, plus the expected moments of the unobserved cells.

    Parameters
    ----------
    of_observed
        E-step of the observed cells.
    selection
        How they were selected.
    n_nodes
        Number of quadrature nodes.
    nodes
        The nodes; None until :meth:`begin`.
    """

    def __init__(
        self, of_observed: Expectation, selection: Truncation, n_nodes: int, nodes: QuadratureNodes | None = None
    ) -> None:
        super().__init__(of_observed.cells)
        self.inner = (of_observed,)
        self._selection, self._n_nodes, self.nodes = selection, n_nodes, nodes

    def begin(self, model: Parameters) -> Self:
        nodes = self._selection.nodes(model, self._n_nodes)
        return type(self)(self.inner[0].begin(model), self._selection, self._n_nodes, nodes)

    def covers(self, model: Parameters) -> bool:
        return self.nodes.distance(model) <= _VALID

    def is_settled(self, model: Parameters) -> bool:
        return self.nodes.distance(model) <= _REDRAWN_AT_END

    def coarse(self) -> Self:
        return type(self)(self.inner[0], self._selection, _TRIAL_NODES)

    def __call__(self, model: Parameters) -> Moments:
        moments = self.inner[0](model)
        unobserved = unobserved_moments(model, self.nodes)
        share = float(unobserved.nk.sum())
        if model.background is not None:
            share += model.background.amp * self.nodes.background_share
        if not share <= _LARGEST_SHARE:
            raise DivergedError(
                f"{share:.4g} of all cells would be unobserved, so too few are observed for a fit: ask for fewer "
                "components or raise eps"
            )
        factor = moments.n / (1.0 - share)
        moments.nk += factor * unobserved.nk
        moments.first += factor * unobserved.first
        moments.second += factor * unobserved.second
        moments.n_unobserved = factor * share
        moments.log_likelihood -= moments.n * np.log1p(-share)
        return moments


def unobserved_moments(model: Parameters, nodes: QuadratureNodes) -> Moments:
    """Moments of the unobserved part of a mixture; their ``nk`` sums to its share of all cells."""
    total = Moments.zeros(model.n_components, model.n_features, model.covariance_type)
    for tile in tile_slices(len(nodes.points), model.means.size):
        deviation = nodes.points[tile] - model.means[:, None, :]
        with np.errstate(over="ignore"):
            mass = np.exp(model.joint_log_prob(deviation) + nodes.log_weights[tile])
        if not np.isfinite(mass).all():
            total.nk[:] = np.inf
            return total
        total += Moments.weighted(deviation, mass, model.covariance_type)
    return total
