"""What may be a mixture: weights that sum to one, finite means, covariances that are symmetric and positive definite."""

import numpy as np
import pandas as pd
import pytest

from cohortgmm.errors import CohortgmmError, ConfigError, DataError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit

UNIT = np.eye(2)
HALVES = np.full(2, 0.5)
MEANS = np.array([[0.0, 1.0], [4.0, 5.0]])
BOX = Background([0.0, 0.0], [1.0, 1.0], amp=0.2)

INVALID = {
    "sum below one": (
        {"weights": [0.5, 0.4]},
        "weights of the mixture must sum to one, got 0.9: divide them by their sum",
    ),
    "sum above one": (
        {"weights": [0.5, 0.6]},
        "weights of the mixture must sum to one, got 1.1: divide them by their sum",
    ),
    "half precision": (
        {"weights": np.array([0.3333, 0.6665], dtype="f2")},
        "weights of the mixture must sum to one, got",
    ),
    "no weight": ({"weights": [0.0, 0.0]}, "weights of the mixture must sum to one, got 0: give at least one a weight"),
    "negative weight": (
        {"weights": [1.5, -0.5]},
        "weights of the mixture must not be negative: component 1 has -0.5",
    ),
    "masked weight": (
        {"weights": np.ma.array(HALVES, mask=[False, True])},
        "weights of the mixture are not all finite: component 1 has nan",
    ),
    "mean": (
        {"means": [[0.0, 0.0], [np.nan, 0.0]]},
        "means of the mixture are not all finite: component 1 has nan",
    ),
    "infinite covariance": (
        {"covariances": [UNIT, np.diag([1.0, np.inf])]},
        "covariances of the mixture are not all finite: component 1 has inf",
    ),
    "complex": (
        {"covariances": np.array([UNIT, UNIT]) + 0j},
        "covariances of the mixture must hold real numbers, got complex128",
    ),
    "text": ({"means": MEANS.astype(str)}, "means of the mixture must hold real numbers, got <U"),
    "indefinite": (
        {"covariances": [UNIT, [[1.0, 2.0], [2.0, 1.0]]]},
        "the covariance of component 1 is not positive definite, its smallest eigenvalue is -1: add a small variance to "
        "its diagonal, or remove the component",
    ),
    "zero": (
        {"covariances": np.zeros((2, 2, 2))},
        "the covariance of component 0 is not positive definite, its smallest eigenvalue is 0: ",
    ),
    "rank one": (
        {"covariances": [UNIT, np.ones((2, 2))]},
        "the covariance of component 1 is not positive definite, its smallest eigenvalue is ",
    ),
    "skew": (
        {"covariances": [UNIT, [[1.0, 0.2], [0.3, 1.0]]]},
        "the covariance of component 1 is not symmetric, it differs from its transpose by up to 0.1: take the mean of the "
        "two",
    ),
    "variance of zero": (
        {"covariances": [[1.0, 1.0], [1.0, 0.0]]},
        "the variances of component 1 must be positive, that of feature 1 is 0: raise it, or remove the component",
    ),
    "negative variance": (
        {"covariances": [[-1.0, 1.0], [1.0, 1.0]]},
        "the variances of component 0 must be positive, that of feature 0 is -1: ",
    ),
    "background": (
        {"background": BOX},
        "weights and the background's amplitude must sum to one, got 1.2: let the weights sum to 1 - 0.2",
    ),
}


def arguments(changed):
    return {"weights": HALVES, "means": MEANS, "covariances": [UNIT, UNIT]} | changed


@pytest.mark.parametrize("name", INVALID)
def test_invalid_mixtures_are_refused_in_one_line(name):
    changed, message = INVALID[name]
    with pytest.raises(DataError) as caught:
        GaussianMixture(**arguments(changed))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in INVALID if name != "background"])
@pytest.mark.parametrize("kind", [GaussianMixture, MixtureFit])
def test_invalid_mixtures_of_a_file_are_refused_by_its_name(tmp_path, make_cells, name, kind):
    fit, path = fit_mixture(make_cells(60, 2), 2), tmp_path / "model.npz"
    changed, message = INVALID[name]
    given = {key: np.ma.filled(np.asanyarray(value), np.nan) for key, value in arguments(changed).items()}
    np.savez(path, **(fit.arrays() | given))
    with pytest.raises(DataError) as caught:
        kind.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_background_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"^background must be a cohortgmm\.Background, got dict$"):
        GaussianMixture(**arguments({"background": {"amp": 0.1}}))


