"""Singular covariances, layouts in memory, and data that break naive code."""

import numpy as np
import pytest

from cohortgmm.errors import SingularCovarianceError
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.numerics.gaussian import covariance_floor

COVARIANCE_TYPES = ["full", "diag"]


# ---- singular covariances ------------------------------------------------------------------------------------------


def with_duplicated_feature(rng):
    x = rng.normal(size=(120, 3))
    x[:, 2] = x[:, 0]
    return x


def with_constant_feature(rng):
    x = rng.normal(size=(120, 3))
    x[:, 1] = 4.0
    return x


def with_few_distinct_cells(rng):
    return np.repeat(rng.normal(size=(3, 3)), 40, axis=0)


def with_fewer_cells_than_features(rng):
    return rng.normal(size=(8, 20))


SINGULAR = [with_duplicated_feature, with_constant_feature, with_few_distinct_cells, with_fewer_cells_than_features]


def is_singular(make, covariance_type):
    # Every feature of these two varies by itself, which is all that variances see.
    return covariance_type == "full" or make not in (with_duplicated_feature, with_fewer_cells_than_features)


@pytest.mark.parametrize("make", SINGULAR)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("handling", ["guarded", "robust"])
@pytest.mark.parametrize("init", list(STARTS))
def test_singular_data_are_fitted_at_the_floor(make, covariance_type, handling, init, assert_sound):
    x = make(np.random.default_rng(0))
    fit = fit_mixture(x, 2, covariance_type=covariance_type, singularity_handling=handling, init=init, eps=1e-3)
    assert_sound(fit, x)
    floor = covariance_floor(x.var(axis=0), 1e-3, handling)
    smallest = np.linalg.eigvalsh(fit.model.full_covariances).min()
    assert smallest >= floor * (1 - 1e-9)  # rebuilding from eigenvectors rounds at 1e-16 of the largest eigenvalue
    assert np.diff(fit.history).min() >= -1e-10
    if is_singular(make, covariance_type):
        assert smallest == pytest.approx(floor, rel=1e-9)
        assert fit.floored.any()


@pytest.mark.parametrize("make", SINGULAR)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("init", list(STARTS))
def test_strict_names_component_and_eigenvalue_of_singular_data(make, covariance_type, init):
    x = make(np.random.default_rng(0))
    fit = {"covariance_type": covariance_type, "singularity_handling": "strict", "init": init}
    if not is_singular(make, covariance_type):
        assert not fit_mixture(x, 1, **fit).floored.any()
        return
    with pytest.raises(SingularCovarianceError, match=r"component \d of 2 has a singular covariance") as caught:
        fit_mixture(x, 2, **fit)
    assert caught.value.component in (0, 1)
    assert abs(caught.value.eigenvalue) < 1e-4


def test_strict_is_the_guarded_fit_where_nothing_is_singular(make_cells, assert_bit_identical):
    x = make_cells(300, 3)
    assert_bit_identical(fit_mixture(x, 3, singularity_handling="strict"), fit_mixture(x, 3))


def test_robust_floors_more_than_guarded(make_cells):
    x = make_cells(200, 3) * [1, 1, 1e-3]
    guarded, robust = (fit_mixture(x, 2, singularity_handling=name, eps=1e-9) for name in ("guarded", "robust"))
    assert not guarded.floored.any()
    assert robust.floored.all()


# ---- layouts and adversarial data ----------------------------------------------------------------------------------


def fortran_order(x):
    return np.asfortranarray(x)


def strided(x):
    return np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3]


def reversed_view(x):
    return x[::-1].copy()[::-1]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def nested_lists(x):
    return x.tolist()


def matrix(x):
    return np.asmatrix(x)  # what a sparse matrix is made dense as


@pytest.mark.parametrize("layout", [fortran_order, strided, reversed_view, read_only, nested_lists, matrix])
@pytest.mark.parametrize("init", list(STARTS))
def test_the_layout_in_memory_does_not_matter(make_cells, layout, init):
    x = make_cells(200, 3, spread=5.0)
    expected, fit = (fit_mixture(data, 3, init=init, max_iter=20) for data in (x, layout(x)))
    # Cells are worked on as contiguous rows; only sums of features are made where they are, in their own order.
    np.testing.assert_allclose(fit.history, expected.history, rtol=1e-12)
    np.testing.assert_allclose(fit.model.means, expected.model.means, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, bool])
