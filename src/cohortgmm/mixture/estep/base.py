"""What every E-step of EM is and does."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.observations.cells import CellData


class Expectation(ABC):
    """An E-step: called with a mixture, it returns the expected moments of the cells about the mixture's means.

    Each is made for some kind of cells; those made for the same cells return the same moments, up to rounding, and differ
    in speed. Only a cutoff, and responsibilities kept from earlier iterations, change the moments on purpose.

    Parameters
    ----------
    cells
        The cells.

    Attributes
    ----------
    inner
        The E-steps that this one is made of.
    """

    inner: Sequence["Expectation"] = ()

    def __init__(self, cells: CellData) -> None:
        self.cells = cells

    @abstractmethod
    def __call__(self, model: Parameters) -> Moments:
        """Moments of all cells.

        Until :meth:`refresh` is called, an E-step may keep some responsibilities of the previous call. The log-likelihood
        is then a lower bound, which never falls from one iteration of EM to the next; see :attr:`Moments.is_bound`.
        """

    def begin(self, model: Parameters) -> "Expectation":
        """Prepare an E-step for a run of EM that starts from this mixture, and that may remember what the run computes."""
        return self

    def refresh(self) -> None:
        """Make the next call compute all responsibilities, so that its log-likelihood is exact.

        EM asks for it before it compares log-likelihoods, decides on convergence, or ends."""
        for part in self.inner:
            part.refresh()

    def covers(self, model: Parameters) -> bool:
        """Whether the moments of this mixture are accurate; otherwise EM begins anew from there."""
        return True

    def is_settled(self, model: Parameters) -> bool:
        """Whether EM may end with this mixture; otherwise it begins anew from there."""
        return True

    def coarse(self) -> Self:
        """A cheaper and less accurate version of this E-step, to compare the starts of EM with."""
        return self
