"""What a completeness function is asked for, the noise of unobserved cells, and errors."""

import numpy as np
import pytest
from cut_cells import MANY, SHARE_ERROR, above, constantly, selection_of, unseen_share, within
from scipy import stats

from cohortgmm.errors import CohortgmmError, DataError, DivergedError
from cohortgmm.mixture import fit as em
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.truncated import QuadratureNodes, TruncatedExpectation, unobserved_moments
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.completeness import NoiseOfRandomCells, scaled_noise
from cohortgmm.mixture.observations.measurements import Measurements


@pytest.fixture
def few_nodes(tune):
    """Fits that need not be accurate to more than a hundredth."""
    tune(most_nodes=1 << 12)


@pytest.fixture
def many_nodes(tune):
    """Fits that are compared with closed forms."""
    tune(fewest_nodes=MANY)


# ---- the noise of unseen cells -------------------------------------------------------------------------------------


@pytest.fixture
def noisy_cut():
    """Two features behind the same noise, cut off in the first."""
    truth = GaussianMixture(np.array([0.6, 0.4]), np.array([[0.0, 0.0], [3.0, 2.0]]), np.array([np.eye(2), np.eye(2)]))
    noise = np.array([0.3, 0.8])  # in ascending order, so that eigenvectors come in that of the features
    return truth.sample_observed(500, 0, noise=noise, completeness=above(0.0)).x, noise


FORMS_OF_NOISE = {
    "shared covariance": lambda noise: np.diag(noise),
    "callable of variances": lambda noise: lambda x: np.tile(noise, (len(x), 1)),
    "callable of covariances": lambda noise: lambda x: np.tile(np.diag(noise), (len(x), 1, 1)),
    "callable of one variance": lambda noise: lambda x: noise,
}


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("form", list(FORMS_OF_NOISE))
def test_noise_of_unseen_cells_is_the_same_in_every_form(noisy_cut, form):
    x, noise = noisy_cut
    options = {"noise": noise, "completeness": above(0.0), "n_init": 1, "init": "kmeans"}
    expected = fit_mixture(x, 2, noise_at=noise, **options)
    fit = fit_mixture(x, 2, noise_at=FORMS_OF_NOISE[form](noise), **options)
    # Square roots by way of eigenvectors are rounded otherwise.
    np.testing.assert_allclose(fit.model.means, expected.model.means, rtol=1e-8, atol=1e-8)
    assert fit.n_unobserved == pytest.approx(expected.n_unobserved, rel=1e-8)


@pytest.mark.usefixtures("few_nodes")
def test_noise_of_unseen_cells_is_that_of_all_where_it_is_shared(noisy_cut, assert_bit_identical):
    x, noise = noisy_cut
    options = {"noise": noise, "completeness": above(0.0), "n_init": 1}
    assert_bit_identical(fit_mixture(x, 2, **options), fit_mixture(x, 2, noise_at=noise, **options))


@pytest.mark.usefixtures("few_nodes")
def test_noise_of_unseen_cells_is_drawn_from_the_cells_own(noisy_cut):
    x, noise = noisy_cut
    options = {"completeness": above(0.0), "n_init": 1}
    expected = fit_mixture(x, 2, noise=noise, **options)
    for own in (np.tile(noise, (len(x), 1)), np.tile(np.diag(noise), (len(x), 1, 1))):
        fit = fit_mixture(x, 2, noise=own, **options)
        # Where the E-step takes another way, EM ends within its tolerance of the same optimum.
        np.testing.assert_allclose(fit.model.means, expected.model.means, atol=1e-2)
        assert fit.n_unobserved == pytest.approx(expected.n_unobserved, rel=5e-3)
    other = fit_mixture(x, 2, noise=noise, noise_at=2.0 * noise, **options)
    assert other.n_unobserved != pytest.approx(expected.n_unobserved, rel=0.02)


def test_noise_that_grows_with_the_place_is_asked_for_there():
    """Uniform cells in a narrow component at each of two places: the unseen share is that of each one's own noise."""
    model = GaussianMixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.full((2, 1, 1), 1e-6))

    def noise_at(x):
        return np.where(x > 0, 4.0, 1.0)

    exact = 0.5 * stats.norm.cdf(0.5, -1, 1) + 0.5 * stats.norm.cdf(0.5, 1, 2)
    assert unseen_share(model, above(0.5), noise_at=noise_at) == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("covariances", [False, True])
