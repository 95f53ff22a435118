"""Numbers near the ends of the range: a finite mixture or one clear line, and no warning (warnings are errors here)."""

import numpy as np
import pytest

from cohortgmm.errors import CohortgmmError, DataError, FitError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

N = 60


def cells(n_features):
    rng = np.random.default_rng(0)
    return np.vstack([rng.normal(size=(N, n_features)), rng.normal(6, 1, size=(N, n_features))])


def one_value(x, size):
    x[5, -1] = size
    return x


def one_cell(x, size):
    x[5] = -size
    return x


def one_feature(x, size):
    return x * np.r_[np.ones(x.shape[1] - 1), size]


PLACES = {
    "all": lambda x, size: x * size,
    "offset": lambda x, size: x + size,
    "one value": one_value,
    "one cell": one_cell,
    "one feature": one_feature,
}
KINDS = {
    "plain": lambda d: {},
    "diag": lambda d: {"covariance_type": "diag"},
    "robust": lambda d: {"singularity_handling": "robust"},
    "strict": lambda d: {"singularity_handling": "strict"},
    "shared noise": lambda d: {"noise": np.full(d, 0.1)},
    "own noise": lambda d: {"noise": np.random.default_rng(1).uniform(0.1, 0.2, size=(2 * N, d))},
    "background": lambda d: {"background": Background(np.full(d, -20.0), np.full(d, 20.0))},
    "cutoff": lambda d: {"cutoff": 5.0},
    "minmax": lambda d: {"init": "minmax"},
    "moves": lambda d: {"split_merge": 1},
    "completeness": lambda d: {"completeness": lambda x: np.full(len(x), 0.9), "max_iter": 3, "n_init": 1},
    "tiny floor": lambda d: {"eps": 1e-300},
    "huge floor": lambda d: {"eps": 1e300},
}


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-160, 1e-50, 1e20, 1e99, 1e101, 1e160, 1e200, 1e307])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("n_features", [1, 3, 20])
def test_a_fit_is_finite_or_one_clear_line(n_features, place, size):
    x = PLACES[place](cells(n_features), size / 10 if place == "all" else size)
    for kind, options in KINDS.items():
        try:
            fit = fit_mixture(x, 3, **({"max_iter": 10, "n_init": 2} | options(n_features)))
        except CohortgmmError as error:
            message = str(error)
            assert "\n" not in message, kind
            assert np.abs(x).max() > 1e100 or kind in ("strict", "background", "tiny floor"), (kind, message)
            continue
        assert all(np.isfinite(array).all() for array in (*fit.model.arrays().values(), fit.history)), kind
        assert fit.model.weights.sum() + (fit.model.background.amp if fit.model.background else 0) == pytest.approx(1)


@pytest.mark.parametrize("size", [1.01e100, 1e160, 1e200, 1e308])
def test_cells_whose_squares_overflow_are_counted_and_the_first_is_named(size):
    x = cells(2)
    x[[7, 90], [1, 0]] = -size, size
    with pytest.raises(DataError) as caught:
        fit_mixture(x, 2)
    expected = "2 values beyond 1e+100, the first in cell 7: squares would overflow, rescale the data"
    assert str(caught.value) == expected
    with pytest.raises(DataError) as caught:
        fit_mixture(cells(2), 2).model.log_prob(x)
    assert str(caught.value) == expected


def test_the_largest_single_precision_is_no_overflow():
    x = cells(2).astype(np.float32)
    x[3, 0] = np.finfo(np.float32).max
    assert np.isfinite(fit_mixture(x, 2).log_likelihood)


TINY = GaussianMixture([1.0], np.zeros((1, 2)), [1e-300 * np.eye(2)])


@pytest.mark.parametrize("method", ["log_prob", "responsibilities"])
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_density_that_overflows_names_the_cell(method, kind):
    model = TINY if kind == "full" else GaussianMixture([1.0], np.zeros((1, 2)), np.full((1, 2), 1e-300))
    assert np.isfinite(getattr(model, method)(np.ones((3, 2)))).all()
    with pytest.raises(
        DataError, match=r"^cell 1 is so far from every component that its log-density overflows: rescale"
    ):
        getattr(model, method)([[0.0, 0.0], [1e9, 0.0], [0.0, 0.0]])
    far = GaussianMixture([1.0], [[1e300, 0.0]], [np.eye(2)])
    with pytest.raises(DataError, match=r"^cell 0 is so far from every component"):
        getattr(far, method)([[0.0, 0.0]])


def test_a_frozen_component_too_far_from_the_cells_is_one_line():
    with pytest.raises(FitError, match=r"^the log-likelihood became -inf after 0 iterations; rescale the data$"):
        fit_mixture(cells(2) * 1e9, 1, initial=TINY, frozen={"mean": "all", "covar": "all"})


def test_a_start_that_is_tiny_or_far_is_brought_to_the_cells():
    x = cells(2)
    for start in (TINY, GaussianMixture([1.0], [[1e90, 0.0]], [np.eye(2)])):
        fit = fit_mixture(x, 1, initial=start)
        np.testing.assert_allclose(fit.model.means[0], x.mean(axis=0), rtol=1e-6)


def test_threads_do_not_warn_either(small_tiles):
    x = cells(3)
    x[:, 2] *= 1e90
    options = {"init": "random", "max_iter": 5, "eps": 1e-300}
    fits = [fit_mixture(x, 2, n_threads=n_threads, **options) for n_threads in (1, 3)]
    assert np.array_equal(*(fit.history for fit in fits))
