"""Fits with frozen parameters."""

import numpy as np
import pytest
from scipy import optimize

from cohortgmm.errors import CohortgmmError, ConfigError, SingularCovarianceError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

COVARIANCE_TYPES = ["full", "diag"]

KINDS = {"amp": "weights", "mean": "means", "covar": "covariances"}

SUBSETS = [("amp",), ("mean",), ("covar",), ("amp", "mean"), ("amp", "covar"), ("mean", "covar"), tuple(KINDS)]


def above(c):
    return lambda x: np.where(x[:, 0] > c, 1.0, 0.3)


@pytest.fixture
def few_nodes(tune):
    tune(most_nodes=1 << 12)


# ---- fits ----------------------------------------------------------------------------------------------------------


COMPLICATIONS = {
    "plain": {},
    "noise": {"noise": True},
    "missing": {"missing": True},
    "background": {"background": True},
    "fixed background": {"background": False},
    "truncated": {"completeness": above(0.5)},
    "everything": {"noise": True, "missing": True, "background": True, "completeness": above(0.5)},
}


def initial_mixture(covariance_type, background=None):
    weights = np.array([0.37, 0.23, 0.41]) / 1.01
    means = np.array([[-2.1, 0.3], [1.9, 2.2], [3.3, -1.7]])
    if covariance_type == "diag":
        covariances = np.array([[1.3, 0.7], [0.9, 1.1], [0.6, 1.7]])
    else:
        covariances = np.array([[[1.3, 0.4], [0.4, 0.7]], [[0.9, -0.2], [-0.2, 1.1]], [[0.6, 0.1], [0.1, 1.7]]])
    model = GaussianMixture(weights, means, covariances)
    return model if background is None else model.with_background(background)


def mean_log_prob(model, x, noise=None):
    """Of the cells that have a feature at all."""
    return model.log_prob(x, noise)[~np.isnan(x).all(axis=1)].mean()