def test_drawn_noise_is_that_of_the_cells_in_equal_parts(covariances):
    own = np.repeat([0.25, 4.0], [100, 300])[:, None]
    model = GaussianMixture(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))
    exact = 0.25 * stats.norm.cdf(0.7, 0, np.sqrt(1.25)) + 0.75 * stats.norm.cdf(0.7, 0, np.sqrt(5))
    drawn = NoiseOfRandomCells(own[:, :, None] if covariances else own, 3)
    # 2^17 independent draws of one of two kinds that differ by 0.11 in the unseen share.
    assert unseen_share(model, above(0.7), noise_at=drawn) == pytest.approx(exact, abs=1e-3)
    assert np.array_equal(drawn(np.zeros((50, 1))), drawn(np.zeros((50, 1))))
    assert set(drawn(np.zeros((500, 1))).ravel().tolist()) == {0.25, 4.0}


@pytest.mark.parametrize("shared", [False, True])
def test_scaled_noise_has_the_covariance_asked_for(shared):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    covariance = root @ root.T
    noise = covariance if shared else lambda x: np.repeat(covariance[None], len(x), axis=0)
    # The images of unit vectors are the columns of the square root that is used.
    columns = scaled_noise(np.zeros((4, 3)), noise, np.vstack([np.eye(3), np.zeros((1, 3))]))
    np.testing.assert_allclose(columns.T @ columns, covariance, rtol=1e-12, atol=1e-12)
    assert not columns[3].any()


def test_scaled_noise_of_every_cell_is_its_own():
    variances = np.arange(1.0, 11.0).reshape(5, 2)
    normal = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(scaled_noise(np.zeros((5, 2)), lambda x: variances, normal), np.sqrt(variances) * normal)
    matrices = variances[:, :, None] * np.eye(2)
    np.testing.assert_allclose(scaled_noise(np.zeros((5, 2)), lambda x: matrices, normal), np.sqrt(variances) * normal)
    assert not scaled_noise(np.zeros((5, 2)), np.zeros((2, 2)), normal).any()


def fails(x):
    raise KeyError("no such place")


BAD_NOISE_AT = {
    "fails": fails,
    "text": lambda x: "abc",
    "negative variance": lambda x: np.full(x.shape, -1.0),
    "NaN": lambda x: np.full(x.shape, np.nan),
    "infinite": np.array([1.0, np.inf]),
    "negative eigenvalue": np.diag([1.0, -1.0]),
    "NaN in a matrix": np.full((2, 2), np.nan),
    "three features": np.ones(3),
    "another number of cells": lambda x: np.ones((len(x) - 1, 2)),
    "a column": lambda x: np.ones((len(x), 1)),
}


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("name", list(BAD_NOISE_AT))
def test_noise_of_unseen_cells_that_is_none_is_one_clear_error(name):
    x = np.abs(np.random.default_rng(0).normal(size=(40, 2)))
    with pytest.raises(CohortgmmError, match="noise_at"):
        fit_mixture(x, 1, completeness=above(0.0), noise_at=BAD_NOISE_AT[name], n_init=1)


# ---- missing features ----------------------------------------------------------------------------------------------


@pytest.fixture
def incomplete_cut(make_mixture):
    """Cells cut off in the first feature, which all have; part of the second is missing."""
    x = make_mixture(2, 2, seed=3).sample(400, 0)[0]
    x = x[x[:, 0] > 0]
    hidden = x.copy()
    hidden[::4, 1] = np.nan
    return x, hidden


@pytest.mark.usefixtures("many_nodes")
def test_a_completeness_of_the_present_features_goes_with_missing_ones(incomplete_cut):
    x, hidden = incomplete_cut
    fit, complete = (fit_mixture(cells, 2, completeness=above(0.0), n_init=2) for cells in (hidden, x))
    for part in fit.model.arrays().values():
        assert np.isfinite(part).all()
    # A quarter of one feature less: the same mixture within its standard errors, and much the same unseen share.
    assert fit.completeness == pytest.approx(complete.completeness, abs=0.05)
    share = fit.model.weights @ stats.norm.cdf(0, fit.model.means[:, 0], np.sqrt(fit.model.full_covariances[:, 0, 0]))
    assert 1 - fit.completeness == pytest.approx(share, abs=SHARE_ERROR[MANY])


def test_a_completeness_that_is_nan_for_missing_features_is_refused(incomplete_cut):
    _, hidden = incomplete_cut

    def needs_both(x):
        return np.where(np.isnan(x.sum(axis=1)), np.nan, above(0.0)(x))

    with pytest.raises(DataError, match=r"cells 0 to \d+: .*returned nan at \(.*nan\).*missing features are among"):
        fit_mixture(hidden, 2, completeness=needs_both)