@pytest.mark.parametrize("n_components", [2, 3, 7, 30, 1000])
def test_weights_in_single_precision_are_weights(n_components):
    weights = np.random.default_rng(0).dirichlet(np.ones(n_components)).astype(np.float32)
    model = GaussianMixture(weights, np.zeros((n_components, 1)), np.ones((n_components, 1)))
    assert np.array_equal(model.weights, weights)


def test_a_background_takes_its_share():
    model = GaussianMixture(**arguments({"weights": [0.3, 0.5], "background": BOX}))
    assert model.weights.sum() + model.background.amp == pytest.approx(1.0)
    every = GaussianMixture([0.0], [[0.0]], [[1.0]], Background([0.0], [1.0], amp=1.0))
    assert every.log_prob([[0.5], [5.0]]).tolist() == [0.0, -np.inf]


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_the_units_of_the_features_do_not_matter(scale):
    covariance = np.array([[1.0, 0.999], [0.999, 1.0]])
    assert GaussianMixture([1.0], [[0.0, 0.0]], [scale * covariance]).n_components == 1
    units = np.diag([1e-30, 1e30])
    assert GaussianMixture([1.0], [[0.0, 0.0]], [units @ covariance @ units]).n_components == 1


@pytest.mark.parametrize("n_features", [2, 10, 50, 200])
def test_singular_to_double_precision_is_singular(n_features):
    root = np.random.default_rng(0).normal(size=(n_features, n_features - 1))
    with pytest.raises(DataError, match="component 0 is not positive definite"):
        GaussianMixture([1.0], np.zeros((1, n_features)), [root @ root.T])


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("eps", [1e-12, 1e-4])
def test_fits_at_the_floor_can_be_saved_and_loaded(tmp_path, covariance_type, eps):
    x = np.random.default_rng(0).normal(size=(12, 30)) * np.logspace(0, 5, 30)
    fit = fit_mixture(x, 3, covariance_type=covariance_type, eps=eps)
    assert fit.floored.any() or covariance_type == "diag"
    fit.save(tmp_path / "fit")
    for name, array in fit.arrays().items():
        assert np.array_equal(MixtureFit.load(tmp_path / "fit").arrays()[name], array)


def test_covariances_that_are_skew_by_rounding_become_symmetric():
    skew = np.array([[1.0, 0.2], [0.2000001, 1.0]])
    covariance = GaussianMixture([1.0], [[0.0, 0.0]], [skew]).covariances[0]
    assert np.array_equal(covariance, covariance.T)
    assert np.abs(covariance - skew).max() < 1e-7


@pytest.mark.parametrize("make", [np.float16, np.float32, ">f8", np.longdouble, object, int])
def test_other_numbers_become_double(make):
    model = GaussianMixture(
        np.array([1], dtype=make), np.array([[0, 3]], dtype=make), np.array([[[2, 1], [1, 2]]], dtype=make)
    )
    assert all(array.dtype == np.float64 and array.dtype.isnative for array in model.arrays().values())
    assert model.covariances.tolist() == [[[2, 1], [1, 2]]]


def test_tables_are_taken():
    model = GaussianMixture(pd.Series(HALVES), pd.DataFrame(MEANS), pd.DataFrame(np.ones((2, 2))))
    assert np.array_equal(model.means, MEANS)


@pytest.mark.parametrize("bad", [None, "x", {}, [[1.0], [1.0, 2.0]], object()])
@pytest.mark.parametrize("name", ["weights", "means", "covariances"])
def test_what_is_no_array_is_refused_by_name(name, bad):
    with pytest.raises(CohortgmmError, match=f"^{name} of the mixture must "):
        GaussianMixture(**arguments({name: bad}))


def test_a_mixture_does_not_follow_the_arrays_it_was_made_of():
    weights, means, covariances = np.array([1.0]), np.zeros((1, 2)), np.eye(2)[None]
    model = GaussianMixture(weights, means, covariances)
    for array in (weights, means, covariances):
        array[:] = 7.0
    assert model.log_prob(np.zeros((1, 2))) == pytest.approx(-np.log(2 * np.pi))
    assert model.means.tolist() == [[0.0, 0.0]]