def complicated(name, covariance_type, n=150):
    """Cells of another mixture than the initial one, and the arguments that go with the complication."""
    asked, rng = dict(COMPLICATIONS[name]), np.random.default_rng(4)
    truth = initial_mixture(covariance_type)
    truth = GaussianMixture(np.array([0.2, 0.5, 0.3]), truth.means + 0.5, 1.3 * truth.covariances)
    x = truth.sample(n, 4)[0]
    options = {"covariance_type": covariance_type}
    background = None
    if "background" in asked:
        background = Background([-7.0, -7.0], [8.0, 8.0], 0.1, adjust_amp=asked["background"])
        x[: n // 10] = rng.uniform(-7, 8, size=(n // 10, 2))
    if "noise" in asked:
        options["noise"] = rng.uniform(0.1, 0.6, size=x.shape)
        x = x + np.sqrt(options["noise"]) * rng.normal(size=x.shape)
    if "completeness" in asked:
        options["completeness"] = lambda places: above(0.5)(np.nan_to_num(places))
    if "missing" in asked:
        x[rng.random(x.shape) < 0.15] = np.nan
    options["initial"] = initial_mixture(covariance_type, background)
    return x, options


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("name", list(COMPLICATIONS))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize(("kinds", "handling"), [*((kinds, "guarded") for kinds in SUBSETS), (tuple(KINDS), "strict")])
def test_frozen_parameters_end_in_the_bits_that_they_began_with(name, covariance_type, kinds, handling):
    x, options = complicated(name, covariance_type)
    initial = options["initial"]
    frozen = {kind: [0] if kind == "amp" else [1, 2] for kind in kinds}
    fit = fit_mixture(x, 3, frozen=frozen, singularity_handling=handling, max_iter=20, tol=1e-6, **options)
    for kind, attribute in KINDS.items():
        now, then = getattr(fit.model, attribute), getattr(initial, attribute)
        for k in range(3):
            stays = k in frozen.get(kind, [])
            assert np.array_equal(now[k], then[k]) == stays, (attribute, k)
    amp = 0.0
    if initial.background is not None:
        amp = fit.model.background.amp
        assert (amp == initial.background.amp) == (name == "fixed background")
    assert fit.model.weights.sum() + amp == pytest.approx(1, rel=1e-12)
    assert fit.model.weights.min() >= 0
    if "completeness" not in options:  # else the nodes are made again on the way
        assert np.diff(fit.history).min() >= -1e-12
        assert fit.log_likelihood == pytest.approx(mean_log_prob(fit.model, x, options.get("noise")), rel=1e-10)


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("name", list(COMPLICATIONS))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_mixture_that_is_frozen_whole_stays_and_is_evaluated(name, covariance_type):
    x, options = complicated(name, covariance_type)
    initial = options["initial"]
    fit = fit_mixture(x, 3, frozen=dict.fromkeys(KINDS, "all"), **options)
    for part, array in initial.arrays().items():
        assert np.array_equal(fit.model.arrays()[part], array), part
    expected = mean_log_prob(initial, x, options.get("noise")) - np.log(fit.completeness)
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-10)
    assert fit.converged


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("singularity_handling", ["guarded", "robust", "strict"])
@pytest.mark.parametrize("noise", [None, np.array([0.2, 0.3])])
def test_a_frozen_covariance_may_be_below_the_floor(covariance_type, singularity_handling, noise):
    x, options = complicated("plain", covariance_type)
    tiny = options["initial"].covariances.copy()
    tiny[1] *= 1e-9
    initial = GaussianMixture(options["initial"].weights, options["initial"].means, tiny)
    fit = fit_mixture(
        x,
        3,
        initial=initial,
        covariance_type=covariance_type,
        singularity_handling=singularity_handling,
        eps=1e-3,
        frozen={"covar": [1], "mean": [1]},
        noise=noise,
    )
    assert np.array_equal(fit.model.covariances[1], tiny[1])
    assert np.array_equal(fit.model.means[1], initial.means[1])
    assert np.linalg.eigvalsh(fit.model.full_covariances[[0, 2]]).min() >= 1e-3
    assert not fit.floored[[0, 2]].any()
    if singularity_handling == "strict":
        with pytest.raises(SingularCovarianceError, match="component 1 of 3"):
            fit_mixture(
                x, 3, initial=initial, covariance_type=covariance_type, singularity_handling="strict", noise=noise
            )


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("background", [None, Background([-9.0, -9.0], [9.0, 9.0], 0.1)])
@pytest.mark.parametrize("kinds", SUBSETS)
def test_a_frozen_component_without_any_cell_stays(covariance_type, background, kinds):
    """Far from all cells: what is frozen of it stays, the rest dies as usual."""
    x, _ = complicated("plain", covariance_type)
    initial = initial_mixture(covariance_type, background)
    means = initial.means.copy()
    means[1] = 1e4
    initial = GaussianMixture(initial.weights, means, initial.covariances, background)
    frozen = {kind: [1] for kind in kinds}
    fit = fit_mixture(x, 3, covariance_type=covariance_type, initial=initial, frozen=frozen)
    for kind in kinds:
        assert np.array_equal(getattr(fit.model, KINDS[kind])[1], getattr(initial, KINDS[kind])[1])
    if "amp" not in kinds:
        assert fit.model.weights[1] == 0
    assert np.diff(fit.history).min() >= -1e-12
    total = fit.model.weights.sum() + (0 if background is None else fit.model.background.amp)
    assert total == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("name", ["plain", "noise", "missing", "background", "fixed background"])
