"""Bounds of the densities of cells with noise, from the eigenvalues of covariances and noise."""

from dataclasses import dataclass

import numpy as np

from cohortgmm.mixture.density.noisy import NoisyDensities
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.observations.measurements import Group


@dataclass(frozen=True, eq=False)
class NoiseSpectrum:
    """Summaries of the eigenvalues of every cell's noise.

    Attributes
    ----------
    largest
        (n,) largest eigenvalue.
    mean
        (n,) mean of the eigenvalues.
    geometric
        (n,) geometric mean of the eigenvalues; 0 for noise that is zero in some direction.
    """

    largest: np.ndarray
    mean: np.ndarray
    geometric: np.ndarray

    @classmethod
    def of_group(cls, group: Group, tiles: list[slice]) -> "NoiseSpectrum":
        """Make the summaries for all cells of a group."""
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

    def take(self, rows: slice | np.ndarray) -> "NoiseSpectrum":
        """The summaries of some of the cells."""
        return NoiseSpectrum(self.largest[rows], self.mean[rows], self.geometric[rows])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues (K, D) and eigenvectors (K, D, D) of the covariances; ``axes`` is None for diagonal covariances."""

    values: np.ndarray
    axes: np.ndarray | None

    @classmethod
    def of(cls, model: Parameters) -> "Spectrum":
        """Compute the eigenvalues and eigenvectors for the components of a mixture."""
        if model.covariance_type == "diag":
            return cls(model.covariances, None)
        return cls(*np.linalg.eigh(model.covariances))


class NoiseBounds:
    """Bounds of the joint log-densities of a tile.

    Parameters
    ----------
    densities
        The densities of the tile.
    spectrum
        Eigenvalues and eigenvectors of the mixture's covariances.
    noise
        Summaries of the eigenvalues of the cells' noise.
    """

    def __init__(self, densities: NoisyDensities, spectrum: Spectrum, noise: NoiseSpectrum) -> None:
        self._densities, self._spectrum, self._noise = densities, spectrum, noise
        self._geometric = np.exp(np.log(spectrum.values).mean(axis=1))

    def of_all_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Upper bounds of joint log-densities and lower bounds of squared distances, (K, n).

        For the distances, the noise in every direction is replaced by its largest eigenvalue.
        """
        densities, noise = self._densities, self._noise
        distance = np.empty(densities.log_tops.shape)
        for k, values in enumerate(self._spectrum.values):
            along = self._along(k, slice(None))
            along *= along
            along /= values[:, None] + noise.largest
            along.sum(axis=0, out=distance[k])
        half_log_det = self._half_log_det(self._geometric[:, None], noise)
        bound = densities.log_tops - half_log_det - 0.5 * distance
        if densities.observed is not None:  # a missing feature may have any value
            incomplete = ~densities.observed.all(axis=0)
            bound[:, incomplete], distance[:, incomplete] = np.inf, 0.0
        return bound, distance

    def narrow(self, k: int, rows: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The cells among ``rows`` whose joint log-density with component k may be as large as needed.

        For any u, dᵀ T⁻¹ d ≥ (uᵀ d)² / uᵀ T u; the two are close for a u that is close to T⁻¹ d.
        """
        if self._densities.observed is not None or not len(rows):
            return rows
        values, axes, noise = self._spectrum.values[k][:, None], self._spectrum.axes, self._noise.take(rows)
        along = self._along(k, rows)
        weighted = along / (values + noise.mean)
        u = weighted if axes is None else axes[k] @ weighted
        total = np.einsum("dp,dp->p", weighted, weighted * values) + self._densities.noise_along(u, rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = np.einsum("dp,dp->p", weighted, along) ** 2 / total
        distance[total == 0] = 0.0
        half_log_det = self._half_log_det(self._geometric[k], noise)
        return rows[self._densities.log_tops[k, rows] - half_log_det - 0.5 * distance > needed]

    def _along(self, k: int, rows: slice | np.ndarray) -> np.ndarray:
        """Deviations (D, n) from the mean of component k along the axes of its covariance."""
        deviation = self._densities.x[:, rows] - self._densities.model.means[k][:, None]
        return deviation if self._spectrum.axes is None else self._spectrum.axes[k].T @ deviation

    def _half_log_det(self, geometric: np.ndarray | float, noise: NoiseSpectrum) -> np.ndarray:
        """Lower bound of ½ log det(Σ + S) (Minkowski): det(Σ + S)^(1/D) ≥ det(Σ)^(1/D) + det(S)^(1/D)."""
        return 0.5 * len(self._densities.x) * np.log(geometric + noise.geometric)
