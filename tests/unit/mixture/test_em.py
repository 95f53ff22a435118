"""Fits against closed forms and scikit-learn, their arguments, and data that break naive code."""

import warnings
from dataclasses import fields

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from cohortgmm.errors import ConfigError, DataError, FitError, SingularCovarianceError
from cohortgmm.mixture.em import MixtureFit, check_cells, fit_mixture
from cohortgmm.mixture.gaussian import covariance_floor
from cohortgmm.mixture.model import GaussianMixture

COVARIANCE_TYPES = ["full", "diag"]

# A floor far below every eigenvalue of ordinary test data: the fit is plain maximum likelihood.
NO_FLOOR = 1e-12


def assert_bit_identical(left, right):
    for name, array in left.model.arrays().items():
        assert np.array_equal(array, getattr(right.model, name)), name
    for field in fields(MixtureFit):
        if field.name != "model":
            assert np.array_equal(getattr(left, field.name), getattr(right, field.name)), field.name


def assert_sound(fit, x):
    """Finite, mass one, positive definite, and the likelihood that the model has."""
    model = fit.model
    assert all(np.isfinite(array).all() for array in (*model.arrays().values(), fit.history))
    assert model.weights.min() >= 0
    assert model.weights.sum() == pytest.approx(1, rel=1e-12)
    assert np.linalg.eigvalsh(model.full_covariances).min() > 0
    assert fit.log_likelihood == fit.history[-1]
    assert len(fit.history) == fit.n_iter + 1
    assert np.isfinite(model.log_prob(np.asarray(x, dtype=float))).all()
    assert np.isfinite(model.responsibilities(np.asarray(x, dtype=float))).all()


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


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 2, 10])
@pytest.mark.parametrize("seed", range(3))
def test_every_iteration_is_scikit_learns_from_the_same_start(
    make_cells, start_at_cells, covariance_type, n_features, seed
):
    x = make_cells(300, n_features, seed=seed, spread=2.0)
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


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("max_iter", [1, 3, 500])
def test_log_likelihood_is_that_of_the_returned_model(make_cells, covariance_type, max_iter):
    x = make_cells(300, 2, spread=1.5)
    fit = fit_mixture(x, 3, covariance_type=covariance_type, max_iter=max_iter, tol=1e-6)
    assert_sound(fit, x)
    assert fit.log_likelihood == pytest.approx(fit.model.log_prob(x).mean(), abs=1e-10)
    assert fit.n_iter <= max_iter


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


def test_converging_in_the_last_iteration_allowed_counts(make_cells):
    x = make_cells(300, 2, spread=1.5)
    enough = fit_mixture(x, 3, max_iter=5000).n_iter
    assert fit_mixture(x, 3, max_iter=enough).converged
    assert not fit_mixture(x, 3, max_iter=enough - 1).converged


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_save_and_load_give_back_the_fit(make_cells, tmp_path, covariance_type):
    x = make_cells(100, 2) * [1, 0]
    fit = fit_mixture(x, 2, covariance_type=covariance_type)
    assert fit.floored.all()
    fit.save(tmp_path / "fit.npz")
    assert_bit_identical(MixtureFit.load(tmp_path / "fit.npz"), fit)
    assert np.array_equal(GaussianMixture.load(tmp_path / "fit.npz").means, fit.model.means)


def test_load_refuses_a_mixture_without_its_fit(make_mixture, tmp_path):
    make_mixture(2, 2).save(tmp_path / "model.npz")
    with pytest.raises(DataError, match="holds no fit: converged, floored, history, n_iter missing"):
        MixtureFit.load(tmp_path / "model.npz")


def test_load_refuses_a_file_without_a_mixture(tmp_path):
    np.savez(tmp_path / "skipped.npz", skipped=True)
    with pytest.raises(DataError, match="holds no mixture"):
        MixtureFit.load(tmp_path / "skipped.npz")


# ---- starts and seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_the_best_of_n_init_starts_is_kept(make_cells, init):
    x = make_cells(150, 2, n_components=6, spread=2.0)
    rng = np.random.default_rng(3)
    singles = [fit_mixture(x, 5, init=init, random_state=rng) for _ in range(6)]
    best = max(singles, key=lambda fit: fit.log_likelihood)
    assert best is not singles[0], "the data must make the starts differ, or this test shows nothing"
    assert_bit_identical(fit_mixture(x, 5, init=init, n_init=6, random_state=np.random.default_rng(3)), best)


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_a_seed_gives_one_result_in_whatever_form_it_comes(make_cells, init):
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
def test_initial_is_where_the_fit_starts(make_cells, make_mixture, covariance_type):
    x, initial = make_cells(200, 2), make_mixture(3, 2, covariance_type, seed=9)
    before = {name: array.copy() for name, array in initial.arrays().items()}
    fit = fit_mixture(x, 3, covariance_type=covariance_type, initial=initial, random_state=0)
    assert fit.history[0] == pytest.approx(initial.log_prob(x).mean(), abs=1e-10)
    assert_bit_identical(
        fit_mixture(x, 3, covariance_type=covariance_type, initial=initial, n_init=4, random_state=1), fit
    )
    for name, array in initial.arrays().items():
        assert np.array_equal(array, before[name])


def test_a_fit_goes_on_where_it_was_stopped(make_cells):
    x = make_cells(300, 2, spread=1.5)
    whole = fit_mixture(x, 3, tol=0, max_iter=9)
    first = fit_mixture(x, 3, tol=0, max_iter=4)
    rest = fit_mixture(x, 3, tol=0, max_iter=5, initial=first.model)
    np.testing.assert_array_equal(np.append(first.history[:-1], rest.history), whole.history)


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