def test_weights_beside_frozen_means_and_covariances_are_those_of_a_general_optimiser(covariance_type, name):
    x, options = complicated(name, covariance_type, n=100)
    x = x[~np.isnan(x).all(axis=1)]
    frozen = {"mean": "all", "covar": "all"}
    fit = fit_mixture(x, 3, frozen=frozen, tol=1e-13, max_iter=20_000, **options)
    initial = options["initial"]
    # Densities of every cell under every component by itself, and under the background.
    densities = [
        np.exp(
            GaussianMixture(np.ones(1), initial.means[[k]], initial.covariances[[k]]).log_prob(x, options.get("noise"))
        )
        for k in range(3)
    ]
    fixed = 0.0
    if initial.background is not None:
        box = initial.background
        inside = ((x >= box.lower) & (x <= box.upper)).all(axis=1)
        densities.append(inside / np.prod(box.upper - box.lower))
        fixed = box.amp if not box.adjust_amp else 0.0
    densities = np.array(densities)

    def shares(p):
        free = np.exp(np.append(p, 0.0))
        free /= free.sum()
        return np.append((1 - fixed) * free, fixed) if fixed else free

    found = optimize.minimize(
        lambda p: -np.log(shares(p) @ densities).mean(), np.zeros(len(densities) - 1 - bool(fixed)), tol=1e-12
    )
    fitted = fit.model.weights if initial.background is None else np.append(fit.model.weights, fit.model.background.amp)
    assert fit.log_likelihood == pytest.approx(-found.fun, abs=1e-9)
    # Flat optima: 1e-9 nats leave 1e-4 of a weight.
    np.testing.assert_allclose(fitted, shares(found.x), atol=2e-4)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_covariance_beside_a_frozen_mean_is_about_that_mean(make_cells, covariance_type):
    x = make_cells(200, 3, n_components=1)
    mean = x.mean(axis=0) + np.array([1.0, -2.0, 0.5])
    initial = GaussianMixture(np.ones(1), mean[None], np.ones((1, 3)) if covariance_type == "diag" else np.eye(3)[None])
    fit = fit_mixture(x, 1, initial=initial, covariance_type=covariance_type, frozen={"mean": [0]}, tol=1e-10)
    expected = (x - mean).T @ (x - mean) / len(x)
    expected = np.diag(expected) if covariance_type == "diag" else expected
    np.testing.assert_allclose(fit.model.covariances[0], expected, rtol=1e-10)


def test_the_covariance_beside_a_frozen_mean_behind_noise_is_about_that_mean():
    """With noise that all share, what is seen has the covariance Σ + S about the mean."""
    rng = np.random.default_rng(0)
    noise, mean = np.array([0.5, 1.5]), np.array([0.3, -0.4])
    x = rng.normal(size=(500, 2)) * [1.5, 1.0] + np.sqrt(noise) * rng.normal(size=(500, 2))
    initial = GaussianMixture(np.ones(1), mean[None], np.eye(2)[None])
    fit = fit_mixture(x, 1, initial=initial, frozen={"mean": "all"}, noise=noise, tol=1e-14)
    expected = (x - mean).T @ (x - mean) / len(x) - np.diag(noise)
    np.testing.assert_allclose(fit.model.covariances[0], expected, atol=1e-5)


