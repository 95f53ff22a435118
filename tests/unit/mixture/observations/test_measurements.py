"""Measured cells: what is there of each, and which are treated alike."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from measured import GAPS, NOISES, background_log_density, make_gaps, make_noise, noise_covariance

from cohortgmm.errors import DataError
from cohortgmm.mixture.numerics.tuning import tuned
from cohortgmm.mixture.observations import measurements
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Group, Measurements
from cohortgmm.mixture.observations.noise import Noise


@pytest.fixture
def small_groups(tune):
    """Sixty cells are enough for groups of several kinds of noise and gaps."""
    tune(smallest_group=6)
    tune(cells_per_noise=20)


def observed_of(x, noise):
    """(n, D) which features every cell has."""
    n, d = x.shape
    own = np.stack([np.diag(noise_covariance(noise, i, n, d)) for i in range(n)])
    return ~np.isnan(x) & np.isfinite(own)


def rows_of(group, n):
    return np.arange(n)[group.rows]


def assert_every_cell_is_once_among_the_groups(cells, x, noise):
    """With its features, its noise and its values, and never without a feature."""
    n, d = x.shape
    observed = observed_of(x, noise)
    rows = np.concatenate([rows_of(group, n) for group in cells.groups] or [np.empty(0, dtype=int)])
    assert sorted(rows.tolist()) == np.flatnonzero(observed.any(axis=1)).tolist()
    for group in cells.groups:
        own = rows_of(group, n)
        assert len(group.cells) == len(own)
        features = np.arange(d) if group.features is None else group.features
        there = np.isin(np.arange(d), features) if group.observed is None else group.observed
        assert np.array_equal(np.broadcast_to(there, (len(own), d)), observed[own])
        filled = np.where(observed[own], x[own], 0.0)
        assert np.array_equal(group.cells.rows(slice(None)), filled[:, features])
        if noise is None:
            assert group.noise is None
            continue
        matrices = np.broadcast_to(group.noise.covariances(), (len(own), len(features), len(features)))
        for i, matrix in zip(own, matrices, strict=True):
            truth = noise_covariance(noise, i, n, d)[np.ix_(features, features)]
            both = np.outer(observed[i, features], observed[i, features])
            assert np.array_equal(matrix[both], truth[both])


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.usefixtures("small_groups")
def test_every_cell_is_in_one_group_with_what_is_known_of_it(noise, gaps):
    rng = np.random.default_rng([NOISES.index(noise), GAPS.index(gaps)])
    x = make_gaps(gaps, rng.normal(size=(60, 3)), rng)
    values = make_noise(noise, 60, 3, rng)
    cells = Measurements(x, values)
    assert_every_cell_is_once_among_the_groups(cells, x, values)
    observed = observed_of(x, values)
    assert len(cells) == np.count_nonzero(observed.any(axis=1))
    assert cells.n_empty == 60 - len(cells)
    assert cells.is_complete == observed.all()
    assert cells.is_plain == (observed.all() and values is None)
    assert cells.n_features == 3


@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 10),
    share=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    kind=st.sampled_from(NOISES),
    smallest=st.integers(1, 10),
    cells_per_noise=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_gaps_and_any_noise_are_sorted_into_groups(n, d, share, kind, smallest, cells_per_noise, seed):
    assume(n != d)  # a square array would be one covariance
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(n, d)), make_noise(kind, n, d, rng)
    x[rng.random((n, d)) < share] = np.nan
    with tuned(smallest_group=smallest, cells_per_noise=cells_per_noise):
        cells = Measurements(x, noise)
    assert_every_cell_is_once_among_the_groups(cells, x, noise)
    # What is left over goes together.
    assert sum(not group.is_uniform for group in cells.groups) <= 1
    assert sum(len(group.cells) < smallest for group in cells.groups) <= 1
    if observed_of(x, noise).all() and (noise is None or noise.shape in ((d,), (d, d))):
        assert [group.is_uniform for group in cells.groups] == [True]


def test_plain_cells_are_one_group_and_not_copied():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    cells = Measurements(x)
    (group,) = cells.groups
    assert group.cells is cells.whole
    assert group.cells.x is x
    assert (group.features, group.noise, group.observed, group.is_uniform) == (None, None, None, True)
    assert (cells.is_plain, cells.is_complete, cells.n_empty, len(cells)) == (True, True, 0, 50)


@pytest.mark.parametrize("noise", [np.ones(3), np.eye(3), np.random.default_rng(0).random((50, 3))])
def test_noise_alone_leaves_the_cells_where_they_are(noise):
    x = np.random.default_rng(0).normal(size=(50, 3))
    cells = Measurements(x, noise)
    assert [group.cells for group in cells.groups] == [cells.whole]
    assert cells.groups[0].is_uniform == (noise.shape in ((3,), (3, 3)))
    assert (cells.is_plain, cells.is_complete) == (False, True)


def test_patterns_of_enough_cells_are_groups_of_their_own_and_the_others_are_together():
    x = np.random.default_rng(0).normal(size=(200, 3))
    x[:100, 0] = np.nan  # 100 cells
    x[100:132, 1:] = np.nan  # 32, just enough
    x[132:163, 2] = np.nan  # 31, too few
    x[163:165] = np.nan
    cells = Measurements(x)
    found = [
        (len(group.cells), None if group.features is None else group.features.tolist(), group.is_uniform)
        for group in cells.groups
    ]
    assert sorted(found, key=str) == sorted(
        [(100, [1, 2], True), (32, [0], True), (35, None, True), (31, None, False)], key=str
    )
    assert (cells.n_empty, len(cells)) == (2, 198)


@pytest.mark.parametrize(("n", "expected"), [(4 * 64 - 1, False), (4 * 64, True)])
@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_kinds_of_noise_are_told_apart_where_there_are_64_cells_for_each(shape, n, expected):
    kinds = np.stack([(i + 1) * (np.ones(3) if shape == (3,) else np.eye(3)) for i in range(4)])
    which = np.random.default_rng(0).integers(4, size=n)
    which[:64] = np.arange(64) % 4
    cells = Measurements(np.zeros((n, 3)), kinds[which])
    assert (len(cells.groups) == 4) == expected
    assert all(group.is_uniform for group in cells.groups) == expected


def test_two_kinds_of_noise_may_come_in_any_order_and_one_of_them_late():
    """Kinds are first looked for among some cells only."""
    noise = np.ones((1000, 2))
    noise[990:] = np.arange(10)[:, None] + 2.0
    assert len(Measurements(np.zeros((1000, 2)), noise).groups) == 2  # ten kinds are too small, and go together
    noise[990:] = np.arange(20).reshape(10, 2) + 2.0
    noise[900:990] = np.arange(180).reshape(90, 2) + 50.0
    assert [group.is_uniform for group in Measurements(np.zeros((1000, 2)), noise).groups] == [False]


def test_kinds_are_numbered_in_no_more_than_one_for_64_cells():
    kinds_of = measurements._kinds_of
    assert kinds_of(np.ones((10, 2))).tolist() == [0] * 10
    assert kinds_of(np.arange(20.0).reshape(10, 2)) is None
    values = np.repeat(np.arange(3.0), 64)[:, None, None] * np.eye(2) + np.eye(2)
    kinds = kinds_of(values)
    assert kinds.max() == 2
    assert all(len(set(kinds[64 * i : 64 * (i + 1)])) == 1 for i in range(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_variances_are_those_of_what_is_there(tune, dtype):
    tune(tile_values=1)
    rng = np.random.default_rng(0)
    x = (5 + rng.normal(size=(500, 4))).astype(dtype)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[:64, 1] = np.nan  # nothing in the first tile
    x[:, 3] = np.nan
    variances = Measurements(x).variances
    np.testing.assert_allclose(variances[:3], np.nanvar(x[:, :3].astype(float), axis=0), rtol=1e-12)
    assert np.array_equal(Measurements(x).n_measured, np.count_nonzero(~np.isnan(x), axis=0))


@pytest.mark.parametrize("first_there", [0, 64, 200])
def test_the_variances_of_values_far_from_zero_keep_their_digits(tune, first_there):
    tune(tile_values=1)
    x = 1e6 + np.random.default_rng(0).normal(size=(500, 2))
    x[:first_there, 1] = np.nan
    # Rounding to 1e-10 leaves nine digits of a deviation.
    np.testing.assert_allclose(Measurements(x).variances, np.nanvar(x - 1e6, axis=0), rtol=1e-9)


def test_the_variances_are_not_those_of_values_that_an_infinite_variance_calls_missing():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(300, 2)), rng.uniform(0.1, 0.2, size=(300, 2))
    missing = rng.random((300, 2)) < 0.2
    noise[missing] = np.inf
    x[missing] = -999.0
    truth = np.nanvar(np.where(missing, np.nan, x), axis=0)
    np.testing.assert_allclose(Measurements(x, noise).variances, truth, rtol=1e-10)


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_feature_whose_variance_is_always_infinite_is_never_there(is_shared):
    noise = np.array([0.1, np.inf])
    cells = Measurements(np.zeros((100, 2)), noise if is_shared else np.tile(noise, (100, 1)))
    assert cells.n_measured.tolist() == [100, 0]


def test_a_start_is_made_from_complete_cells_as_they_are():
    cells = Measurements(np.zeros((50, 2)), np.ones((50, 2)))
    assert cells.for_start(np.random.default_rng(0)) is cells.whole


@pytest.mark.parametrize("noise", [None, np.array([0.1, 0.2, 0.3])])
def test_a_start_is_made_from_cells_completed_by_values_of_other_cells(noise):
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0, 0.0], [20.0, -20.0, 20.0], [-20.0, 20.0, 40.0]])
    labels = rng.integers(3, size=400)
    truth = centres[labels] + rng.normal(size=(400, 3))
    x = truth.copy()
    x[rng.random((400, 3)) < 0.2] = np.nan
    empty = np.isnan(x).all(axis=1)
    started = Measurements(x, noise).for_start(np.random.default_rng(1)).x
    there, kept = ~np.isnan(x), np.flatnonzero(~empty)
    assert started.shape == (len(kept), 3)
    assert np.array_equal(started[there[kept]], x[kept][there[kept]])
    for feature in range(3):
        assert np.isin(started[:, feature], x[there[:, feature], feature]).all()
    # Cells that have a feature at all are nearest to one of their own cluster: these are ten times their width apart.
    assert (np.abs(started - truth[kept]) < 10).all()


def test_a_start_is_the_same_for_the_same_seed_and_leaves_the_cells_as_they_are():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    x[rng.random((300, 3)) < 0.3] = np.nan
    cells = Measurements(x)
    kept = x.copy()
    first, again, other = (cells.for_start(np.random.default_rng(seed)).x for seed in (3, 3, 4))
    assert np.array_equal(x, kept, equal_nan=True)
    assert np.array_equal(first, again)
    assert np.isfinite(first).all()
    assert np.isfinite(other).all()


def test_a_start_from_many_incomplete_cells_is_made_from_a_sample(tune):
    tune(start_cells=100)
    x = np.random.default_rng(0).normal(size=(1000, 2))
    x[::2, 0] = np.nan
    started = Measurements(x).for_start(np.random.default_rng(0))
    assert len(started) == 100
    assert np.isin(started.x[:, 1], x[:, 1]).all()
    assert len(set(started.x[:, 1])) == 100


def test_cells_without_a_common_feature_are_completed_too():
    x = np.random.default_rng(0).normal(size=(80, 2))
    x[:40, 0] = x[40:, 1] = np.nan
    started = Measurements(x).for_start(np.random.default_rng(0)).x
    assert np.isin(started[:40, 0], x[40:, 0]).all()
    assert np.isin(started[40:, 1], x[:40, 1]).all()


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
def test_a_feature_of_one_value_does_not_disturb_the_completion(value):
    x = np.repeat([[0.0, 0.0, value], [9.0, 9.0, value]], 100, axis=0) + np.random.default_rng(0).normal(
        size=(200, 3)
    ) * [1.0, 1.0, 0.0]
    truth = x.copy()
    x[::5, 0] = np.nan
    x[::7, 2] = np.nan
    started = Measurements(x).for_start(np.random.default_rng(0)).x
    assert (started[:, 2] == value).all()
    assert (np.abs(started[:, 0] - truth[:, 0]) < 7).all()


def test_a_value_is_that_of_the_cell_with_the_nearest_common_features():
    """Mean squared distance in units of the features' variances; of one over the number of features, its variance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 4)) * [1.0, 1000.0, 0.01, 1.0] + [0.0, 5.0, 5.0, -3.0]
    x[rng.random((150, 4)) < 0.4] = np.nan
    x = x[~np.isnan(x).all(axis=1)]
    there, variances = ~np.isnan(x), np.nanvar(x, axis=0)
    started = Measurements(x).for_start(np.random.default_rng(0)).x
    for i, feature in np.argwhere(~there):
        nearest, least = None, np.inf
        for donor in np.flatnonzero(there[:, feature]):
            common = np.flatnonzero(there[i] & there[donor])
            if len(common):
                distance = ((x[i] - x[donor])[common] ** 2 / variances[common]).mean() + 1 / len(common)
                nearest, least = (donor, distance) if distance < least else (nearest, least)
        assert started[i, feature] == x[nearest, feature]