def test_other_types_are_fitted_as_their_float64_values(dtype, assert_bit_identical):
    x = np.random.default_rng(0).integers(0, 20, size=(100, 2)).astype(dtype)
    fit = fit_mixture(x, 2)
    assert_bit_identical(fit, fit_mixture(x.astype(np.float64), 2))
    assert fit.model.means.dtype == np.float64


def test_the_cells_are_left_as_they_were(make_cells):
    x = make_cells(100, 2)
    before = x.copy()
    for init in STARTS:
        fit_mixture(x, 3, init=init, n_init=2)
    assert np.array_equal(x, before)


def normal_cells(*shape):
    return np.random.default_rng(0).normal(size=shape)


def outlier_at(distance):
    x = normal_cells(150, 3)
    x[17] = distance
    return x


ADVERSARIAL = {
    "outlier at 1e8": outlier_at(1e8),
    "outlier at 1e15": outlier_at(1e15),
    "all cells identical": np.full((40, 3), 0.1),
    "all cells identical and far": np.full((40, 3), 1e12 + 0.1),
    "all zero": np.zeros((40, 3)),
    "as many cells as components": normal_cells(4, 3),
    "values of 1e-12": 1e-12 * normal_cells(100, 3),
    "values of 1e12": 1e12 * normal_cells(100, 3),
    "far from the origin": 1e12 + normal_cells(100, 3),
    "features of unlike scales": normal_cells(100, 3) * [1e-12, 1.0, 1e12],
    "rank one": np.outer(normal_cells(100), [1.0, 2.0, 3.0]),
    "rank one of 1e8": 1e8 * np.outer(normal_cells(100), [1.0, 2.0, 3.0]),
    "one feature": normal_cells(100, 1),
    "one constant feature": np.ones((50, 1)),
    "one cell more than components": normal_cells(5, 1),
    "binary": (normal_cells(100, 4) > 1).astype(float),
    "mostly zero": np.where(normal_cells(100, 3) > 1.5, normal_cells(100, 3), 0.0),
}


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(ADVERSARIAL))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("handling", ["guarded", "robust"])
@pytest.mark.parametrize("init", list(STARTS))
def test_adversarial_cells_give_a_sound_fit(name, covariance_type, handling, init, assert_sound):
    x = ADVERSARIAL[name]
    options = {"covariance_type": covariance_type, "singularity_handling": handling, "init": init}
    for n_components, rounds in ((1, 0), (4, 0), (4, 1)):
        assert_sound(fit_mixture(x, n_components, split_merge=rounds, **options), x)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(ADVERSARIAL))
@pytest.mark.parametrize("handling", ["guarded", "robust"])
@pytest.mark.parametrize("init", list(STARTS))
@pytest.mark.usefixtures("screen_everything")
def test_adversarial_cells_give_a_sound_fit_where_pairs_are_left_out(name, handling, init, assert_sound):
    x = ADVERSARIAL[name]
    options = {"singularity_handling": handling, "init": init, "max_iter": 30}
    for rounds in (0, 1):
        fit = fit_mixture(x, 4, split_merge=rounds, **options)
        assert_sound(fit, x)
        assert fit.log_likelihood == pytest.approx(fit.model.log_prob(x.astype(float)).mean(), rel=1e-10, abs=1e-10)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", list(ADVERSARIAL))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_adversarial_cells_give_a_sound_fit_or_a_named_component_with_strict(name, covariance_type, assert_sound):
    x, options = ADVERSARIAL[name], {"covariance_type": covariance_type, "singularity_handling": "strict"}
    if fit_mixture(x, 4, covariance_type=covariance_type).floored.any():
        with pytest.raises(SingularCovarianceError, match=r"component [0-3] of 4"):
            fit_mixture(x, 4, **options)
    else:
        fit = fit_mixture(x, 4, **options)
        assert_sound(fit, x)
        assert not fit.floored.any()


def test_an_outlier_takes_one_component_and_leaves_the_others_their_cells():
    x = outlier_at(1e8)
    fit = fit_mixture(x, 2)
    alone = fit.model.responsibilities(x)[17].argmax()
    inliers = np.delete(x, 17, axis=0)
    assert fit.model.weights[alone] == pytest.approx(1 / len(x), rel=1e-9)
    np.testing.assert_allclose(fit.model.means[1 - alone], inliers.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(
        fit.model.covariances[1 - alone], np.cov(inliers, rowvar=False, bias=True), rtol=1e-9, atol=1e-9
    )