def test_the_mean_beside_a_frozen_covariance_weighs_cells_by_their_noise():
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 5.0, size=(300, 1))
    x = rng.normal(size=(300, 1)) + np.sqrt(noise) * rng.normal(size=(300, 1))
    initial = GaussianMixture(np.ones(1), np.full((1, 1), 3.0), np.full((1, 1, 1), 0.7))
    fit = fit_mixture(x, 1, initial=initial, frozen={"covar": "all"}, noise=noise, tol=1e-14)
    precision = 1 / (0.7 + noise[:, 0])
    assert fit.model.means[0, 0] == pytest.approx(precision @ x[:, 0] / precision.sum(), abs=1e-7)
    assert fit.model.covariances[0, 0, 0] == 0.7


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("amp", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("from_file", [False, True])
def test_frozen_weights_are_those_of_the_initial_mixture_beside_a_background_too(covariance_type, amp, from_file):
    """Given on its own, the background takes its share from the weights that are free."""
    x, _ = complicated("background", covariance_type)
    background = Background([-7.0, -7.0], [8.0, 8.0], amp)
    initial = initial_mixture(covariance_type)
    if from_file:  # the same background again, in another object
        initial = initial_mixture(covariance_type, Background([-7.0, -7.0], [8.0, 8.0], amp))
    fit = fit_mixture(
        x, 3, initial=initial, covariance_type=covariance_type, background=background, frozen={"amp": [0, 1]}
    )
    assert np.array_equal(fit.model.weights[:2], initial.weights[:2])
    assert fit.model.weights.sum() + fit.model.background.amp == pytest.approx(1, rel=1e-12)


def test_frozen_weights_that_leave_nothing_for_a_background_are_an_error():
    x, _ = complicated("background", "full")
    background = Background([-7.0, -7.0], [8.0, 8.0], 0.1, adjust_amp=False)
    with pytest.raises(CohortgmmError):
        fit_mixture(x, 3, initial=initial_mixture("full"), background=background, frozen={"amp": "all"})


@pytest.mark.parametrize(
    ("weights", "amp", "frozen", "total", "beside"),
    [
        ([0.5, 0.3, 0.2], 0.1, "all", "1", 0.1),
        ([0.5, 0.4, 0.1], 0.2, [0, 1], "0.9", 0.2),
        ([0.3, 0.3, 0.0], 0.1, [0, 1], "0.6", 0.1),
    ],
)
def test_frozen_weights_must_leave_the_free_ones_what_is_missing_to_one(weights, amp, frozen, total, beside):
    x, _ = complicated("background", "full")
    known = initial_mixture("full")
    own = Background([-7.0, -7.0], [8.0, 8.0], 1.0 - sum(weights)) if sum(weights) < 0.999 else None
    initial = GaussianMixture(weights, known.means, known.covariances, own)
    background = Background([-7.0, -7.0], [8.0, 8.0], amp)
    with pytest.raises(ConfigError) as caught:
        fit_mixture(x, 3, initial=initial, frozen={"amp": frozen}, background=background)
    assert str(caught.value) == (
        f"the frozen weights sum to {total} beside a background of {beside}: this must not exceed one, and must be "
        "one if all other weights are zero"
    )


def test_weights_in_single_precision_start_a_fit_as_they_are():
    x, _ = complicated("plain", "full")
    known = initial_mixture("full")
    weights = np.full(3, 1 / 3, dtype=np.float32)
    initial = GaussianMixture(weights, known.means, known.covariances)
    fit = fit_mixture(x, 3, initial=initial, frozen={"amp": "all", "mean": "all", "covar": "all"})
    assert np.array_equal(fit.model.weights, weights)
    assert fit.history[0] == pytest.approx(initial.log_prob(x).mean(), rel=1e-12)


# ---- errors --------------------------------------------------------------------------------------------------------


def test_frozen_needs_an_initial_mixture(make_cells):
    with pytest.raises(ConfigError, match="frozen keeps parameters of `initial`, which is not given"):
        fit_mixture(make_cells(50, 2), 2, frozen={"amp": [0]})


def test_frozen_does_not_go_with_moves(make_cells):
    initial = initial_mixture("full")
    with pytest.raises(ConfigError, match="split_merge moves components, which frozen forbids"):
        fit_mixture(make_cells(50, 2), 3, initial=initial, frozen={"amp": [0]}, split_merge=1)


@pytest.mark.parametrize("frozen", [{"weights": [0]}, {"amp": [3]}, {"mean": "some"}, [0]])
def test_a_bad_choice_is_an_error_of_the_fit_too(make_cells, frozen):
    with pytest.raises(ConfigError, match="frozen"):
        fit_mixture(make_cells(50, 2), 3, initial=initial_mixture("full"), frozen=frozen)
