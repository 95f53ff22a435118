"""Runs of EM and cells for the tests of its loop and of its starts."""

import pytest
from cut_cells import above

from cohortgmm.mixture.em.loop import EM
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.truncated import TruncatedExpectation, Truncation
from cohortgmm.mixture.observations.completeness import Completeness
from cohortgmm.mixture.observations.measurements import Measurements

NO_FLOOR = 1e-9


@pytest.fixture
def em_of(floor_only):
    """Factory of runs of EM on cells by the reference E-step, or another one."""

    def make(x, n_components=2, *, expectation=None, max_iter=50, tol=1e-6, accelerated=False, floor=NO_FLOOR):
        expectation = DenseExpectation(Measurements(x).whole) if expectation is None else expectation
        return EM(expectation, floor_only(n_components, floor), max_iter, tol, accelerated)

    return make


@pytest.fixture
def truncated(make_cells):
    """Cells cut off in the first feature, and their E-step."""
    x = make_cells(300, 2, n_components=2, spread=1.5)
    x = x[x[:, 0] > 0]
    selection = Truncation(Completeness(above(0.0)), None, 3)
    return x, TruncatedExpectation(choose_estep(Measurements(x), 2, "full"), selection, 1 << 12)
