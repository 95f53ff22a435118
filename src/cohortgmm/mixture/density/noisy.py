"""Densities of cells that each have their own noise or their own missing features.

T = Σ + S is the covariance of a component's measured cells that have the noise S. The rows and columns of missing features
in T are replaced by those of the unit matrix, which changes neither the determinant nor the distance over the measured
features, so that the density is the exact marginal one.
"""

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.numerics.gaussian import LOG_2PI
from cohortgmm.mixture.numerics.packed import (
    diagonal_places,
    inverse_roots,
    pack,
    packed_rows,
    product,
    transposed_product,
)
from cohortgmm.mixture.observations.measurements import Group


class NoisyDensities:
    """Joint log-densities of pairs of cell and component, with full matrices.

    Arrays hold one column for every cell.

    Parameters
    ----------
    group
        The cells.
    tile
        Slice of the cells in the group that are evaluated.
    model
        The mixture.

    Attributes
    ----------
    x
        (D, n) the cells; zero where a feature is missing.
    observed
        (D, n) which features each cell has; None if all cells have all.
    log_tops
        (K, n) log(weight) − ½ log 2π × number of features.
    """

    def __init__(self, group: Group, tile: slice, model: Parameters) -> None:
        self.model = model
        self.x = np.ascontiguousarray(group.cells.rows(tile).T)
        self.observed = None if group.observed is None else np.ascontiguousarray(group.observed[tile].T)
        self._prepare(group, tile)
        n_observed = len(self.x) if self.observed is None else self.observed.sum(axis=0)
        with np.errstate(divide="ignore"):
            self.log_tops = np.log(model.weights)[:, None] - 0.5 * LOG_2PI * np.broadcast_to(
                n_observed, self.x.shape[1]
            )

    def _prepare(self, group: Group, tile: slice) -> None:
        d = len(self.x)
        self._covariances = pack(self.model.full_covariances)
        noise = group.noise
        if noise is None:
            self._noise = np.zeros((d * (d + 1) // 2, 1))
        else:
            self._noise = pack(noise.covariances(tile))
            self._noise = self._noise[:, None] if noise.is_shared else self._noise
        if self.observed is not None:
            rows, columns = np.triu_indices(d)
            self._both = self.observed[rows] & self.observed[columns]

    def evaluate(self, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Densities of some of the cells under component k.

        Returns
        -------
        joint : ndarray
            (n,) log(weight × density) in nats.
        distance : ndarray
            (n,) squared Mahalanobis distance dᵀ T⁻¹ d from the mean.
        factors : ndarray
            Factors of T⁻¹, packed, (·, n); here Z with Z Zᵀ = T⁻¹.
        score : ndarray
            (D, n) T⁻¹ d, the derivative of the log-density with respect to the mean.
        """
        all_rows = len(rows) == self.x.shape[1]
        deviation = (self.x if all_rows else self.x[:, rows]) - self.model.means[k][:, None]
        if self.observed is not None:
            deviation *= self.observed[:, rows]
        factors, score, half_log_det, distance = self._solve(k, slice(None) if all_rows else rows, deviation)
        return self.log_tops[k, rows] - half_log_det - 0.5 * distance, distance, factors, score

    def _solve(
        self, k: int, rows: slice | np.ndarray, deviation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Factors of T⁻¹, the score T⁻¹ d, ½ log det T and dᵀ T⁻¹ d."""
        total = self._covariances[:, k][:, None] + self._noise_of(rows)
        if total.shape[1] != deviation.shape[1]:
            total = np.repeat(total, deviation.shape[1], axis=1)
        if self.observed is not None:
            total *= self._both[:, rows]
            total[diagonal_places(len(deviation))] += ~self.observed[:, rows]
        roots, half_log_det = inverse_roots(total, len(deviation))
        white = transposed_product(roots, deviation)
        return roots, product(roots, white), half_log_det, np.einsum("dp,dp->p", white, white)

    def noise_along(self, u: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        """uᵀ S u (n,) for directions u (D, n)."""
        noise, total = self._noise_of(rows), 0.0
        for a, row in enumerate(packed_rows(len(u))):
            own = noise[row] * u[a:]
            total = total + u[a] * (2.0 * own.sum(axis=0) - own[0])
        return total

    def _noise_of(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._noise if self._noise.shape[1] == 1 else self._noise[:, rows]


class DiagonalNoisyDensities(NoisyDensities):
    """Joint log-densities of pairs if components and noise are diagonal; the factors are the diagonal of T⁻¹."""

    def _prepare(self, group: Group, tile: slice) -> None:
        noise = np.zeros(len(self.x)) if group.noise is None else group.noise.variances(tile)
        self._noise = np.ascontiguousarray(np.atleast_2d(noise).T)

    def _solve(
        self, k: int, rows: slice | np.ndarray, deviation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        total = np.broadcast_to(self.model.covariances[k][:, None] + self._noise_of(rows), deviation.shape)
        if self.observed is not None:
            total = np.where(self.observed[:, rows], total, 1.0)
        inverse = 1.0 / total
        score = deviation * inverse
        return inverse, score, 0.5 * np.log(total).sum(axis=0), np.einsum("dp,dp->p", score, deviation)

    def noise_along(self, u: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        return np.einsum("dp,dp->p", u * self._noise_of(rows), u)


def noisy_densities(group: Group, tile: slice, model: Parameters) -> NoisyDensities:
    """Densities of some cells of a group, with the matrices that their noise and the mixture need."""
    kind = DiagonalNoisyDensities if group.is_diagonal(model.covariance_type) else NoisyDensities
    return kind(group, tile, model)
