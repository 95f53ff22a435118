"""Incomplete data at its limits: missing features, huge noise, boxes, forms of arrays, starts, extreme numbers."""

import numpy as np
import pytest
from combinations import (
    COVARIANCE_TYPES,
    EPS,
    SOME,
    Problem,
    assert_right,
    assert_right_or_one_error,
    blobs,
    hide,
    log_density,
    seen_at,
    seen_share,
    start_for,
)
from scipy import optimize

from cohortgmm.errors import CohortgmmError, ConfigError, DataError, SingularCovarianceError
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

#: Fewer of them, where each costs several fits.
FEW = ["plain", "own noise", "missing", "background", "truncated", "all at once"]


@pytest.fixture(autouse=True)
def few_nodes(tune):
    """The unseen part to within a hundredth."""
    tune(most_nodes=1 << 12)


def assert_same_bits(fit, other):
    for name, array in fit.model.arrays().items():
        assert np.array_equal(array, other.model.arrays()[name]), name
    assert np.array_equal(fit.history, other.history)
    assert np.array_equal(fit.floored, other.floored)
    assert fit.n_unobserved == other.n_unobserved
    assert fit.n_iter == other.n_iter


# ---- noise and missing features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [np.zeros(2), np.zeros((2, 2)), np.zeros((120, 2)), np.zeros((120, 2, 2))])
@pytest.mark.parametrize("name", ["plain", "missing", "all at once"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_noise_of_zero_is_none(zeros, name, covariance_type):
    _, *others = SOME[name]
    without = hide(blobs(), ("no noise", *others))
    noisy = Problem(without.x, without.options | {"noise": zeros}, without.cut)
    start = start_for(without, covariance_type)
    options = {"covariance_type": covariance_type, "initial": start, "tol": 1e-9, "max_iter": 500}
    fit, expected = noisy.fit(**options), without.fit(**options)
    assert_right(fit, noisy)
    # The plain fit is not accelerated, and nodes with noise have more dimensions.
    error = 1e-2 if without.cut is not None else 1e-6
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood, abs=error)
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=20 * error if error > 1e-3 else 1e-3)


@pytest.mark.parametrize("form", ["variances", "covariances"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_huge_noise_on_one_feature_is_as_good_as_missing(form, background, covariance_type):
    x, rng = blobs(), np.random.default_rng(3)
    gone = rng.random(120) < 0.4
    noise = np.full(x.shape, 0.1)
    missing = Problem(np.where(gone[:, None] & [False, True], np.nan, x), {"noise": noise})
    noise = np.where(gone[:, None] & [False, True], 1e12, noise)
    noisy = Problem(x, {"noise": noise if form == "variances" else noise[:, :, None] * np.eye(2)})
    if background:
        for problem in (missing, noisy):
            # So wide in the second feature that what is seen of it through the noise is the same for all cells there.
            problem.options["background"] = Background([-4.0, -4.0], [9.0, 9.0], 0.1, adjust_amp=False)
    options = {"covariance_type": covariance_type, "initial": start_for(missing, covariance_type), "tol": 1e-9}
    fit, expected = (p.fit(max_iter=500, **options) for p in (noisy, missing))
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=2e-3)
    np.testing.assert_allclose(fit.model.covariances, expected.model.covariances, atol=5e-3)
    # Each value that is not there has the density of the noise, in which the mixture is lost.
    lost = gone.sum() * 0.5 * np.log(2 * np.pi * 1e12) / 120
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood - lost, abs=1e-6)