def test_a_start_does_not_look_at_values_that_an_infinite_variance_calls_missing():
    rng = np.random.default_rng(0)
    x = np.repeat([[0.0, 0.0], [9.0, 9.0]], 100, axis=0) + rng.normal(size=(200, 2))
    noise = np.full((200, 2), 0.1)
    missing = rng.random((200, 2)) < 0.2
    noise[missing] = np.inf
    by_infinity = Measurements(np.where(missing, -999.0, x), noise).for_start(np.random.default_rng(0)).x
    by_nan = Measurements(np.where(missing, np.nan, x), noise).for_start(np.random.default_rng(0)).x
    assert np.array_equal(by_infinity, by_nan)


def test_a_feature_that_few_cells_have_can_be_completed_though_the_sample_has_none_of_them(tune):
    tune(start_cells=50)
    x = np.random.default_rng(0).normal(size=(5000, 2))
    x[2:, 1] = np.nan
    started = Measurements(x).for_start(np.random.default_rng(0)).x
    assert np.isfinite(started).all()


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.usefixtures("small_groups")
def test_every_cell_has_its_density_under_the_background(noise, gaps):
    rng = np.random.default_rng([NOISES.index(noise), GAPS.index(gaps)])
    x = make_gaps(gaps, 2 * rng.normal(size=(60, 3)), rng)
    values = make_noise(noise, 60, 3, rng)
    background = Background([-1.0, -2.0, 0.0], [2.0, 1.0, 4.0])
    cells = Measurements(x, values, background=background)
    observed = observed_of(x, values)
    for group in cells.groups:
        for i, found in zip(rows_of(group, 60), group.cells.log_background, strict=True):
            truth = background_log_density(
                background, x[i], noise_covariance(values, i, 60, 3), np.flatnonzero(observed[i])
            )
            assert found == pytest.approx(truth, rel=1e-11)
    assert cells.touches_background


