"""Which pairs of cell and component are evaluated: the best of a cell, what may come near to it, what is in reach."""

import numpy as np
import pytest
from measured import make_gaps, make_noise, posterior_by_definition, with_background

from cohortgmm.mixture.estep.choose import choose_estep, squared_cutoff
from cohortgmm.mixture.estep.grouped import ConvolvedExpectation, GroupedExpectation
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.estep.noisy import NoisyExpectation
from cohortgmm.mixture.estep.pruned import PrunedExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.posterior import responsibilities
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]
KINDS = ["none", "shared variances", "shared covariance", "few variances", "own variances", "own covariances"]

# Condition numbers below 1e3 and some hundred cells leave eleven digits of the moments.
RTOL = 1e-10


class TablePairs:
    """Pairs whose densities are in a table."""

    def __init__(self, joint, distance):
        self._joint, self._distance = joint, distance
        self.joint, self.distance = np.full(joint.shape, -np.inf), np.full(joint.shape, np.inf)
        self.evaluated = np.zeros(joint.shape, dtype=int)
        self.dismissed = np.zeros(joint.shape, dtype=bool)
        self.needed = np.full(joint.shape, np.nan)

    def narrow(self, k, rows, needed):
        self.needed[k, rows] = needed
        return rows[~self.dismissed[k, rows]]

    def evaluate(self, k, rows):
        self.joint[k, rows], self.distance[k, rows] = self._joint[k, rows], self._distance[k, rows]
        self.evaluated[k, rows] += 1

    def moments(self, background):
        resp, log_likelihood = responsibilities(self.joint.copy(), background)
        moments = Moments.zeros(len(resp), 1, "diag")
        moments.nk[:], moments.log_likelihood, moments.n = resp.sum(axis=1), log_likelihood, resp.shape[1]
        return moments, resp


class TableExpectation(PrunedExpectation):
    """Cells whose densities, and the bounds of these, are in tables that may change."""

    def set(self, joint, distance=None, bound=None, least=None):
        self.joint = np.asarray(joint, dtype=float)
        self.distance = np.zeros_like(self.joint) if distance is None else np.asarray(distance, dtype=float)
        self.bound = self.joint if bound is None else np.asarray(bound, dtype=float)
        self.least = self.distance if least is None else np.asarray(least, dtype=float)
        self.opened = []
        return self

    def _tile_bounds(self, model):
        def open_tile(tile):
            self.opened.append(TablePairs(self.joint[:, tile], self.distance[:, tile]))
            return self.opened[-1], self.bound[:, tile].copy(), self.least[:, tile].copy()

        return open_tile


def table_step(n, k, cutoff=None, tiles=None):
    step = TableExpectation(CellData(np.zeros((n, 1))), [slice(0, n)] if tiles is None else tiles, cutoff)
    return step, GaussianMixture(np.full(k, 1 / k), np.zeros((k, 1)), np.ones((k, 1)))


def test_a_component_is_evaluated_where_its_bound_comes_within_a_rounding_error_of_the_best():
    step, model = table_step(1, 5)
    # exp(−37) is less than one rounding of one; exp(−36.9) is not always.
    step.set([[0.0], [-50.0], [-50.0], [-50.0], [-36.0]], bound=[[0.5], [-36.9], [-37.1], [-200.0], [-36.0]])
    step(model)
    assert step.opened[0].evaluated[:, 0].tolist() == [1, 1, 0, 0, 1]


def test_bounds_of_large_densities_are_given_room_for_their_rounding():
    step, model = table_step(1, 3)
    # A billionth of 1e9 nats is one nat.
    step.set([[-1e9], [-1e9 - 37.5], [-1e9 - 39.0]])
    step(model)
    assert step.opened[0].evaluated[:, 0].tolist() == [1, 1, 0]


def test_the_component_of_the_highest_bound_is_tried_first_and_the_best_one_the_next_time():
    step, model = table_step(2, 3)
    joint = [[-5.0, -90.0], [-100.0, -3.0], [-80.0, -70.0]]
    step.set(joint, bound=[[1.0, -60.0], [2.0, 0.0], [-75.0, -65.0]])
    step(model)
    # Of the first cell component 1 was tried in vain, and then everything that could come near to it.
    assert step.opened[0].evaluated.tolist() == [[1, 0], [1, 1], [1, 0]]
    step(model)
    assert step.opened[1].evaluated.tolist() == [[1, 0], [1, 1], [0, 0]]