@pytest.mark.parametrize("filler", [0.0, -3.0, 1e30])
@pytest.mark.parametrize("handling", ["guarded", "robust"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_an_infinite_variance_is_a_missing_feature_whatever_stands_there(filler, handling, covariance_type):
    """In the start, the floor and the fit."""
    x, gone = blobs(), np.random.default_rng(3).random((120, 2)) < 0.2
    noise = np.random.default_rng(4).uniform(0.05, 0.2, size=x.shape)
    missing = Problem(np.where(gone, np.nan, x), {"noise": noise})
    endless = Problem(np.where(gone, filler, x), {"noise": np.where(gone, np.inf, noise)})
    options = {"covariance_type": covariance_type, "singularity_handling": handling}
    fit, expected = (p.fit(**options) for p in (endless, missing))
    np.testing.assert_allclose(fit.history, expected.history, rtol=1e-9)
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=1e-6)
    assert fit.n_empty == expected.n_empty == gone.all(axis=1).sum()


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_cells_without_any_feature_are_counted_and_change_nothing(name, covariance_type):
    problem = hide(blobs(100), SOME[name])
    rest = np.setdiff1d(np.arange(100), [0, 50, 51, 99])
    hidden = Problem(problem.x.copy(), problem.options, problem.cut)
    hidden.x[[0, 50, 51, 99]] = np.nan
    options = {"covariance_type": covariance_type, "initial": start_for(problem, covariance_type), "max_iter": 20}
    if problem.noise is not None and "completeness" in problem.options:
        options["noise_at"] = np.full(2, 0.1)  # else drawn from the cells, by their position
    fit = hidden.fit(**options, tol=0)
    assert fit.n_empty == 4 + np.isnan(problem.x[rest]).all(axis=1).sum()
    expected = problem.of(rest).fit(**options, tol=0)
    if name == "plain":  # nothing hidden: no acceleration
        assert fit.log_likelihood >= expected.log_likelihood - 1e-9
        return
    np.testing.assert_allclose(fit.history, expected.history, rtol=1e-9)
    np.testing.assert_allclose(fit.model.means, expected.model.means, atol=1e-6)


@pytest.mark.parametrize("name", list(SOME))
def test_a_feature_that_is_missing_in_all_cells_is_an_error(name):
    problem = hide(blobs(d=3), SOME[name])
    problem.x[:, 1] = np.nan
    with pytest.raises(DataError, match="feature 1 is missing in all cells: leave it out"):
        problem.fit()


@pytest.mark.parametrize("noise", [np.array([0.1, np.inf]), np.tile([0.1, np.inf], (120, 1))])
def test_a_feature_of_infinite_noise_in_all_cells_is_that_error_too(noise):
    with pytest.raises(DataError, match="feature 1 is missing in all cells: leave it out"):
        Problem(blobs(), {"noise": noise}).fit()


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("noise", [None, np.array([0.1, np.inf]), np.tile([0.1, np.inf], (400, 1))])
def test_where_the_components_are_known_a_feature_may_be_missing_in_all_cells(covariance_type, noise):
    rng = np.random.default_rng(5)
    covariances = np.array([[[1.0, 0.4], [0.4, 2.0]], [[0.5, 0.0], [0.0, 1.0]]])
    covariances = covariances if covariance_type == "full" else np.diagonal(covariances, axis1=1, axis2=2)
    known = GaussianMixture([0.5, 0.5], [[0.0, 3.0], [4.0, -3.0]], covariances)
    x = np.where(rng.random(400) < 0.3, 0.0, 4.0) + rng.normal(size=400)
    cells = np.column_stack([x, np.full(400, np.nan if noise is None else 7.0)])
    blur, variances = (0.0 if noise is None else 0.1), np.array([1.0, 0.5])
    fit = fit_mixture(
        cells, 2, initial=known, covariance_type=covariance_type, noise=noise, frozen={"mean": "all", "covar": "all"}
    )
    scale = np.sqrt(variances + blur)
    density = np.exp(-0.5 * ((x[:, None] - [0.0, 4.0]) / scale) ** 2) / scale / np.sqrt(2 * np.pi)
    best = optimize.minimize_scalar(lambda w: -np.log(density @ [w, 1 - w]).mean(), bounds=(0, 1), method="bounded")
    assert fit.model.weights[0] == pytest.approx(best.x, abs=1e-3)
    assert fit.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    one = fit_mixture(
        cells[:1], 2, initial=known, covariance_type=covariance_type, frozen={"mean": "all", "covar": "all"}
    )
    assert one.model.weights.sum() == pytest.approx(1)
    with pytest.raises(DataError, match=r"feature 1 is missing in all cells: leave it out, or map the cells onto"):
        fit_mixture(cells, 2, initial=known, covariance_type=covariance_type, noise=noise, frozen={"mean": "all"})


@pytest.mark.parametrize("name", list(SOME))
def test_cells_without_any_value_are_an_error(name):
    problem = hide(blobs(60), SOME[name])
    problem.x[:] = np.nan
    problem.options.pop("background", None)
    with pytest.raises(DataError, match="0 cells are too few for 2 components"):
        problem.fit()


@pytest.mark.parametrize("name", list(SOME))
def test_fewer_cells_than_components_are_an_error(name):
    problem = hide(blobs(60), SOME[name])
    with pytest.raises(DataError, match=r"\d+ cells are too few for 61 components"):
        problem.fit(61)
    few = problem.of(np.arange(5))
    few.x[1:4] = np.nan
    with pytest.raises(DataError, match="2 cells are too few for 3 components"):
        few.fit(3)


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_an_error(name, value):
    problem = hide(blobs(60), SOME[name])
    problem.x[11, 1] = value
    with pytest.raises(DataError, match="1 infinite values, the first in cell 11"):
        problem.fit()


# ---- backgrounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["background", "noise and background", "all at once"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_box_without_any_cell_is_an_error(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    problem.options["background"] = Background([1000.0, 1000.0], [1001.0, 1001.0], 0.1)
    with pytest.raises(DataError, match="the background's box holds none of the cells"):
        problem.fit(covariance_type=covariance_type)


@pytest.mark.parametrize("name", ["background", "noise and background", "all at once"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("adjust_amp", [False, True])
def test_a_box_of_part_of_the_cells_has_a_share_of_those(name, covariance_type, adjust_amp):
    problem = hide(blobs(), SOME[name])
    box = Background([2.0, 2.0], [9.0, 9.0], 0.2, adjust_amp=adjust_amp)
    problem.options["background"] = box
    fit = problem.fit(covariance_type=covariance_type)
    assert_right(fit, problem)
    assert adjust_amp or fit.model.background.amp == 0.2
    complete = ~np.isnan(problem.x).any(axis=1)
    outside = complete & (problem.x < 0).all(axis=1)  # three standard deviations of the noise from the box
    share = fit.model.background_probability(problem.x, problem.noise)
    assert share[outside].max() < 1e-2
    assert adjust_amp or share[complete].max() > 1e-2


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_background_of_no_amplitude_is_none(covariance_type):
    x = blobs()
    options = {
        "covariance_type": covariance_type,
        "initial": start_for(Problem(x), covariance_type),
        "tol": 1e-10,
        "max_iter": 1000,
    }
    box = Background([-4.0, -4.0], [9.0, 9.0], 0.0, adjust_amp=False)
    fit, expected = fit_mixture(x, 2, background=box, **options), fit_mixture(x, 2, **options)
    assert fit.model.background.amp == 0
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-7)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_background_of_all_cells_leaves_finite_components(covariance_type):
    problem = Problem(blobs(), {"background": Background([-9.0, -9.0], [19.0, 19.0], 1.0, adjust_amp=False)})
    fit = problem.fit(covariance_type=covariance_type)
    assert not fit.model.weights.any()
    assert np.isfinite(fit.model.means).all()
    assert fit.log_likelihood == pytest.approx(-2 * np.log(28), rel=1e-12)


# ---- forms of the same cells ---------------------------------------------------------------------------------------


def in_fortran_order(array, folder):
    return np.asfortranarray(array)


def mapped(array, folder):
    path = folder / f"{id(array)}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def read_only(array, folder):
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array, folder):
    return np.repeat(array, 3, axis=0)[::3]


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("form", [in_fortran_order, mapped, read_only, strided])
@pytest.mark.parametrize("name", FEW)
def test_the_form_of_the_arrays_changes_no_bit(tmp_path, form, name):
    problem = hide(blobs(90, 3), SOME[name])
    other = Problem(form(problem.x, tmp_path), dict(problem.options), problem.cut)
    if problem.noise is not None:
        other.options["noise"] = form(problem.noise, tmp_path)
    before = problem.x.copy()
    fit, same = (p.fit(max_iter=4) for p in (problem, other))
    np.testing.assert_allclose(same.history, fit.history, rtol=1e-12)
    if form is not in_fortran_order:  # whose sums over features are made where they are, in their own order
        assert_same_bits(fit, same)
    assert np.array_equal(problem.x, before, equal_nan=True)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_float32_is_fitted_as_its_float64_values(name, covariance_type):
    problem = hide(blobs(90), SOME[name])
    fits = []
    for kind in (np.float32, np.float64):
        form = Problem(problem.x.astype(np.float32).astype(kind), dict(problem.options), problem.cut)
        if problem.noise is not None:
            form.options["noise"] = problem.noise.astype(np.float32).astype(kind)
        fits.append(form.fit(covariance_type=covariance_type, max_iter=10))
    np.testing.assert_allclose(fits[0].history, fits[1].history, rtol=1e-10)
    np.testing.assert_allclose(fits[0].model.means, fits[1].model.means, rtol=1e-7, atol=1e-7)
    assert fits[0].model.means.dtype == np.float64


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_number_of_threads_changes_no_bit(name, covariance_type):
    problem = hide(blobs(400), SOME[name])
    options = {"covariance_type": covariance_type, "max_iter": 4}
    assert_same_bits(problem.fit(**options), problem.fit(n_threads=3, **options))


# ---- starts, seeds and moves ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("init", list(STARTS))
def test_every_way_to_start_ends_in_a_right_fit(name, covariance_type, init):
    problem = hide(blobs(), SOME[name])
    fit = problem.fit(3, covariance_type=covariance_type, init=init, max_iter=6)
    assert_right(fit, problem)


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_given_start_is_where_the_fit_begins(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    start = start_for(problem, covariance_type)
    options = {"covariance_type": covariance_type, "initial": start}
    fit = problem.fit(init="none", **options)
    assert_right(fit, problem)
    assert_same_bits(fit, problem.fit(init="random", random_state=0, **options))
    first = start if "background" not in problem.options else start.with_background(problem.options["background"])
    assert fit.history[0] == pytest.approx(
        np.nanmean(log_density(first, problem)) - (0 if problem.cut is None else np.log(seen_share(first, problem))),
        abs=1e-9 if problem.cut is None else 2e-2,
    )
    with pytest.raises(ConfigError, match='init "none" starts from `initial`, which is not given'):
        problem.fit(init="none")


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moves_never_end_at_a_lower_likelihood(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    options = {"covariance_type": covariance_type, "max_iter": 6, "init": "random", "random_state": 3}
    plain, moved = (problem.fit(3, split_merge=rounds, **options) for rounds in (0, 2))
    assert_right(moved, problem)
    assert moved.log_likelihood >= plain.log_likelihood


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_seeds_make_the_fit(name, covariance_type):
    problem = hide(blobs(), SOME[name])
    options = {"covariance_type": covariance_type, "init": "random", "max_iter": 4, "tol": 0}
    seeds = (5, 5, np.random.default_rng(5), np.random.SeedSequence(5), 6)
    fits = [problem.fit(3, random_state=seed, **options) for seed in seeds]
    for again in fits[1:4]:
        assert_same_bits(fits[0], again)
    assert not np.array_equal(fits[0].model.means, fits[4].model.means)
    for fit in (fits[4], problem.fit(3, random_state=None, **options)):
        assert_right(fit, problem)


# ---- the floor -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("handling", ["guarded", "robust", "strict"])
def test_few_distinct_cells_are_fitted_at_the_floor_or_refused(name, covariance_type, handling):
    x = np.repeat(5 * np.random.default_rng(0).normal(size=(3, 2)), 30, axis=0)
    problem = hide(x, SOME[name])
    if handling == "strict":
        fit = assert_right_or_one_error(problem, 3, covariance_type=covariance_type, singularity_handling="strict")
        if problem.noise is None and "background" not in problem.options:
            assert fit is None
            with pytest.raises(SingularCovarianceError, match="of 3 has a singular covariance"):
                problem.fit(3, covariance_type=covariance_type, singularity_handling="strict")
        else:  # behind noise, EM may not have come as far
            assert fit is None or not fit.floored.any()
        return
    floor = EPS
    if handling == "robust":
        floor = max(EPS, 0.01 * float(np.nanvar(problem.x, axis=0).mean()))
    fit = problem.fit(3, covariance_type=covariance_type, singularity_handling=handling)
    assert_right(fit, problem, floor=floor)
    if name in ("plain", "missing", "truncated"):
        smallest = np.linalg.eigvalsh(fit.model.full_covariances).min()
        assert smallest == pytest.approx(floor, rel=1e-6)


# ---- values at the limits of what is numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize(("covariance_type", "scale"), [("full", 1e8), ("full", 1e-8), ("diag", 1e8)])
def test_small_and_large_numbers_give_a_right_answer_or_one_error(name, covariance_type, scale):
    problem = hide(blobs(), SOME[name])
    scaled = Problem(problem.x * scale, dict(problem.options), None if problem.cut is None else problem.cut * scale)
    if problem.noise is not None:
        scaled.options["noise"] = problem.noise * scale**2
    if "background" in problem.options:
        box = problem.options["background"]
        scaled.options["background"] = Background(box.lower * scale, box.upper * scale, box.amp)
    if problem.cut is not None:
        scaled.options["completeness"] = seen_at(scaled.cut)
    fit = scaled.fit(covariance_type=covariance_type, eps=EPS * scale**2)
    assert_right(fit, scaled, floor=EPS * scale**2)
    expected = problem.fit(covariance_type=covariance_type)
    present = np.count_nonzero(~np.isnan(problem.x)) / (120 - fit.n_empty)
    # The ways of a start and of EM are the same; rounding may end them at another iteration.
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood - present * np.log(scale), abs=1e-2)


@pytest.mark.parametrize("value", [1e100, 1e160, 1e300])
@pytest.mark.parametrize("name", ["plain", "own noise", "background"])
def test_a_value_that_is_hardly_a_number_gives_a_finite_answer_or_one_error(name, value):
    problem = hide(blobs(60), SOME[name], kept=[3])
    problem.x[3] = value
    with np.errstate(all="ignore"):
        try:
            fit = problem.fit()
        except CohortgmmError:
            return
        assert np.isfinite(fit.history).all()
        assert all(np.isfinite(array).all() for array in fit.model.arrays().values())
