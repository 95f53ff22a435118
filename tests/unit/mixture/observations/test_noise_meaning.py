"""Whose a square array of noise is: of n = D cells it may be two things, and whoever gives it says which."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cohortgmm
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.completeness import noise_of_places
from cohortgmm.mixture.observations.measurements import Measurements
from cohortgmm.mixture.observations.noise import Noise
from cohortgmm.mixture.stacking import cross_validate

D = 4
X = np.random.default_rng(0).normal(size=(D, D))
VARIANCES = np.random.default_rng(1).uniform(0.1, 0.9, size=(D, D))
COVARIANCE = np.cov(np.random.default_rng(2).normal(size=(D, 50)))
MODEL = GaussianMixture([0.5, 0.5], [np.zeros(D), np.ones(D)], [np.eye(D), 2 * np.eye(D)])
BESIDE = MODEL.with_background(Background(np.full(D, -9.0), np.full(D, 9.0)))
SHORT = {"n_init": 1, "max_iter": 3}

ENTRIES = {
    "fit_mixture": lambda noise: fit_mixture(X, 1, noise=noise, **SHORT).model.covariances,
    "log_prob": lambda noise: MODEL.log_prob(X, noise),
    "responsibilities": lambda noise: MODEL.responsibilities(X, noise),
    "background_probability": lambda noise: BESIDE.background_probability(X, noise),
    "sample_observed": lambda noise: MODEL.sample_observed(D, 0, noise=noise).x,
    "cross_validate": lambda noise: cross_validate(X, 1, n_folds=2, noise=noise, **SHORT),
}
FORMS = {
    "array": np.asarray,
    "list": np.ndarray.tolist,
    "table": pd.DataFrame,
    "sparse": sparse.csr_matrix,
    "single precision": lambda values: values.astype(np.float32),
    "masked": np.ma.asarray,
    "repeated row": lambda values: np.broadcast_to(values[0], (D, D)),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("form", FORMS)
def test_a_square_array_for_as_many_cells_as_features_is_refused_with_both_readings(entry, form):
    with pytest.raises(DataError) as caught:
        ENTRIES[entry](FORMS[form](COVARIANCE))
    assert str(caught.value) == (
        "noise of shape (4, 4) for 4 cells of 4 features may be the variances of each cell or one covariance for all: say "
        "which, cohortgmm.Noise.per_cell(values) or cohortgmm.Noise.shared(values)"
    )


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry != "sample_observed"])
def test_each_of_the_two_readings_is_what_it_says(entry):
    """A covariance for every cell, (n, D, D), has one meaning: both are compared with it."""
    per_cell, shared = (ENTRIES[entry](noise) for noise in (Noise.per_cell(VARIANCES), Noise.shared(COVARIANCE)))
    matrices = VARIANCES[:, :, None] * np.eye(D)
    np.testing.assert_allclose(per_cell, ENTRIES[entry](matrices), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(shared, ENTRIES[entry](np.repeat(COVARIANCE[None], D, axis=0)), rtol=1e-9, atol=1e-12)


def test_samples_have_the_noise_that_was_said():
    n = 20_000
    tiny = GaussianMixture([1.0], np.zeros((1, 2)), 1e-20 * np.eye(2)[None])
    variances = np.repeat([[1.0, 4.0], [9.0, 0.25]], n // 2, axis=0)
    sample = tiny.sample_observed(n, 0, noise=Noise.per_cell(variances))
    assert np.array_equal(sample.noise, variances)
    for rows in (slice(0, n // 2), slice(n // 2, n)):
        np.testing.assert_allclose(sample.x[rows].var(axis=0), variances[rows][0], rtol=0.07)
    shared = np.array([[1.0, 0.9], [0.9, 1.0]])
    x = tiny.sample_observed(n, 0, noise=Noise.shared(shared)).x
    np.testing.assert_allclose(np.cov(x, rowvar=False), shared, atol=0.05)
    two = tiny.sample_observed(2, 0, noise=Noise.per_cell(np.array([[1.0, 0.0], [0.0, 1.0]]))).x
    assert (np.abs(two) < 1e-6).tolist() == [[False, True], [True, False]]


def test_noise_of_each_cell_does_not_go_with_selection():
    with pytest.raises(ConfigError, match="noise of each cell does not go with completeness"):
        MODEL.sample_observed(D, 0, noise=Noise.per_cell(VARIANCES), completeness=lambda x: np.ones(len(x)))
    with pytest.raises(DataError, match=r"Noise\.per_cell\(values\) says that it is of each cell"):
        MODEL.sample_observed(D + 1, 0, noise=np.ones((D + 1, D)))


@pytest.mark.parametrize("entry", ENTRIES)
def test_where_both_readings_are_the_same_none_is_asked_for(entry):
    without = ENTRIES[entry](Noise.shared(np.zeros(D)))
    np.testing.assert_allclose(ENTRIES[entry](np.zeros((D, D))), without, rtol=1e-9)
    line = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    assert line.log_prob([[0.5]], [[0.3]]) == pytest.approx(line.log_prob([[0.5]], Noise.per_cell([[0.3]])), rel=1e-12)


@pytest.mark.parametrize("n", [D - 1, D + 1])
def test_a_square_array_for_another_number_of_cells_is_one_covariance(n):
    x = np.random.default_rng(3).normal(size=(n, D))
    expected = MODEL.log_prob(x, Noise.shared(COVARIANCE))
    assert np.array_equal(MODEL.log_prob(x, COVARIANCE), expected)


def test_what_was_said_is_held_against_the_cells():
    for noise, message in (
        (Noise.per_cell(np.ones((D + 1, D))), r"^noise of shape \(5, 4\), one for each cell, does not fit cells of"),
        (Noise.per_cell(np.ones((D, D, D + 1))), r"^noise of shape \(4, 4, 5\), one for each cell, does not fit"),
        (Noise.shared(np.ones(D + 1)), r"^noise of shape \(5,\), one for all cells, does not fit"),
        (Noise.shared(np.ones((D + 1, D + 1))), r"^noise of shape \(5, 5\), one for all cells, does not fit"),
        (Noise.shared(-np.ones(D)), r"^the noise is no covariance"),
        (Noise.shared(np.ones((D, D)) - 2 * np.eye(D)), r"^the noise is no covariance"),
        (
            Noise.per_cell(np.where(np.arange(D)[:, None] == 2, -1.0, VARIANCES)),
            r"^the noise of cell 2 is no covariance",
        ),
    ):
        with pytest.raises(DataError, match=message):
            MODEL.log_prob(X, noise)


@pytest.mark.parametrize("values", [1.0, np.ones(D), np.ones((1, D, D, D))], ids=["number", "one axis", "four axes"])
def test_per_cell_takes_an_array_with_a_row_for_each_cell(values):
    with pytest.raises(DataError, match=r"^Noise\.per_cell takes variances \(n, D\) or covariances \(n, D, D\), got"):
        Noise.per_cell(values)


@pytest.mark.parametrize("values", [1.0, np.ones((D, D, D))], ids=["number", "three axes"])
def test_shared_takes_variances_or_one_covariance(values):
    with pytest.raises(DataError, match=r"^Noise\.shared takes variances \(D,\) or one covariance \(D, D\), got"):
        Noise.shared(values)


@pytest.mark.parametrize("values", ["x", None, np.ones((D, D)) + 1j, Noise.shared(np.ones(D))])
def test_both_refuse_what_is_no_array_of_numbers(values):
    for say in (Noise.per_cell, Noise.shared):
        with pytest.raises(DataError):
            say(values)


def test_the_public_name_is_the_class():
    assert cohortgmm.Noise is Noise


# ---- noise at places -----------------------------------------------------------------------------------------------


def test_a_function_of_as_many_places_as_features_gives_one_row_for_each_place():
    noise = noise_of_places(X, lambda x: VARIANCES)
    assert (noise.is_shared, noise.is_diagonal) == (False, True)
    assert np.array_equal(noise.variances(), VARIANCES)


@pytest.mark.parametrize("m", [D - 1, D + 1])
def test_one_covariance_of_a_function_is_refused_for_every_number_of_places(m):
    """With D places it would be read as variances."""
    with pytest.raises(
        DataError, match=r"^noise_at: must be one for each place, of shape .*Noise\.shared\(values\) is one"
    ):
        noise_of_places(np.zeros((m, D)), lambda x: COVARIANCE)
    for places in (np.zeros((m, D)), X):
        assert np.array_equal(noise_of_places(places, lambda x: Noise.shared(COVARIANCE)).covariances(), COVARIANCE)
        assert np.array_equal(noise_of_places(places, lambda x: VARIANCES[0]).variances(), VARIANCES[0])


def test_an_array_for_places_is_one_for_all_whatever_their_number():
    for m in (D, D + 1):
        noise = noise_of_places(np.zeros((m, D)), COVARIANCE)
        assert noise.is_shared
        assert np.array_equal(noise.covariances(), COVARIANCE)
    for noise in (Noise.per_cell(VARIANCES), np.ones((D + 1, D)), np.ones((D, D, D))):
        with pytest.raises(DataError, match=r"^noise_at: "):
            noise_of_places(X, noise)


# ---- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "g", int, bool, object])
def test_noise_of_every_real_type_is_taken(dtype):
    ones = np.ones((3, D), dtype=dtype)
    assert np.array_equal(MODEL.log_prob(X[:3], ones), MODEL.log_prob(X[:3], np.ones((3, D))))


def test_masked_noise_is_no_noise_of_a_feature_that_is_there():
    masked = np.ma.array(np.ones((3, D)), mask=np.arange(3 * D).reshape(3, D) == 5)
    with pytest.raises(DataError, match="the noise of cell 1 is no covariance: variances must be at least 0, not NaN"):
        MODEL.log_prob(X[:3], masked)
    gap = X[:3].copy()
    gap[1, 1] = np.nan
    assert np.array_equal(MODEL.log_prob(gap, masked), MODEL.log_prob(gap, np.ones((3, D))))


def test_single_and_double_precision_are_not_copied():
    for dtype in (np.float32, np.float64):
        values = np.ones((3, D), dtype=dtype)
        assert np.shares_memory(Measurements(X[:3], values).noise.values, values)
        assert np.shares_memory(Measurements(X[:3], Noise.per_cell(values)).noise.values, values)


@pytest.mark.parametrize("value", [1e201, 1e300])
def test_noise_whose_products_overflow_is_refused(value):
    with pytest.raises(DataError, match=r"the noise of cell 2 has values beyond 1e\+200: rescale the data"):
        MODEL.log_prob(X[:3], np.where(np.arange(3)[:, None] == 2, value, np.ones((3, D))))


@pytest.mark.parametrize("value", [1e80, 1e150, 1e199])
@pytest.mark.parametrize("covariances", [False, True])
def test_large_noise_is_almost_a_missing_feature(value, covariances):
    """Pivots of several features multiply beyond the range of numbers."""
    x = np.random.default_rng(0).normal(size=(5, 12))
    model = GaussianMixture([1.0], np.zeros((1, 12)), [np.eye(12)])
    noise = np.tile(np.r_[np.full(10, value), 0.5, 0.5], (5, 1)) * np.linspace(1, 2, 5)[:, None]
    rest = GaussianMixture([1.0], np.zeros((1, 2)), [np.eye(2)]).log_prob(x[:, 10:], noise[:, 10:])
    expected = rest - 0.5 * (10 * np.log(2 * np.pi) + np.log(noise[:, :10]).sum(axis=1))
    given = noise[:, :, None] * np.eye(12) if covariances else noise
    np.testing.assert_allclose(model.log_prob(x, given), expected, rtol=1e-10)