def test_a_closer_look_says_what_need_not_be_evaluated():
    step, model = table_step(2, 3)
    step.set([[-3.0, 0.0], [-10.0, -5.0], [-60.0, -50.0]], bound=[[-3.0, 0.0], [-10.0, -5.0], [-20.0, -50.0]])
    reach, opened = step._tile_bounds(model), []

    def open_tile(tile):
        pairs, *bounds = reach(tile)
        pairs.dismissed[:, 0] = [False, False, True]
        opened.append(pairs)
        return pairs, *bounds

    step._tile_bounds = lambda model: open_tile
    moments = step(model)
    assert opened[0].evaluated.tolist() == [[1, 1], [1, 1], [0, 0]]
    # What is needed is a rounding error of the best density; it is asked for the pairs that the bound lets through.
    expected = [[np.nan, np.nan], [-40.0, -37.0], [-40.0, np.nan]]
    np.testing.assert_allclose(opened[0].needed, expected, rtol=1e-8)
    assert moments.nk[2] == 0


def test_no_pair_is_evaluated_twice():
    step, model = table_step(40, 5)
    rng = np.random.default_rng(0)
    for _ in range(3):
        joint = rng.normal(scale=30, size=(5, 40))
        step.set(joint, bound=joint + rng.exponential(10, size=joint.shape))(model)
        assert step.opened[0].evaluated.max() == 1
        truth = responsibilities(joint.copy())
        assert step(model).log_likelihood == pytest.approx(truth[1], rel=1e-13)


def test_every_tile_remembers_the_best_of_its_own_cells():
    tiles = [slice(0, 2), slice(2, 5)]
    step, model = table_step(5, 3, tiles=tiles)
    best = [0, 1, 2, 2, 0]
    joint = np.full((3, 5), -100.0)
    joint[best, np.arange(5)] = 0.0
    step.set(joint, bound=joint + 80)(model)
    step.opened.clear()
    seen = list(step.by_tile(model, lambda tile, resp: (tile, resp.argmax(axis=0).tolist())))
    assert [what for _, what in seen] == [(tiles[0], best[:2]), (tiles[1], best[2:])]
    assert [moments.n for moments, _ in seen] == [2, 3]
    assert all((pairs.evaluated.sum(axis=0) == 1 + 2 * (80 - 100 > -37)).all() for pairs in step.opened)


def test_components_out_of_reach_have_no_share():
    step, model = table_step(1, 3, cutoff=9.0)
    step.set([[0.0], [-1.0], [-2.0]], distance=[[8.9], [9.1], [9.0]])
    moments = step(model)
    share = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(moments.nk, [share, 0.0, 1 - share], rtol=1e-13)
    assert moments.log_likelihood == pytest.approx(np.log(1 + np.exp(-2)), rel=1e-13)


def test_components_that_are_surely_out_of_reach_are_not_evaluated():
    step, model = table_step(1, 3, cutoff=9.0)
    step.set([[0.0], [-1.0], [-2.0]], distance=[[1.0], [100.0], [100.0]], least=[[0.5], [9.5], [8.0]])
    step(model)
    assert step.opened[0].evaluated[:, 0].tolist() == [1, 0, 1]


def test_the_best_component_has_its_share_though_it_is_out_of_reach():
    step, model = table_step(2, 3, cutoff=9.0)
    # Nothing is in reach of the first cell; in reach of the second is one that is not the best.
    step.set([[-50.0, -50.0], [-40.0, -45.0], [-60.0, -45.5]], distance=[[80.0, 80.0], [70.0, 12.0], [90.0, 8.0]])
    moments = step(model)
    share = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(moments.nk, [0.0, 1 + share, 1 - share], rtol=1e-13)


@pytest.mark.parametrize("distance", [100.0, 8.0])
def test_the_best_component_is_not_the_one_that_was_the_best_before(distance):
    """Out of reach or not, what is kept of a cell follows from the mixture at hand."""
    step, model = table_step(1, 2, cutoff=9.0)
    step.set([[-10.0], [-60.0]], distance=[[1.0], [100.0]])(model)
    moments = step.set([[-60.0], [-10.0]], distance=[[100.0], [distance]])(model)
    np.testing.assert_allclose(moments.nk, [0.0, 1.0], atol=1e-15)


def test_what_is_kept_of_a_cell_out_of_reach_does_not_depend_on_loose_bounds():
    step, model = table_step(1, 2, cutoff=9.0)
    step.set([[-60.0], [-40.0]], distance=[[100.0], [60.0]], bound=[[-10.0], [-30.0]], least=[[20.0], [20.0]])
    np.testing.assert_allclose(step(model).nk, [0.0, 1.0], atol=1e-8)


def measured_cells(make_mixture, kind, gaps, covariance_type, *, n=80, shape=(4, 3), spread=2.0):
    rng = np.random.default_rng([KINDS.index(kind), len(gaps)])
    model = make_mixture(*shape, covariance_type, spread=spread)
    x = model.sample(n, rng)[0] + rng.normal(size=(n, shape[1]))
    x[:3] = 300.0 * rng.normal(size=(3, shape[1]))  # out of reach of all
    return model, make_gaps(gaps, x, rng), make_noise(kind, n, shape[1], rng)