@pytest.mark.usefixtures("few_nodes")
def test_cells_without_any_feature_are_not_shown_to_the_function(incomplete_cut):
    _, hidden = incomplete_cut
    hidden[5] = np.nan

    def picky(x):
        assert not np.isnan(x).all(axis=1).any()
        return above(0.0)(x)

    assert fit_mixture(hidden, 2, completeness=picky, n_init=1).n_empty == 1


@pytest.mark.usefixtures("small_tiles", "few_nodes")
def test_the_function_is_not_called_without_places(incomplete_cut):
    """As in a tile of which no cell has a feature; a function that looks for the largest value would fail there."""
    _, hidden = incomplete_cut
    hidden = np.vstack([np.full((64, 2), np.nan), hidden])

    def largest_first(x):
        assert x[:, 0].max() > -np.inf
        return above(0.0)(x)

    assert fit_mixture(hidden, 2, completeness=largest_first, n_init=1).n_empty == 64


def infinite_noise(x):
    """The same gaps as infinite variances, with anything in their place."""
    missing = np.isnan(x)
    return np.where(missing, -1e6, x), np.where(missing, np.inf, 0.1)


@pytest.mark.usefixtures("few_nodes")
def test_an_infinite_variance_is_a_missing_feature_for_the_function_too(incomplete_cut):
    _, hidden = incomplete_cut
    filled, noise = infinite_noise(hidden)

    def needs_no_second(x):
        return np.where(np.isnan(x[:, 1]) | (x[:, 1] > -100), above(0.0)(x), 0.0)

    options = {"completeness": needs_no_second, "noise_at": np.full(2, 0.1), "n_init": 1}
    fit = fit_mixture(filled, 2, noise=noise, **options)
    expected = fit_mixture(hidden, 2, noise=np.full(hidden.shape, 0.1), **options)
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-9)


@pytest.mark.usefixtures("few_nodes")
def test_noise_of_unseen_cells_is_drawn_from_finite_ones(incomplete_cut):
    _, hidden = incomplete_cut
    filled, noise = infinite_noise(hidden)
    fit = fit_mixture(filled, 2, completeness=above(0.0), noise=noise, n_init=1)
    assert np.isfinite(fit.log_likelihood)
    assert 0 < fit.completeness < 1


# ---- errors --------------------------------------------------------------------------------------------------------


def raises(x):
    raise RuntimeError("no map of this region")


def raises_lines(x):
    raise RuntimeError("no map\n  of this\r\nregion\n")


def asserts(x):
    raise AssertionError


