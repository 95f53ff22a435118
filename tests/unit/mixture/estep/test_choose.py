"""Fits by every way to make an E-step, on any number of threads, and on cells mapped from a file."""

import numpy as np
import pytest

from cohortgmm.errors import ConvergenceWarning
from cohortgmm.mixture import fit as em
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.incremental import IncrementalExpectation, ListedExpectation
from cohortgmm.mixture.estep.quadratic import QuadraticExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]


@pytest.fixture
def calls(monkeypatch):
    """Counts of E-steps by the class that makes them."""
    counts = {}
    for cls in (DenseExpectation, QuadraticExpectation, IncrementalExpectation, ListedExpectation):

        def count(self, *arguments, cls=cls, call=cls.__call__, **options):
            counts[cls] = counts.get(cls, 0) + 1
            return call(self, *arguments, **options)

        monkeypatch.setattr(cls, "__call__", count)
    return counts


@pytest.fixture(params=["quadratic", "listed"])
def screened_way(tune, screen_everything, request):
    """Fits that screen, and how they evaluate unsettled cells."""
    tune(few_unsettled_products=np.inf if request.param == "quadratic" else 0)
    return {"quadratic": QuadraticExpectation, "listed": ListedExpectation}[request.param]


@pytest.fixture
def overlapping(make_mixture):
    """Cells of six components in 20 features that overlap in part, and a mixture not far from theirs."""
    x = make_mixture(6, 20, spread=0.8, seed=2).sample(3000, 0)[0]
    with pytest.warns(ConvergenceWarning):
        initial = fit_mixture(x, 6, max_iter=3, tol=0).model
    return x, initial


def dense_fit(x, n_components, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, "choose_estep", lambda cells, *_: DenseExpectation(cells.whole))
        return fit_mixture(x, n_components, **options)


@pytest.mark.parametrize(
    ("n", "n_features", "n_components", "covariance_type", "expected"),
    [
        (100, 2, 3, "full", QuadraticExpectation),
        (10**5, 18, 30, "full", QuadraticExpectation),
        (10**5, 50, 30, "diag", QuadraticExpectation),
        (500, 30, 5, "full", DenseExpectation),
        (10**5, 50, 1, "full", DenseExpectation),
        (10**5, 50, 10, "full", ScreenedExpectation),
    ],
)
def test_the_way_follows_from_the_shape(n, n_features, n_components, covariance_type, expected):
    cells = Measurements(np.broadcast_to(np.float32(1.0), (n, n_features)))
    assert type(choose_estep(cells, n_components, covariance_type)) is expected


def test_screened_fits_converge_where_dense_ones_do(overlapping, screened_way, calls):
    x, initial = overlapping
    options = {"initial": initial, "tol": 1e-9, "max_iter": 2000}
    screened = fit_mixture(x, 6, **options)
    assert calls[IncrementalExpectation] > screened.n_iter
    assert calls[screened_way] > screened.n_iter / 2
    assert DenseExpectation not in calls
    dense = dense_fit(x, 6, **options)
    assert screened.converged
    assert dense.converged
    assert screened.log_likelihood == pytest.approx(dense.log_likelihood, abs=1e-7)
    # Gains below 1e-9 an iteration leave parameters of a few hundred cells within √1e-7 of a standard deviation.
    np.testing.assert_allclose(screened.model.means, dense.model.means, atol=1e-4)
    np.testing.assert_allclose(screened.model.weights, dense.model.weights, atol=1e-5)
    np.testing.assert_allclose(screened.model.covariances, dense.model.covariances, atol=1e-3)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize(("tol", "max_iter"), [(1e-9, 2000), (1e-3, 100), (0, 2), (0, 3), (0, 7), (0, 1)])
def test_screened_fits_never_fall_and_end_with_an_exact_likelihood(overlapping, screened_way, tol, max_iter):
    x, initial = overlapping
    fit = fit_mixture(x, 6, initial=initial, tol=tol, max_iter=max_iter)
    assert len(fit.history) == fit.n_iter + 1
    assert np.diff(fit.history).min() >= -1e-10 * np.abs(fit.history[-1])
    assert fit.history[0] == pytest.approx(initial.log_prob(x).mean(), abs=1e-10)
    assert fit.history[-1] == fit.log_likelihood == pytest.approx(fit.model.log_prob(x).mean(), abs=1e-10)
    assert fit.converged == (tol > 0)


@pytest.mark.parametrize("tol", [1e-2, 3e-3, 3e-4, 1e-4, 1e-6])
def test_screened_fits_stop_at_the_first_gain_below_tol(overlapping, screened_way, tol):
    x, initial = overlapping
    fit = fit_mixture(x, 6, initial=initial, tol=tol, max_iter=2000)
    gains = np.diff(fit.history)
    assert gains[-1] < tol
    assert (gains[:-1] >= tol).all()
    assert fit.log_likelihood == pytest.approx(fit.model.log_prob(x).mean(), abs=1e-10)