@pytest.fixture
def _small_groups(tune):
    tune(smallest_group=6)
    tune(cells_per_noise=20)


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", ["complete", "both"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_small_groups", "both_ways")
def test_moments_with_a_cutoff_are_those_of_the_definition(
    make_mixture, assert_same_moments, kind, gaps, covariance_type, has_background
):
    """The squared reach is that of all features, also for a cell that lacks some of them."""
    model, x, noise = measured_cells(make_mixture, kind, gaps, covariance_type)
    if has_background:
        model = with_background(model)
    truth = posterior_by_definition(model, x, noise)
    cells = Measurements(x, noise, 1, model.background)
    exact = truth.moments(model).log_likelihood
    found = []
    for cutoff in (0.7, 2.0, 3.5):
        moments = choose_estep(cells, 4, covariance_type, cutoff)(model)
        assert_same_moments(moments, truth.within(squared_cutoff(cutoff, 3)).moments(model), rtol=RTOL)
        found.append(moments.log_likelihood)
    assert found[0] < found[1] < found[2] < exact
    wide = choose_estep(cells, 4, covariance_type, 40.0)(model)
    assert_same_moments(wide, truth.moments(model), rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", ["complete", "both"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_small_groups", "both_ways")
def test_a_second_e_step_with_a_cutoff_does_not_depend_on_the_first(
    make_mixture, assert_same_moments, kind, gaps, covariance_type
):
    model, x, noise = measured_cells(make_mixture, kind, gaps, covariance_type)
    step = choose_estep(Measurements(x, noise), 4, covariance_type, 2.0)
    other = GaussianMixture(model.weights[::-1], model.means[::-1], model.covariances[::-1])
    for mixture in (model, other, model):
        truth = posterior_by_definition(mixture, x, noise).within(squared_cutoff(2.0, 3)).moments(mixture)
        assert_same_moments(step(mixture), truth, rtol=RTOL)


@pytest.mark.parametrize("has_background", [False, True])
def test_screening_and_cutoff_leave_out_the_same_components_in_many_features(
    make_mixture, assert_same_moments, has_background
):
    model = make_mixture(5, 25, spread=0.7)
    if has_background:
        model = with_background(model)
    x = model.sample(120, 0)[0]
    step = choose_estep(Measurements(x, background=model.background), 5, "full", 2.5)
    assert type(step) is ScreenedExpectation
    assert step.begin(model) is step
    truth = posterior_by_definition(model, x).within(squared_cutoff(2.5, 25)).moments(model)
    assert_same_moments(step(model), truth, rtol=RTOL)


def test_without_a_cutoff_every_component_is_in_reach(make_mixture, assert_same_moments):
    model, x, noise = measured_cells(make_mixture, "own variances", "both", "full")
    cells = Measurements(x, noise)
    wide, none = (choose_estep(cells, 4, "full", cutoff)(model) for cutoff in (1e9, None))
    assert_same_moments(wide, none, rtol=1e-13)


@pytest.mark.parametrize(
    ("kind", "gaps", "covariance_type", "expected"),
    [
        ("none", "complete", "full", ScreenedExpectation),
        ("none", "complete", "diag", NoisyExpectation),
        ("own variances", "complete", "full", NoisyExpectation),
        ("shared covariance", "complete", "full", ScreenedExpectation),
        ("shared covariance", "complete", "diag", ScreenedExpectation),
        ("shared variances", "complete", "diag", NoisyExpectation),
    ],
)
def test_a_cutoff_needs_an_e_step_that_looks_at_pairs(make_mixture, kind, gaps, covariance_type, expected):
    _, x, noise = measured_cells(make_mixture, kind, gaps, covariance_type)
    step = choose_estep(Measurements(x, noise), 4, covariance_type, 3.0)
    assert not isinstance(step, GroupedExpectation)
    assert type(step.inner[0] if isinstance(step, ConvolvedExpectation) else step) is expected


@pytest.mark.parametrize("kind", KINDS)
def test_responsibilities_out_of_reach_are_zero(tune, make_mixture, kind):
    tune(few_products=0)
    model, x, noise = measured_cells(make_mixture, kind, "complete", "full")
    step = choose_estep(Measurements(x, noise), 4, "full", 1.5)
    parts = step.inner if isinstance(step, GroupedExpectation) else [step]
    if kind in ("none", "own variances", "own covariances"):
        (part,) = parts
        ((_, resp),) = part.by_tile(model, lambda tile, resp: resp.copy())
        truth = posterior_by_definition(model, x, noise).within(squared_cutoff(1.5, 3))
        beyond = ~np.isfinite(truth.joint.T)
        assert 50 < beyond.sum() < 320
        assert (resp[beyond] == 0).all()
        assert (resp[~beyond] > 0).all()
        np.testing.assert_allclose(resp.sum(axis=0), 1.0, rtol=1e-14)