BAD_ANSWERS = {
    "raises": (raises, r"failed on \d+ places: RuntimeError: no map of this region"),
    "raises lines": (raises_lines, r"failed on \d+ places: RuntimeError: no map of this region$"),
    "asserts": (asserts, r"failed on \d+ places: AssertionError$"),
    "divides by zero": (lambda x: np.full(len(x), 1 // 0), "failed on .* ZeroDivisionError"),
    "a column": (lambda x: np.ones((len(x), 1)), r"returned shape \(\d+, 1\) for \d+ places"),
    "one value less": (lambda x: np.ones(len(x) - 1), "returned shape"),
    "a number": (lambda x: 1.0, r"returned shape \(\)"),
    "nothing": (lambda x: None, "the completeness function returned"),
    "text": (lambda x: "often", "returned str, not numbers"),
    "words": (lambda x: np.full(len(x), "often"), "returned ndarray, not numbers"),
    "ragged": (lambda x: [[1.0], [1.0, 2.0]], "returned list, not numbers"),
    "NaN": (lambda x: np.full(len(x), np.nan), r"returned nan at \(.*\): must be within \[0, 1\]"),
    "above one": (lambda x: np.full(len(x), 1.5), r"returned 1.5 at \("),
    "barely above one": (lambda x: np.full(len(x), 1 + 1e-9), r"must be within \[0, 1\]"),
    "negative": (lambda x: np.full(len(x), -0.1), r"returned -0.1 at \("),
    "infinite": (lambda x: np.full(len(x), np.inf), r"returned inf at \("),
}


@pytest.mark.parametrize("name", list(BAD_ANSWERS))
def test_a_bad_answer_for_the_cells_is_one_error_that_names_them(name, make_cells):
    function, message = BAD_ANSWERS[name]
    with pytest.raises(DataError, match=f"^cells 0 to 49: .*{message}") as caught:
        fit_mixture(make_cells(50, 2), 1, completeness=function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(BAD_ANSWERS))
def test_a_bad_answer_only_far_from_the_cells_is_one_error_too(name):
    x = np.random.default_rng(0).uniform(-1, 1, size=(80, 2))
    bad, message = BAD_ANSWERS[name]

    def function(places):
        return bad(places) if np.abs(places).max() > 1 else np.full(len(places), 0.5)

    with pytest.raises(DataError, match=message) as caught:
        fit_mixture(x, 1, completeness=function)
    assert "\n" not in str(caught.value)


def test_one_bad_place_is_named():
    """The first of them, by its features."""
    x = np.array([[0.0, 0.0], [1.25, -3.5], [2.0, 2.0]])
    with pytest.raises(DataError, match=r"returned 2 at \(1.25, -3.5\): must be within \[0, 1\]"):
        fit_mixture(x, 1, completeness=lambda x: np.where(x[:, 0] > 1, 2.0, 1.0))


@pytest.mark.usefixtures("small_tiles")
def test_the_cells_named_are_those_that_were_asked_for(make_cells):
    x = make_cells(200, 2)
    x[150, 0] = 1000.0
    with pytest.raises(DataError, match=r"^cells 128 to 191: "):
        fit_mixture(x, 1, completeness=lambda x: np.where(x[:, 0] > 500, np.nan, 1.0))


@pytest.mark.usefixtures("small_tiles")
def test_cells_that_could_not_have_been_seen_are_counted_and_named(make_cells):
    x = make_cells(200, 2)
    x[[3, 70, 71, 199]] = 1000.0

    def function(places):
        return (places[:, 0] < 500).astype(float)

    with pytest.raises(DataError, match=r"0 for 4 observed cells \(3, 70, 71, 199\): the function does not describe"):
        fit_mixture(x, 1, completeness=function)
    x[[4, 5, 190]] = 1000.0
    with pytest.raises(DataError, match=r"0 for 7 observed cells \(3, 4, 5, 70, 71, \.\.\.\)"):
        fit_mixture(x, 1, completeness=function)


@pytest.mark.parametrize("value", [0.5, "half", np.ones(50)])
def test_what_is_no_function_is_refused(make_cells, value):
    with pytest.raises(DataError, match=rf"must be a callable .* got {type(value).__name__}"):
        fit_mixture(make_cells(50, 2), 1, completeness=value)


# ---- too little is seen --------------------------------------------------------------------------------------------


def test_a_fit_in_which_nearly_all_would_be_unseen_is_an_error(make_cells):
    x = make_cells(100, 2, n_components=1)
    with pytest.raises(
        DivergedError, match=r"^0\.999\d* of all cells would be unobserved, .* ask for fewer components"
    ):
        fit_mixture(x, 1, completeness=constantly(8e-4))
    assert fit_mixture(x, 1, completeness=constantly(1.2e-3)).completeness == pytest.approx(1.2e-3, rel=0.05)


def test_data_without_a_maximum_end_in_that_error(tune):
    """Cells in the corners of a window: the wider the normal, the better, without end."""
    tune(fewest_nodes=1 << 15)  # fewer nodes would end it with an error of their own
    rng, window = np.random.default_rng(0), within(-1.0, 1.0)
    corners = 0.9 * rng.choice([-1.0, 1.0], size=(200, 6)) + 0.02 * rng.normal(size=(200, 6))
    with pytest.raises(DivergedError, match="would be unobserved"):
        fit_mixture(corners, 1, completeness=window, covariance_type="diag", n_init=1)


def test_densities_that_overflow_at_the_nodes_are_that_error(make_mixture):
    model = make_mixture(2, 2)
    nodes = QuadratureNodes(np.zeros((3, 2)), np.full(3, 1e4), model)
    assert np.isinf(unobserved_moments(model, nodes).nk).all()
    selection = selection_of(above(0.0))
    seen = choose_estep(Measurements(np.ones((5, 2))), 2, "full")
    with pytest.raises(DivergedError, match="inf of all cells"):
        TruncatedExpectation(seen, selection, 8, nodes)(model)


@pytest.mark.usefixtures("few_nodes")
def test_another_start_may_do_where_one_diverges(monkeypatch, make_mixture):
    """Only if all of them fail, the fit does."""
    model = make_mixture(2, 2)
    x = model.sample(60, 0)[0]
    beyond = GaussianMixture(model.weights, model.means + 1e6, model.covariances)
    far = x.max(axis=0) + 100
    options = {"completeness": within(-far, far), "n_init": 3}
    for starts in ([beyond, model, beyond], [beyond] * 3):
        left = iter(starts)
        for name in em.STARTS:  # several starts may be of several kinds
            monkeypatch.setitem(em.STARTS, name, lambda *arguments, left=left: next(left))
        if model in starts:
            fit = fit_mixture(x, 2, **options)
            assert fit.completeness == 1
            np.testing.assert_allclose(fit.model.means, model.means, atol=1.0)
        else:
            with pytest.raises(DivergedError, match="1 of all cells would be unobserved"):
                fit_mixture(x, 2, **options)