@pytest.mark.parametrize("init", list(STARTS))
@pytest.mark.usefixtures("screen_everything")
def test_screened_fits_end_as_high_as_dense_ones_from_every_start(make_mixture, assert_sound, init):
    x = make_mixture(5, 20, spread=1.0, seed=3).sample(1000, 0)[0]
    options = {"init": init, "tol": 1e-7, "max_iter": 1000, "n_init": 2, "split_merge": 1}
    screened = fit_mixture(x, 5, **options)
    assert_sound(screened, x)
    assert screened.log_likelihood == pytest.approx(dense_fit(x, 5, **options).log_likelihood, abs=1e-4)


@pytest.mark.usefixtures("screen_everything")
def test_collinear_features_do_not_end_a_screened_fit_too_early():
    """Half the directions hold no variance, and the others 1e12 times the floor: the bound must not drown in that."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    x = 1e4 * (rng.normal(size=(2000, 10)) + 1.2 * rng.normal(size=(5, 10))[rng.integers(5, size=2000)]) @ basis[:10]
    options = {"init": "random", "tol": 1e-6, "max_iter": 400}
    screened, dense = fit_mixture(x, 5, **options), dense_fit(x, 5, **options)
    assert np.diff(dense.history).min() >= 0
    assert np.diff(screened.history).min() >= -1e-10 * np.abs(screened.history[-1])
    assert screened.log_likelihood > dense.log_likelihood - 1e-4


@pytest.mark.usefixtures("stops_early")
@pytest.mark.usefixtures("screen_everything")
def test_a_component_that_dies_does_not_end_a_screened_fit(make_mixture, assert_sound):
    two = make_mixture(2, 20, spread=0.7)
    x, again = two.sample(600, 0)[0], [0, 1, 0]
    initial = type(two)([*two.weights, 1e-14], two.means[again], two.covariances[again])
    fit = fit_mixture(x, 3, initial=initial, tol=0, max_iter=5)
    assert_sound(fit, x)
    assert fit.model.weights[2] == 0


SHAPES = {
    "quadratic": (800, 3, 3, "full"),
    "quadratic diag": (800, 20, 3, "diag"),
    "dense": (800, 20, 3, "full"),
    "screened": (1500, 20, 4, "full"),
    "screened sample": (3000, 4, 3, "full"),
}


@pytest.fixture(params=list(SHAPES))
def threaded(tune, make_cells, small_tiles, request):
    """Cells of a shape that takes one of the ways, and options; its work is cut into several tiles."""
    n, n_features, n_components, covariance_type = SHAPES[request.param]
    if "screened" in request.param:
        tune(few_features=0)
        tune(few_products=0)
        tune(few_unsettled_products=0)
    x = make_cells(n, n_features, n_components=n_components, spread=0.9)
    options = {"covariance_type": covariance_type, "max_iter": 8, "tol": 0, "n_init": 2}
    way = choose_estep(Measurements(x), n_components, covariance_type)
    assert type(way).__name__.lower().startswith(request.param.split()[0])
    assert len(CellData(x).tiles(way.cells.n_features * n_components)) > 3
    assert len(way.tiles if isinstance(way, ScreenedExpectation) else getattr(way, "_tiles", range(4))) > 3
    return x, n_components, options


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("init", list(STARTS))
def test_the_number_of_threads_changes_no_bit(threaded, assert_bit_identical, init):
    x, n_components, options = threaded
    expected = fit_mixture(x, n_components, init=init, **options)
    for n_threads in (2, 3):
        assert_bit_identical(fit_mixture(x, n_components, init=init, n_threads=n_threads, **options), expected)


@pytest.mark.usefixtures("stops_early")
def test_the_number_of_threads_changes_no_bit_of_moves(threaded, assert_bit_identical):
    x, n_components, options = threaded
    expected = fit_mixture(x, n_components, split_merge=1, **options)
    assert_bit_identical(fit_mixture(x, n_components, split_merge=1, n_threads=3, **options), expected)


@pytest.mark.usefixtures("stops_early")
def test_float32_cells_of_a_file_are_fitted_as_their_float64_values(threaded, assert_bit_identical, tmp_path):
    x, n_components, options = threaded
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    in_memory = np.array(mapped, dtype=np.float64)
    for init in STARTS:
        expected = fit_mixture(in_memory, n_components, init=init, **options)
        assert_bit_identical(fit_mixture(mapped, n_components, init=init, **options), expected)
    assert_bit_identical(
        fit_mixture(mapped, n_components, singularity_handling="robust", **options),
        fit_mixture(in_memory, n_components, singularity_handling="robust", **options),
    )
