"""The E-step of cells that each have their own noise or their own missing features (Bovy, Hogg & Roweis 2011).

With T = Σ + S, the covariance of a component's measured cells that have the noise S, the expected moments of the cells
without noise follow from the score T⁻¹ (x − μ) and from T⁻¹ alone: see :func:`latent_moments`, the deconvolution formula.
"""

from functools import cached_property

import numpy as np

from cohortgmm.mixture.density.noisy import DiagonalNoisyDensities, NoisyDensities, noisy_densities
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.estep.noise_bounds import NoiseBounds, NoiseSpectrum, Spectrum
from cohortgmm.mixture.estep.pairs import EvaluatedPairs
from cohortgmm.mixture.estep.pruned import PrunedExpectation, TileBounds
from cohortgmm.mixture.numerics.packed import diagonal_places, sum_of_squares
from cohortgmm.mixture.numerics.tiles import range_slices
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.measurements import Group


class NoisyExpectation(PrunedExpectation):
    """Every component for the cells in which its responsibility may exceed rounding; every cell has its own noise and
    features.

    Parameters
    ----------
    group
        The cells.
    n_components, covariance_type
        Of the mixtures.
    cutoff
        See :class:`~cohortgmm.mixture.estep.pruned.PrunedExpectation`.
    """

    bounds_are_expensive = True

    def __init__(self, group: Group, n_components: int, covariance_type: str, cutoff: float | None = None) -> None:
        d, sizes = group.cells.n_features, tuning()
        values = n_components * (2 * d if group.is_diagonal(covariance_type) else d * (d + 1) // 2)
        fewest, most = sizes.noisy_rows
        tiles = range_slices(len(group.cells), min(max(fewest, sizes.noisy_values // values), most))
        super().__init__(group.cells, list(tiles), cutoff)
        self._group = group

    def __call__(self, model: Parameters) -> Moments:
        return latent_moments(super().__call__(model), model)

    def _tile_bounds(self, model: Parameters) -> TileBounds:
        spectrum = Spectrum.of(model)

        def open_tile(tile: slice) -> tuple[EvaluatedPairs, np.ndarray, np.ndarray]:
            densities = noisy_densities(self._group, tile, model)
            bounds = NoiseBounds(densities, spectrum, self._noise_spectrum.take(tile))
            return NoisyPairs(densities, bounds), *bounds.of_all_pairs()

        return open_tile

    def _open(self, tile: slice, model: Parameters) -> EvaluatedPairs:
        return NoisyPairs(noisy_densities(self._group, tile, model))

    @cached_property
    def _noise_spectrum(self) -> NoiseSpectrum:
        return NoiseSpectrum.of_group(self._group, self.tiles)


class NoisyPairs(EvaluatedPairs):
    """Pairs of cells with noise and components; their moments are those of the scores, see :func:`latent_moments`.

    Parameters
    ----------
    densities
        The densities of the cells.
    bounds
        Bounds of the densities, by which :meth:`narrow` leaves out pairs; None to keep all.
    """

    def __init__(self, densities: NoisyDensities, bounds: NoiseBounds | None = None) -> None:
        super().__init__(densities.model, densities.x.shape[1])
        self._densities, self._bounds = densities, bounds
        self._is_diagonal = isinstance(densities, DiagonalNoisyDensities)

    def narrow(self, k: int, rows: np.ndarray, needed: np.ndarray) -> np.ndarray:
        return rows if self._bounds is None else self._bounds.narrow(k, rows, needed)

    def _evaluate(self, k: int, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        self.joint[k, rows], self.distance[k, rows], factors, score = self._densities.evaluate(k, rows)
        return factors, score

    @staticmethod
    def _select(array: np.ndarray, used: np.ndarray) -> np.ndarray:
        return array[:, used]

    def _add(self, moments: Moments, k: int, rows: np.ndarray, resp: np.ndarray, *arrays: np.ndarray) -> None:
        factors, score = arrays
        observed = None if self._densities.observed is None else self._densities.observed[:, rows]
        if self._is_diagonal:
            moments.first[k] += score @ resp
            inverse = factors if observed is None else factors * observed
            moments.second[k] += (score**2 - inverse) @ resp
            return
        root = np.sqrt(resp)
        score = score * root
        moments.first[k] += score @ root
        factors = factors * root
        if observed is not None:  # without the unit matrix in the place of missing features
            factors[diagonal_places(len(score))] *= observed
        curvature = score @ score.T - sum_of_squares(factors, len(score))
        moments.second[k] += np.diagonal(curvature) if moments.second.ndim == 2 else curvature


def latent_moments(moments: Moments, model: Parameters) -> Moments:
    """Moments of the cells without noise, from the moments of their scores (the deconvolution formula).

    With the score g = T⁻¹ (x − μ), the cell without noise has the posterior mean μ + Σ g and covariance Σ − Σ T⁻¹ Σ (Bovy,
    Hogg & Roweis 2011, equation 12). Therefore Σ_i r_i g_i and Σ_i r_i (g_i g_iᵀ − T_i⁻¹), the derivatives of the
    log-likelihood with respect to mean and covariance, hold all that the M-step needs.

    Parameters
    ----------
    moments
        These two sums as ``first`` (K, D) and ``second`` (K, D, D) or (K, D); overwritten.
    model
        The mixture that they were computed with.
    """
    covariances = model.covariances
    if model.covariance_type == "diag":
        moments.first = covariances * moments.first
        moments.second = moments.nk[:, None] * covariances + covariances**2 * moments.second
    else:
        moments.first = (covariances @ moments.first[:, :, None])[:, :, 0]
        moments.second = moments.nk[:, None, None] * covariances + covariances @ moments.second @ covariances
    return moments
