"""E-steps of measured cells whose features or noise differ from group to group."""

from collections.abc import Sequence

import numpy as np

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.observations.measurements import Group


class ConvolvedExpectation(Expectation):
    """Cells that have the same features and the same noise.

    Cells of a Gaussian mixture that are measured in some features with Gaussian noise follow another Gaussian mixture:
    its marginal, convolved with the noise. Any E-step gives the moments of the measured cells under this convolved
    mixture. The moments of the cells with all features and without noise follow from them (the deconvolution formula
    for shared noise).

    Parameters
    ----------
    group
        The cells.
    of_measured
        E-step of the measured cells under the convolved mixture.
    """

    def __init__(self, group: Group, of_measured: Expectation) -> None:
        super().__init__(group.cells)
        self._group, self.inner = group, (of_measured,)

    def begin(self, model: Parameters) -> Expectation:
        return ConvolvedExpectation(self._group, self.inner[0].begin(model))

    def __call__(self, model: Parameters) -> Moments:
        features, noise = self._group.features, self._group.noise
        convolved = model.marginal(features, noise)
        moments = self.inner[0](convolved)
        measured = np.arange(model.n_features) if features is None else features
        covariances = model.full_covariances[:, :, measured]
        whitener = convolved.factors.whitener
        if convolved.covariance_type == "diag":
            gain = covariances * (whitener**2)[:, None, :]
            second = moments.second[:, :, None] * np.eye(len(measured))
        else:
            gain = covariances @ whitener @ whitener.transpose(0, 2, 1)
            second = moments.second
        if noise is None:  # set the known values exactly, even if the covariances are ill-conditioned
            gain[:, measured] = np.eye(len(measured))
        rest = model.full_covariances - gain @ covariances.transpose(0, 2, 1)
        if noise is None:
            rest[:, measured] = rest[:, :, measured] = 0.0
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
    inner
        The E-steps of the groups.
    """

    def __init__(self, inner: Sequence[Expectation]) -> None:
        super().__init__(inner[0].cells)
        self.inner = inner

    def begin(self, model: Parameters) -> Expectation:
        return GroupedExpectation([part.begin(model) for part in self.inner])

    def __call__(self, model: Parameters) -> Moments:
        return Moments.sum(part(model) for part in self.inner)
