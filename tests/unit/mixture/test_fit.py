"""Fits against closed forms and scikit-learn, what they return, their starts and their arguments."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from cohortgmm.errors import ConfigError, DataError, FitError, SingularCovarianceError
from cohortgmm.mixture.em.initialize import STARTS
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.result import MixtureFit

COVARIANCE_TYPES = ["full", "diag"]

# A floor far below every eigenvalue of ordinary test data: the fit is plain maximum likelihood.
NO_FLOOR = 1e-12


# ---- against truth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_one_component_is_the_closed_form(make_cells, covariance_type, n_features, offset):
    x = offset + make_cells(300, n_features)
    fit = fit_mixture(x, 1, covariance_type=covariance_type, eps=NO_FLOOR)
    covariance = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    if covariance_type == "diag":
        covariance = np.diag(np.diag(covariance))
    log_likelihood = -0.5 * (n_features * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + n_features)
    assert fit.model.weights.tolist() == [1.0]
    # An offset of 1e5 takes five digits from the deviations, and twice that from nothing: 1e-10 of unit variances.
    np.testing.assert_allclose(fit.model.means[0], x.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(fit.model.full_covariances[0], covariance, rtol=1e-9, atol=1e-10)
    assert fit.log_likelihood == pytest.approx(log_likelihood, rel=1e-10)
    assert fit.converged


def sklearn_history(x, start, n_iter):
    """Mean log-likelihood of the start and after each iteration, and the last mixture, by scikit-learn."""
    full = start.covariance_type == "full"
    theirs = SklearnMixture(
        start.n_components,
        covariance_type=start.covariance_type,
        tol=0,
        reg_covar=0,
        max_iter=1,
        warm_start=True,
        init_params="random_from_data",
        weights_init=start.weights,
        means_init=start.means,
        precisions_init=np.linalg.inv(start.covariances) if full else 1 / start.covariances,
        random_state=0,
    )
    history = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(n_iter):
            history.append(theirs.fit(x).lower_bound_)
    return np.array([*history, theirs.score(x)]), theirs


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10, 20])
@pytest.mark.parametrize("seed", range(3))
def test_every_iteration_is_scikit_learns_from_the_same_start(
    make_cells, start_at_cells, covariance_type, n_features, seed
):
    x = make_cells(300 if n_features < 20 else 800, n_features, seed=seed, spread=2.0)
    start = start_at_cells(x, 3, covariance_type, seed=seed)
    ours = fit_mixture(x, 3, covariance_type=covariance_type, initial=start, tol=0, max_iter=25, eps=NO_FLOOR)
    history, theirs = sklearn_history(x, start, ours.n_iter)
    assert not ours.floored.any()
    assert ours.n_iter == 25 or abs(ours.history[-1] - ours.history[-2]) < 1e-12  # nothing left to gain
    # Rounding of 1e-15 an iteration, amplified a few thousandfold by slowly converging directions of EM.
    np.testing.assert_allclose(ours.history, history, rtol=0, atol=1e-8)
    np.testing.assert_allclose(ours.model.weights, theirs.weights_, atol=1e-6)
    np.testing.assert_allclose(ours.model.means, theirs.means_, atol=1e-6)
    np.testing.assert_allclose(ours.model.covariances, theirs.covariances_, atol=1e-6)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_parameters_of_separate_clusters_are_found(make_mixture, covariance_type):
    truth = make_mixture(3, 3, covariance_type, seed=1, spread=20.0)
    x = truth.sample(6000, 0)[0]
    fit = fit_mixture(x, 3, covariance_type=covariance_type)
    order = [int(np.linalg.norm(fit.model.means - mean, axis=1).argmin()) for mean in truth.means]
    assert sorted(order) == [0, 1, 2]
    # About 1,500 cells a component and variances up to 6: standard errors of 0.013, 0.06 and 0.2; five of them.
    np.testing.assert_allclose(fit.model.weights[order], truth.weights, atol=0.03)
    np.testing.assert_allclose(fit.model.means[order], truth.means, atol=0.3)
    np.testing.assert_allclose(fit.model.covariances[order], truth.covariances, atol=1.0)


# ---- what is returned ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("max_iter", [1, 3, 500])
def test_log_likelihood_is_that_of_the_returned_model(make_cells, covariance_type, max_iter, assert_sound):
    x = make_cells(300, 2, spread=1.5)
    fit = fit_mixture(x, 3, covariance_type=covariance_type, max_iter=max_iter, tol=1e-6)
    assert_sound(fit, x)
    assert fit.log_likelihood == pytest.approx(fit.model.log_prob(x).mean(), abs=1e-10)
    assert fit.n_iter <= max_iter


@pytest.mark.usefixtures("stops_early")
def test_max_iter_stops_without_convergence_and_enough_iterations_converge(make_cells):
    x = make_cells(300, 2, spread=1.5)
    short, long = fit_mixture(x, 3, max_iter=2, tol=1e-9), fit_mixture(x, 3, max_iter=5000, tol=1e-9)
    assert (short.n_iter, short.converged) == (2, False)
    assert long.converged
    assert 2 < long.n_iter < 5000
    np.testing.assert_array_equal(long.history[:3], short.history)


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-6])
def test_the_fit_stops_at_the_first_gain_below_tol(make_cells, tol):
    gains = np.diff(fit_mixture(make_cells(300, 2, spread=1.5), 3, tol=tol, max_iter=5000).history)
    assert gains[-1] < tol
    assert (gains[:-1] >= tol).all()


@pytest.mark.usefixtures("stops_early")
def test_converging_in_the_last_iteration_allowed_counts(make_cells):
    x = make_cells(300, 2, spread=1.5)
    enough = fit_mixture(x, 3, max_iter=5000).n_iter
    assert fit_mixture(x, 3, max_iter=enough).converged
    assert not fit_mixture(x, 3, max_iter=enough - 1).converged


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_save_and_load_give_back_the_fit(make_cells, tmp_path, covariance_type, assert_bit_identical):
    x = make_cells(100, 2) * [1, 0]
    fit = fit_mixture(x, 2, covariance_type=covariance_type)
    assert fit.floored.all()
    assert (fit.n_unobserved, fit.completeness, fit.n_empty) == (0, 1, 0)
    fit = replace(fit, n_unobserved=12.5, completeness=0.875, n_empty=3)
    fit.save(tmp_path / "fit.npz")
    assert_bit_identical(MixtureFit.load(tmp_path / "fit.npz"), fit)
    assert np.array_equal(GaussianMixture.load(tmp_path / "fit.npz").means, fit.model.means)


def test_load_refuses_a_mixture_without_its_fit(make_mixture, tmp_path):
    make_mixture(2, 2).save(tmp_path / "model.npz")
    with pytest.raises(
        DataError,
        match="holds no fit: completeness, converged, floored, history, n_empty, n_iter, n_unobserved missing",
    ):
        MixtureFit.load(tmp_path / "model.npz")


def test_load_refuses_a_file_without_a_mixture(tmp_path):
    np.savez(tmp_path / "skipped.npz", skipped=True)
    with pytest.raises(DataError, match="holds no mixture"):
        MixtureFit.load(tmp_path / "skipped.npz")


# ---- starts and seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", list(STARTS))
def test_the_best_of_n_init_starts_is_kept(make_cells, init, assert_bit_identical):
    x = make_cells(150, 2, n_components=6, spread=2.0)
    rng = np.random.default_rng(3)
    singles = [fit_mixture(x, 5, init=init, random_state=rng) for _ in range(6)]
    best = max(singles, key=lambda fit: fit.log_likelihood)
    assert best is not singles[0], "the data must make the starts differ, or this test shows nothing"
    assert_bit_identical(fit_mixture(x, 5, init=init, n_init=6, random_state=np.random.default_rng(3)), best)


@pytest.mark.parametrize("init", list(STARTS))
def test_a_seed_gives_one_result_in_whatever_form_it_comes(make_cells, init, assert_bit_identical):
    x = make_cells(200, 3, spread=1.0)
    first = fit_mixture(x, 4, init=init, random_state=5)
    for seed in (5, np.random.SeedSequence(5), np.random.default_rng(5)):
        assert_bit_identical(fit_mixture(x, 4, init=init, random_state=seed), first)
    assert fit_mixture(x, 4, init=init, random_state=6).log_likelihood != first.log_likelihood


def test_the_global_generator_is_neither_used_nor_moved(make_cells):
    x = make_cells(100, 2)
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    fit_mixture(x, 3, n_init=2)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_initial_is_where_the_fit_starts(make_cells, make_mixture, covariance_type, assert_bit_identical):
    x, initial = make_cells(200, 2), make_mixture(3, 2, covariance_type, seed=9)
    before = {name: array.copy() for name, array in initial.arrays().items()}
    fit = fit_mixture(x, 3, covariance_type=covariance_type, initial=initial, random_state=0)
    assert fit.history[0] == pytest.approx(initial.log_prob(x).mean(), abs=1e-10)
    assert_bit_identical(
        fit_mixture(x, 3, covariance_type=covariance_type, initial=initial, n_init=4, random_state=1), fit
    )
    for name, array in initial.arrays().items():
        assert np.array_equal(array, before[name])


@pytest.mark.usefixtures("stops_early")
def test_a_fit_goes_on_where_it_was_stopped(make_cells):
    x = make_cells(300, 2, spread=1.5)
    whole = fit_mixture(x, 3, tol=0, max_iter=9)
    first = fit_mixture(x, 3, tol=0, max_iter=4)
    rest = fit_mixture(x, 3, tol=0, max_iter=5, initial=first.model)
    np.testing.assert_array_equal(np.append(first.history[:-1], rest.history), whole.history)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_initial_below_the_floor_is_brought_above_it_and_does_not_pass_for_converged(make_cells, covariance_type):
    x = make_cells(300, 2, spread=1.0) * [1, 0]
    narrow = fit_mixture(x, 3, covariance_type=covariance_type, eps=1e-8, max_iter=1).model
    options = {"covariance_type": covariance_type, "initial": narrow, "eps": 1e-2, "tol": 1e-6, "max_iter": 20}
    fit = fit_mixture(x, 3, **options)
    assert fit.n_iter > 2
    assert np.diff(fit.history).min() > -1e-10
    with pytest.raises(SingularCovarianceError):
        fit_mixture(x, 3, **options, singularity_handling="strict")


def test_singular_initial_is_floored(make_cells, assert_sound):
    initial = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [1e-12 * np.eye(2)] * 2)
    x = make_cells(100, 2)
    assert_sound(fit_mixture(x, 2, initial=initial), x)


@pytest.mark.parametrize(("shape", "covariance_type"), [((2, 2), "full"), ((3, 4), "full"), ((3, 2), "diag")])
def test_initial_that_does_not_fit_the_question_is_refused(make_cells, make_mixture, shape, covariance_type):
    with pytest.raises(ConfigError, match="asks for 3 full components in 2"):
        fit_mixture(make_cells(50, 2), 3, initial=make_mixture(*shape, covariance_type))


# ---- arguments and data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", 0),
        ("n_components", -1),
        ("n_components", 2.0),
        ("max_iter", 0),
        ("max_iter", 1.5),
        ("n_init", 0),
        ("n_init", 2.5),
        ("split_merge", -1),
        ("split_merge", 1.0),
        ("n_threads", 0),
        ("n_threads", -1),
        ("n_threads", 2.5),
        ("tol", -1e-9),
        ("tol", float("nan")),
        ("eps", 0),
        ("eps", -1.0),
        ("eps", float("nan")),
        ("eps", float("inf")),
    ],
)
def test_numbers_out_of_range_are_config_errors(make_cells, name, value):
    with pytest.raises(ConfigError, match=f"{name} is out of range: {value!r}"):
        fit_mixture(make_cells(20, 2), **({"n_components": 2} | {name: value}))


@pytest.mark.parametrize("name", ["covariance_type", "singularity_handling", "init"])
@pytest.mark.parametrize("value", ["tied", "FULL", None])
def test_unknown_names_are_config_errors_that_list_the_known(make_cells, name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be one of '.*', got {value!r}"):
        fit_mixture(make_cells(20, 2), 2, **{name: value})


@pytest.mark.usefixtures("stops_early")
def test_numpy_integers_are_integers(make_cells):
    counts = {"max_iter": np.int32(3), "n_init": np.int8(1), "split_merge": np.uint8(0), "n_threads": np.int16(2)}
    assert fit_mixture(make_cells(50, 2), np.int64(2), **counts).n_iter <= 3


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_counted_and_placed(make_cells, value):
    x = make_cells(30, 3)
    x[7, 2] = x[7, 0] = x[12, 1] = value
    x[3, 1] = np.nan  # a missing feature, which is no error
    with pytest.raises(DataError, match=r"^3 infinite values, the first in cell 7"):
        fit_mixture(x, 2)


@pytest.mark.parametrize(("n", "n_components"), [(0, 1), (3, 4)])
def test_fewer_cells_than_components_are_refused(n, n_components):
    with pytest.raises(DataError, match=f"{n} cells are too few for {n_components} components"):
        fit_mixture(np.zeros((n, 2)), n_components)


def test_a_likelihood_that_overflows_is_a_fit_error(make_mixture):
    x = np.full((10, 2), 1e99)
    tiny = GaussianMixture([1.0], [[0.0, 0.0]], [1e-150 * np.eye(2)])
    with np.errstate(all="ignore"), pytest.raises(FitError, match=r"log-likelihood became .* rescale the data"):
        fit_mixture(x, 1, initial=tiny, frozen={"mean": "all", "covar": "all"})