def test_singular_initial_is_floored(make_cells):
    initial = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], np.zeros((2, 2, 2)))
    x = make_cells(100, 2)
    assert_sound(fit_mixture(x, 2, initial=initial), x)


@pytest.mark.parametrize(("shape", "covariance_type"), [((2, 2), "full"), ((3, 4), "full"), ((3, 2), "diag")])
def test_initial_that_does_not_fit_the_question_is_refused(make_cells, make_mixture, shape, covariance_type):
    with pytest.raises(ConfigError, match="asks for 3 full components in 2"):
        fit_mixture(make_cells(50, 2), 3, initial=make_mixture(*shape, covariance_type))


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
@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_singular_data_are_fitted_at_the_floor(make, covariance_type, handling, init):
    x = make(np.random.default_rng(0))
    fit = fit_mixture(x, 2, covariance_type=covariance_type, singularity_handling=handling, init=init, eps=1e-3)
    assert_sound(fit, x)
    floor = covariance_floor(x, 1e-3, handling)
    smallest = np.linalg.eigvalsh(fit.model.full_covariances).min()
    assert smallest >= floor * (1 - 1e-9)  # rebuilding from eigenvectors rounds at 1e-16 of the largest eigenvalue
    assert np.diff(fit.history).min() >= -1e-10
    if is_singular(make, covariance_type):
        assert smallest == pytest.approx(floor, rel=1e-9)
        assert fit.floored.any()


@pytest.mark.parametrize("make", SINGULAR)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("init", ["kmeans", "random"])
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


def test_strict_is_the_guarded_fit_where_nothing_is_singular(make_cells):
    x = make_cells(300, 3)
    assert_bit_identical(fit_mixture(x, 3, singularity_handling="strict"), fit_mixture(x, 3))


def test_robust_floors_more_than_guarded(make_cells):
    x = make_cells(200, 3) * [1, 1, 1e-3]
    guarded, robust = (fit_mixture(x, 2, singularity_handling=name, eps=1e-9) for name in ("guarded", "robust"))
    assert not guarded.floored.any()
    assert robust.floored.all()


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


def test_numpy_integers_are_integers(make_cells):
    assert fit_mixture(make_cells(50, 2), np.int64(2), max_iter=np.int32(3), n_init=np.int8(1)).n_iter <= 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_placed(make_cells, value):
    x = make_cells(30, 3)
    x[7, 2] = x[7, 0] = x[12, 1] = value
    with pytest.raises(DataError, match="3 NaN or infinite values, the first in cell 7"):
        fit_mixture(x, 2)


@pytest.mark.parametrize("shape", [(10,), (2, 5, 3), (10, 0), ()])
def test_other_than_two_dimensional_cells_are_refused(shape):
    with pytest.raises(DataError, match=r"must be an array of shape \(n, D\)"):
        fit_mixture(np.zeros(shape), 1)


@pytest.mark.parametrize(("n", "n_components"), [(0, 1), (3, 4)])
def test_fewer_cells_than_components_are_refused(n, n_components):
    with pytest.raises(DataError, match=f"{n} cells are too few for {n_components} components"):
        fit_mixture(np.zeros((n, 2)), n_components)


@pytest.mark.parametrize("x", [[["a", "b"]], [[1.0, 2.0], [3.0]], [[{}, 1]]], ids=["text", "ragged", "objects"])
def test_cells_that_are_not_numbers_are_refused(x):
    with pytest.raises(DataError, match="numeric"):
        fit_mixture(x, 1)


def test_check_cells_hands_float64_through_and_converts_the_rest():
    x = np.zeros((3, 2))
    assert check_cells(x) is x
    assert check_cells([[1, 2]]).dtype == np.float64


def test_a_likelihood_that_overflows_is_a_fit_error(make_mixture):
    x = np.full((10, 2), 1e200)
    with np.errstate(all="ignore"), pytest.raises(FitError, match=r"log-likelihood became .* rescale the data"):
        fit_mixture(x, 2, initial=make_mixture(2, 2))


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


@pytest.mark.parametrize("layout", [fortran_order, strided, reversed_view, read_only, nested_lists])
@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_the_layout_in_memory_does_not_matter(make_cells, layout, init):
    x = make_cells(200, 3, spread=5.0)
    expected, fit = (fit_mixture(data, 3, init=init, max_iter=20) for data in (x, layout(x)))
    # Matrix products add in another order for another layout.
    np.testing.assert_allclose(fit.history, expected.history, rtol=1e-9)
    np.testing.assert_allclose(fit.model.means, expected.model.means, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, bool])
def test_other_types_are_fitted_as_their_float64_values(dtype):
    x = np.random.default_rng(0).integers(0, 20, size=(100, 2)).astype(dtype)
    fit = fit_mixture(x, 2)
    assert_bit_identical(fit, fit_mixture(x.astype(np.float64), 2))
    assert fit.model.means.dtype == np.float64


def test_the_cells_are_left_as_they_were(make_cells):
    x = make_cells(100, 2)
    before = x.copy()
    for init in ("kmeans", "random"):
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


@pytest.mark.parametrize("name", list(ADVERSARIAL))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("handling", ["guarded", "robust"])
@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_adversarial_cells_give_a_sound_fit(name, covariance_type, handling, init):
    x = ADVERSARIAL[name]
    for n_components in (1, 4):
        fit = fit_mixture(x, n_components, covariance_type=covariance_type, singularity_handling=handling, init=init)
        assert_sound(fit, x)


@pytest.mark.parametrize("name", list(ADVERSARIAL))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_adversarial_cells_give_a_sound_fit_or_a_named_component_with_strict(name, covariance_type):
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