@pytest.mark.parametrize(("corner", "expected"), [(0.0, True), (50.0, False)])
def test_a_box_without_cells_touches_none(corner, expected):
    x = np.random.default_rng(0).normal(size=(100, 2))
    assert Measurements(x, background=Background([corner] * 2, [corner + 1] * 2)).touches_background is expected
    if not expected:  # noise may have brought the cells out of it
        assert Measurements(
            x, np.full(2, 400.0), background=Background([corner] * 2, [corner + 1] * 2)
        ).touches_background


def test_without_a_background_no_density_is_kept():
    assert all(group.cells.log_background is None for group in Measurements(np.zeros((50, 2)), np.ones(2)).groups)


def test_values_that_are_neither_numbers_nor_missing_are_refused():
    x = np.zeros((50, 2))
    x[7, 1], x[9, 0] = np.inf, np.nan
    with pytest.raises(DataError, match="1 infinite values, the first in cell 7: remove or impute them"):
        Measurements(x)
    with pytest.raises(DataError, match=r"noise must have shape .* n = 50 and D = 2, got \(49, 2\)"):
        Measurements(np.zeros((50, 2)), np.ones((49, 2)))


@pytest.mark.parametrize("noise", [None, np.ones(2), np.eye(2), np.empty((0, 2)), np.empty((0, 2, 2))])
def test_no_cells_have_no_length(noise):
    cells = Measurements(np.empty((0, 2)), noise)
    assert (len(cells), cells.n_empty) == (0, 0)


def test_cells_without_any_feature_are_in_no_group():
    cells = Measurements(np.full((40, 2), np.nan))
    assert (cells.groups, cells.n_empty, len(cells), cells.is_complete, cells.is_plain) == ([], 40, 0, False, False)


@pytest.mark.usefixtures("small_groups")
def test_all_groups_share_the_threads():
    rng = np.random.default_rng(0)
    x = make_gaps("both", rng.normal(size=(60, 3)), rng)
    for noise in (None, make_noise("few variances", 60, 3, rng)):
        cells = Measurements(x, noise, 3)
        assert len(cells.groups) > 2
        assert {group.cells.n_threads for group in cells.groups} == {3}


def test_a_group_is_uniform_unless_its_cells_differ():
    x = CellData(np.zeros((2, 3)))
    assert Group(x).is_uniform
    assert Group(x, noise=Noise(np.ones(3), True)).is_uniform
    assert not Group(x, noise=Noise(np.ones((2, 3)), False)).is_uniform
    assert not Group(x, observed=np.ones((2, 3), dtype=bool)).is_uniform
