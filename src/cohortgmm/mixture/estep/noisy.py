"""The E-step of cells that each have their own noise or their own missing features (Bovy, Hogg & Roweis 2011).

With T = Σ + S, the covariance of what is seen of a component through the noise S, the expected moments of the cell
behind the noise follow from the score T⁻¹ (x − μ) and from T⁻¹ alone (see :func:`lifted`). A missing feature has
neither: its row and column of T are those of the unit matrix, and what they add is left out again, so that the
likelihood is the exact marginal one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cohortgmm.mixture.em.mstep import Moments
from cohortgmm.mixture.estep.pruned import PairedExpectation, Reach
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import LOG_2PI
from cohortgmm.mixture.numerics.packed import (
    diagonal_places,
    inverse_roots,
    pack,
    packed_rows,
    product,
    sum_of_squares,
    transposed_product,
)
from cohortgmm.mixture.numerics.posterior import responsibilities
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.observations.measurements import Group

#: Responsibilities below a rounding error add nothing to a moment.
_ROUNDING = 1e-16

#: Rows in a tile, at least and at most, and values of its factors.
_FEWEST_ROWS, _MOST_ROWS = 128, 16384
_TILE_VALUES = 1 << 23


class NoisyExpectation(PairedExpectation):
    """Every component for the cells that it could matter for, each with its own noise and features.

    Parameters
    ----------
    group
        The cells.
    n_components, covariance_type
        Of the mixtures.
    cutoff
        See :class:`~cohortgmm.mixture.estep.pruned.PairedExpectation`.
    """

    bounds_are_dear = True

    def __init__(self, group: Group, n_components: int, covariance_type: str, cutoff: float | None = None) -> None:
        d = group.cells.n_features
        values = n_components * (2 * d if group.is_diagonal(covariance_type) else d * (d + 1) // 2)
        tiles = range_slices(len(group.cells), min(max(_FEWEST_ROWS, _TILE_VALUES // values), _MOST_ROWS))
        super().__init__(group.cells, list(tiles), cutoff)
        self._group = group

    def __call__(self, model, *, exact=True):
        return lifted(super().__call__(model), model)

    def _reach(self, model: GaussianMixture) -> Reach:
        if model.covariance_type == "diag":
            values, axes = model.covariances, None
        else:
            values, axes = np.linalg.eigh(model.covariances)

        def open_tile(tile: slice):
            return (pairs := pairs_of(self._group, tile, model)), *pairs.bound(values, axes, self._spread.of(tile))

        return open_tile

    def _open(self, tile, model):
        return pairs_of(self._group, tile, model)

    @cached_property
    def _spread(self) -> "Spread":
        return Spread.of_group(self._group, self.tiles)


@dataclass(frozen=True, eq=False)
class Spread:
    """What bounds the noise of cells.

    Attributes
    ----------
    most
        (n,) largest eigenvalue.
    mean
        (n,) mean eigenvalue.
    geometric
        (n,) geometric mean of the eigenvalues; 0 for noise that leaves a direction alone.
    """

    most: np.ndarray
    mean: np.ndarray
    geometric: np.ndarray

    @classmethod
    def of_group(cls, group: Group, tiles: list[slice]) -> "Spread":
        """Of all cells of a group."""
        n, d, noise = len(group.cells), group.cells.n_features, group.noise
        if noise is None:
            values = np.zeros((1, d))
        elif noise.is_diagonal:
            values = np.atleast_2d(noise.variances())
        elif noise.is_shared:
            values = np.linalg.eigvalsh(noise.covariances())[None]
        else:
            values = np.concatenate([np.linalg.eigvalsh(noise.covariances(tile)) for tile in tiles])
        values = np.maximum(values, 0.0)
        with np.errstate(divide="ignore"):
            parts = (values.max(axis=1), values.mean(axis=1), np.exp(np.log(values).mean(axis=1)))
        return cls(*(np.broadcast_to(part, n) for part in parts))

    def of(self, rows: slice) -> "Spread":
        """Of some of the cells."""
        return Spread(self.most[rows], self.mean[rows], self.geometric[rows])


class NoisyPairs:
    """Pairs of cell and component that have been evaluated.

    Parameters
    ----------
    group
        The cells.
    tile
        Those looked at.
    model
        The mixture.
    """

    def __init__(self, group: Group, tile: slice, model: GaussianMixture) -> None:
        self.x = np.ascontiguousarray(group.cells.rows(tile).T)
        self.observed = None if group.observed is None else np.ascontiguousarray(group.observed[tile].T)
        self._model, self._kept = model, []
        self.joint = np.full((model.n_components, self.x.shape[1]), -np.inf)
        self.distance = np.full(self.joint.shape, np.inf)
        self._prepare(group, tile)
        n_observed = len(self.x) if self.observed is None else self.observed.sum(axis=0)
        with np.errstate(divide="ignore"):
            self._tops = np.log(model.weights)[:, None] - 0.5 * LOG_2PI * np.broadcast_to(n_observed, self.x.shape[1])

    def _prepare(self, group: Group, tile: slice) -> None:
        d = len(self.x)
        self._covariances = pack(self._model.full_covariances)
        noise = group.noise
        if noise is None:
            self._noise = np.zeros((d * (d + 1) // 2, 1))
        else:
            self._noise = pack(noise.covariances(tile))
            self._noise = self._noise[:, None] if noise.is_shared else self._noise
        if self.observed is not None:
            rows, columns = np.triu_indices(d)
            self._both = self.observed[rows] & self.observed[columns]

    def bound(self, values: np.ndarray, axes: np.ndarray | None, spread: Spread) -> tuple[np.ndarray, np.ndarray]:
        """Joint log-densities from above and squared distances from below, (K, n), for noise as round as its largest.

        Parameters
        ----------
        values, axes
            Eigenvalues (K, D) and eigenvectors (K, D, D) of the covariances; None for the features themselves.
        spread
            Of the noise.
        """
        self._values, self._axes, self._spread = values, axes, spread
        distance = np.empty(self.joint.shape)
        for k in range(len(values)):
            along = self._along(k, slice(None))
            along *= along
            along /= values[k][:, None] + spread.most
            along.sum(axis=0, out=distance[k])
        self._geometric = np.exp(np.log(values).mean(axis=1))
        half_log_det = self._half_log_det(self._geometric[:, None], spread)
        bound = self._tops - half_log_det - 0.5 * distance
        if self.observed is not None:  # what is missing could have any value
            incomplete = ~self.observed.all(axis=0)
            bound[:, incomplete], distance[:, incomplete] = np.inf, 0.0
        return bound, distance

    def narrow(self, k: int, rows: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The cells among ``rows`` whose joint log-density with component k may be as large as needed.

        For any u, dᵀ T⁻¹ d ≥ (uᵀ d)² / uᵀ T u, and nearly so for a u that is near to T⁻¹ d.
        """
        if self.observed is not None or not len(rows):
            return rows
        values, spread = self._values[k][:, None], self._spread.of(rows)
        along = self._along(k, rows)
        weighted = along / (values + spread.mean)
        u = weighted if self._axes is None else self._axes[k] @ weighted
        total = np.einsum("dp,dp->p", weighted, weighted * values) + self._noise_along(u, rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = np.einsum("dp,dp->p", weighted, along) ** 2 / total
        distance[total == 0] = 0.0
        half_log_det = self._half_log_det(self._geometric[k], spread)
        return rows[self._tops[k, rows] - half_log_det - 0.5 * distance > needed]

    def _along(self, k: int, rows) -> np.ndarray:
        """Deviations (D, n) from the mean of component k along the axes of its covariance."""
        deviation = self.x[:, rows] - self._model.means[k][:, None]
        return deviation if self._axes is None else self._axes[k].T @ deviation

    def _half_log_det(self, geometric: np.ndarray | float, spread: Spread) -> np.ndarray:
        """½ log det(Σ + S) from below (Minkowski): det(Σ + S)^(1/D) ≥ det(Σ)^(1/D) + det(S)^(1/D)."""
        return 0.5 * len(self.x) * np.log(geometric + spread.geometric)

    def _noise_along(self, u: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """uᵀ S u (n,)."""
        noise = self._noise if self._noise.shape[1] == 1 else self._noise[:, rows]
        total = 0.0
        for a, row in enumerate(packed_rows(len(u))):
            own = noise[row] * u[a:]
            total = total + u[a] * (2.0 * own.sum(axis=0) - own[0])
        return total

    def evaluate(self, k: int, rows: np.ndarray) -> None:
        """Evaluate component k for some of the cells."""
        if not len(rows):
            return
        everyone = len(rows) == self.x.shape[1]
        deviation = (self.x if everyone else self.x[:, rows]) - self._model.means[k][:, None]
        if self.observed is not None:
            deviation *= self.observed[:, rows]
        factors, score, half_log_det, distance = self._solve(k, slice(None) if everyone else rows, deviation)
        self.distance[k, rows] = distance
        self.joint[k, rows] = self._tops[k, rows] - half_log_det - 0.5 * distance
        self._kept.append((k, rows, factors, score))

    def _solve(self, k: int, rows, deviation: np.ndarray):
        """Factors of T⁻¹, the score T⁻¹ d, ½ log det T and dᵀ T⁻¹ d."""
        noise = self._noise if self._noise.shape[1] == 1 else self._noise[:, rows]
        total = self._covariances[:, k][:, None] + noise
        if total.shape[1] != deviation.shape[1]:
            total = np.repeat(total, deviation.shape[1], axis=1)
        if self.observed is not None:
            total *= self._both[:, rows]
            total[diagonal_places(len(deviation))] += ~self.observed[:, rows]
        roots, half_log_det = inverse_roots(total, len(deviation))
        white = transposed_product(roots, deviation)
        return roots, product(roots, white), half_log_det, np.einsum("dp,dp->p", white, white)

    def moments(self, background: np.ndarray | None) -> tuple[Moments, np.ndarray]:
        """Moments of scores for :func:`lifted`, and the responsibilities (K, n), zero for what was not evaluated."""
        resp, log_likelihood = responsibilities(self.joint, background)
        moments = Moments.zeros(*self._model.means.shape, self._model.covariance_type)
        while self._kept:  # each is freed when it has been added
            k, rows, factors, score = self._kept.pop()
            weights = resp[k, rows]
            used = weights > _ROUNDING
            if not used.all():
                rows, weights, factors, score = rows[used], weights[used], factors[:, used], score[:, used]
            if len(rows):
                self._add(moments, k, rows, weights, factors, score)
        moments.nk[:] = resp.sum(axis=1)
        moments.log_likelihood, moments.n = log_likelihood, resp.shape[1]
        return moments, resp

    def forget(self) -> None:
        """Free what only the moments need."""
        self._kept.clear()

    def _add(self, moments: Moments, k: int, rows, weights, factors, score) -> None:
        root = np.sqrt(weights)
        score = score * root
        moments.first[k] += score @ root
        factors = factors * root
        if self.observed is not None:  # without the unit matrix in the place of what is missing
            factors[diagonal_places(len(score))] *= self.observed[:, rows]
        curvature = score @ score.T - sum_of_squares(factors, len(score))
        moments.second[k] += np.diagonal(curvature) if moments.second.ndim == 2 else curvature


class DiagonalPairs(NoisyPairs):
    """The same where components and noise have variances only."""

    def _prepare(self, group, tile):
        noise = np.zeros(len(self.x)) if group.noise is None else group.noise.variances(tile)
        self._noise = np.ascontiguousarray(np.atleast_2d(noise).T)

    def _noise_along(self, u, rows):
        noise = self._noise if self._noise.shape[1] == 1 else self._noise[:, rows]
        return np.einsum("dp,dp->p", u * noise, u)

    def _solve(self, k, rows, deviation):
        noise = self._noise if self._noise.shape[1] == 1 else self._noise[:, rows]
        total = np.broadcast_to(self._model.covariances[k][:, None] + noise, deviation.shape)
        if self.observed is not None:
            total = np.where(self.observed[:, rows], total, 1.0)
        inverse = 1.0 / total
        score = deviation * inverse
        return inverse, score, 0.5 * np.log(total).sum(axis=0), np.einsum("dp,dp->p", score, deviation)

    def _add(self, moments, k, rows, weights, factors, score):
        moments.first[k] += score @ weights
        inverse = factors if self.observed is None else factors * self.observed[:, rows]
        moments.second[k] += (score**2 - inverse) @ weights


def pairs_of(group: Group, tile: slice, model: GaussianMixture) -> NoisyPairs:
    """Pairs of some cells of a group, of the kind for their noise and this mixture."""
    return (DiagonalPairs if group.is_diagonal(model.covariance_type) else NoisyPairs)(group, tile, model)


def lifted(moments: Moments, model: GaussianMixture) -> Moments:
    """Moments of the cells behind the noise from those of their scores.

    With g = T⁻¹ (x − μ), the cell behind the noise has the posterior mean μ + Σ g and covariance Σ − Σ T⁻¹ Σ (Bovy,
    Hogg & Roweis 2011, equation 12), so that Σ_i r_i g_i and Σ_i r_i (g_i g_iᵀ − T_i⁻¹), the derivatives of the
    log-likelihood with respect to mean and covariance, hold all that the M-step needs.
    """
    covariances = model.covariances
    if model.covariance_type == "diag":
        moments.first = covariances * moments.first
        moments.second = moments.nk[:, None] * covariances + covariances**2 * moments.second
    else:
        moments.first = (covariances @ moments.first[:, :, None])[:, :, 0]
        moments.second = moments.nk[:, None, None] * covariances + covariances @ moments.second @ covariances
    return moments
