"""The choice of the E-step: the fastest that is made for the cells.

==========================================  ==============================================
cells                                       E-step
==========================================  ==============================================
plain, few features or diagonal             :class:`~.quadratic.QuadraticExpectation`
plain, many features, little work           :class:`~.dense.DenseExpectation`
plain, many features, much work             :class:`~.screened.ScreenedExpectation`, which runs incrementally
same features and same noise                :class:`~.grouped.ConvolvedExpectation` around one of these
features or noise of their own              :class:`~.noisy.NoisyExpectation`
several of these kinds                      :class:`~.grouped.GroupedExpectation`
==========================================  ==============================================

With a cutoff, plain cells are given to the screened E-step (full covariances) or to the noisy one (diagonal). With a
completeness function, :func:`cohortgmm.fit_mixture` puts a :class:`~.truncated.TruncatedExpectation` around the chosen one.
"""

import numpy as np

from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.grouped import ConvolvedExpectation, GroupedExpectation
from cohortgmm.mixture.estep.noisy import NoisyExpectation
from cohortgmm.mixture.estep.quadratic import QuadraticExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Group, Measurements


def choose_estep(
    cells: Measurements, n_components: int, covariance_type: str, cutoff: float | None = None
) -> Expectation:
    """Choose the fastest E-step for these cells and mixtures.

    Parameters
    ----------
    cells
        The cells.
    n_components, covariance_type
        Of the mixtures.
    cutoff
        See :func:`cohortgmm.fit_mixture`.
    """
    limit = None if cutoff is None else squared_cutoff(cutoff, cells.n_features)
    parts = [_of_group(group, n_components, covariance_type, limit) for group in cells.groups]
    return parts[0] if len(parts) == 1 else GroupedExpectation(parts)


def _of_group(group: Group, n_components: int, covariance_type: str, limit: float | None) -> Expectation:
    if not group.is_uniform:
        return NoisyExpectation(group, n_components, covariance_type, limit)
    kind = "diag" if group.is_diagonal(covariance_type) else "full"
    of_measured = _of_plain_cells(group.cells, n_components, kind, limit)
    return of_measured if group.features is None and group.noise is None else ConvolvedExpectation(group, of_measured)


def _of_plain_cells(cells: CellData, n_components: int, covariance_type: str, limit: float | None) -> Expectation:
    n, d = len(cells), cells.n_features
    if limit is not None:
        if covariance_type == "diag":
            return NoisyExpectation(Group(cells), n_components, "diag", limit)
        return ScreenedExpectation(cells, n_components, limit)
    if covariance_type == "diag" or d <= tuning().few_features:
        return QuadraticExpectation(cells, covariance_type)
    if n_components == 1 or n * d * d * n_components <= tuning().few_products:
        return DenseExpectation(cells)
    return ScreenedExpectation(cells, n_components)


def squared_cutoff(cutoff: float, n_features: int) -> float:
    """Squared Mahalanobis distance that as many of a component's cells exceed as exceed ``cutoff`` sigma in 1-D."""
    from scipy.special import (  # only needed with a cutoff; scipy takes longer to load than a small fit
        erfc,
        gammainccinv,
    )

    return float(2.0 * gammainccinv(0.5 * n_features, erfc(cutoff / np.sqrt(2.0))))
