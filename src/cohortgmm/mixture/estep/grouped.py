"""The E-step of measured cells: group by group, each through the components as they look in its features and noise."""

import numpy as np

from cohortgmm.mixture.em.mstep import Moments
from cohortgmm.mixture.estep.base import DenseExpectation, Expectation, QuadraticExpectation
from cohortgmm.mixture.estep.noisy import NoisyExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Group, Measurements

#: Up to this many features two products of quadratic features cost less than looking for what can be left out.
_FEW_FEATURES = 18

#: Up to this many products (n D² K) every component is evaluated for every cell.
_SMALL_WORK = 6_000_000


def expectation_of(
    cells: Measurements, n_components: int, covariance_type: str, cutoff: float | None = None
) -> Expectation:
    """The fastest way to the same moments.

    Parameters
    ----------
    cells
        The cells.
    n_components, covariance_type
        Of the mixtures.
    cutoff
        See :func:`cohortgmm.fit_mixture`.
    """
    limit = None if cutoff is None else squared_reach(cutoff, cells.n_features)
    parts = [_expectation_of_group(group, n_components, covariance_type, limit) for group in cells.groups]
    return parts[0] if len(parts) == 1 else GroupedExpectation(parts)


def _expectation_of_group(group: Group, n_components: int, covariance_type: str, limit: float | None) -> Expectation:
    if not group.is_uniform:
        return NoisyExpectation(group, n_components, covariance_type, limit)
    kind = "diag" if group.is_diagonal(covariance_type) else "full"
    seen = _expectation_of_cells(group.cells, n_components, kind, limit)
    return seen if group.features is None and group.noise is None else SeenExpectation(group, seen)


def _expectation_of_cells(cells: CellData, n_components: int, covariance_type: str, limit: float | None) -> Expectation:
    n, d = len(cells), cells.n_features
    if limit is not None:
        if covariance_type == "diag":
            return NoisyExpectation(Group(cells), n_components, "diag", limit)
        return ScreenedExpectation(cells, n_components, limit)
    if covariance_type == "diag" or d <= _FEW_FEATURES:
        return QuadraticExpectation(cells, covariance_type)
    if n_components == 1 or n * d * d * n_components <= _SMALL_WORK:
        return DenseExpectation(cells)
    return ScreenedExpectation(cells, n_components)


def squared_reach(cutoff: float, n_features: int) -> float:
    """Squared Mahalanobis distance beyond which lies the same share as beyond ``cutoff`` sigma in one dimension."""
    from scipy.special import erfc, gammainccinv

    return float(2.0 * gammainccinv(0.5 * n_features, erfc(cutoff / np.sqrt(2.0))))


class SeenExpectation(Expectation):
    """Cells that have the same features and the same noise.

    What is seen of a Gaussian mixture in some features and through Gaussian noise is another one: any E-step gives the
    moments of the cells under it, from which those of the cells behind the noise follow.

    Parameters
    ----------
    group
        The cells.
    seen
        E-step of the cells under what is seen of a mixture.
    """

    def __init__(self, group: Group, seen: Expectation) -> None:
        super().__init__(group.cells)
        self._group, self._seen = group, seen

    def begin(self, model):
        return SeenExpectation(self._group, self._seen.begin(model))

    def __call__(self, model, *, exact=True):
        features, noise = self._group.features, self._group.noise
        seen = model.seen(features, noise)
        moments = self._seen(seen, exact=exact)
        everything = np.arange(model.n_features) if features is None else features
        covariances = model.full_covariances[:, :, everything]
        whitener = seen.factors.whitener
        if seen.covariance_type == "diag":
            gain = covariances * (whitener**2)[:, None, :]
            second = moments.second[:, :, None] * np.eye(len(everything))
        else:
            gain = covariances @ whitener @ whitener.transpose(0, 2, 1)
            second = moments.second
        if noise is None:  # exactly, whatever the condition of the covariances
            gain[:, everything] = np.eye(len(everything))
        rest = model.full_covariances - gain @ covariances.transpose(0, 2, 1)
        if noise is None:
            rest[:, everything] = rest[:, :, everything] = 0.0
        moments.first = (gain @ moments.first[:, :, None])[:, :, 0]
        second = gain @ second @ gain.transpose(0, 2, 1) + moments.nk[:, None, None] * rest
        if model.covariance_type == "diag":
            moments.second = np.einsum("kdd->kd", second).copy()
        else:
            moments.second = 0.5 * (second + second.transpose(0, 2, 1))
        return moments


class GroupedExpectation(Expectation):
    """Several groups of cells together.

    Parameters
    ----------
    parts
        The E-steps of the groups.
    """

    def __init__(self, parts: list[Expectation]) -> None:
        super().__init__(parts[0].cells)
        self._parts = parts

    def begin(self, model):
        return GroupedExpectation([part.begin(model) for part in self._parts])

    def __call__(self, model: GaussianMixture, *, exact: bool = True) -> Moments:
        return Moments.sum(part(model, exact=exact) for part in self._parts)
