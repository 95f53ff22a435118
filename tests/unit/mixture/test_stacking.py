"""Cells predicted by fits that have not seen them, the weights that predict best, and the mixture of mixtures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats

from cohortgmm.errors import CohortgmmError, ConfigError, DataError
from cohortgmm.mixture import stacking
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.stacking import cross_validate, stack, stacking_weights

COVARIANCE_TYPES = ["full", "diag"]


def above(c):
    return lambda x: (x[:, 0] > c).astype(float)


@pytest.fixture
def fits(monkeypatch):
    """The fits that are made meanwhile: cells, arguments, result."""
    made, fit = [], stacking.fit_mixture

    def spy(x, n_components, **options):
        made.append((x, options, fit(x, n_components, **options)))
        return made[-1][2]

    monkeypatch.setattr(stacking, "fit_mixture", spy)
    return made


def rows_of(part, x):
    """Positions of the cells in x, which all differ; NaN stands for itself."""
    key = {row.tobytes(): i for i, row in enumerate(np.nan_to_num(x, nan=-1e9))}
    return np.array([key[row.tobytes()] for row in np.nan_to_num(part, nan=-1e9)])


# ---- cross-validation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_folds", [2, 3, 10, 30])
def test_every_cell_is_predicted_by_the_normal_distribution_of_the_others(fits, n_folds):
    """One component: what a fold predicts is known in closed form."""
    x = np.random.default_rng(0).normal(size=(30, 2)) * [1.0, 3.0] + [5.0, -2.0]
    result = cross_validate(x, 1, n_folds=n_folds)
    left_out = []
    for inside, _, _ in fits:
        out = np.setdiff1d(np.arange(30), rows_of(inside, x))
        left_out.append(out)
        normal = stats.multivariate_normal(inside.mean(axis=0), np.cov(inside, rowvar=False, bias=True))
        np.testing.assert_allclose(result[out], normal.logpdf(x[out]), rtol=1e-9)
    assert np.array_equal(np.sort(np.concatenate(left_out)), np.arange(30))
    sizes = [len(out) for out in left_out]
    assert len(sizes) == n_folds
    assert max(sizes) - min(sizes) <= 1


COMPLICATIONS = {
    "plain": {},
    "shared variances": {"noise": "shared"},
    "shared covariance": {"noise": "shared full"},
    "own variances": {"noise": "own"},
    "own covariances": {"noise": "own full"},
    "missing": {"missing": True},
    "background": {"background": Background([-9.0, -9.0], [12.0, 12.0], 0.1)},
    "selection": {"completeness": above(-1.0)},
    "everything": {
        "noise": "own",
        "missing": True,
        "background": Background([-9.0, -9.0], [12.0, 12.0], 0.1),
        "completeness": lambda x: above(-1.0)(np.nan_to_num(x)),
    },
}


def complicated(name, n):
    asked, rng = dict(COMPLICATIONS[name]), np.random.default_rng(1)
    x = rng.normal(size=(n, 2)) + 4.0 * rng.integers(2, size=(n, 1))
    x[:, 0] = np.where(x[:, 0] > -1, x[:, 0], 0.5 + rng.random(n))
    options = {k: v for k, v in asked.items() if k in ("background", "completeness")}
    kind = asked.get("noise")
    if kind:
        variances = rng.uniform(0.1, 0.5, size=(n, 2))
        options["noise"] = {
            "shared": variances[0],
            "shared full": np.diag(variances[0]) + 0.05,
            "own": variances,
            "own full": variances[:, :, None] * np.eye(2) + 0.05,
        }[kind]
    if asked.get("missing"):
        x[rng.random(x.shape) < 0.2] = np.nan
        x[np.isnan(x).all(axis=1)] = 0.5 + rng.random((int(np.isnan(x).all(axis=1).sum()), 2))
    return x, options


@pytest.mark.parametrize("name", list(COMPLICATIONS))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_every_cell_is_predicted_by_a_fit_that_did_not_see_it(fits, name, covariance_type):
    x, options = complicated(name, 120)
    noise = options.get("noise")
    result = cross_validate(x, 2, n_folds=4, covariance_type=covariance_type, n_init=1, **options)
    assert len(fits) == 4
    predicted = np.zeros(120, dtype=int)
    for inside, arguments, fit in fits:
        rows = rows_of(inside, x)
        out = np.setdiff1d(np.arange(120), rows)
        assert len(rows) == 90
        assert len(out) == 30
        predicted[out] += 1
        per_cell = noise is not None and len(noise) == 120
        if noise is not None:  # as an array, or checked already
            given_noise = getattr(arguments["noise"], "values", arguments["noise"])
            assert np.array_equal(given_noise, noise[rows] if per_cell else noise)
        # One cell at a time, with its own noise.
        for i in out[:8]:
            own = noise[[i]] if per_cell else noise
            if per_cell and own.ndim == 2:
                own = own[:, :, None] * np.eye(2)
            expected = fit.model.log_prob(x[[i]], own)[0] - np.log(fit.completeness)
            assert result[i] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (predicted == 1).all()
    assert np.isfinite(result).all()


@pytest.mark.parametrize(("n", "n_features", "n_folds"), [(20, 2, 10), (25, 2, 10), (12, 3, 4), (4, 2, 2)])
def test_own_noise_is_that_of_the_cell_however_many_cells_a_part_has(n, n_features, n_folds):
    """As many as features: their variances, (D, D), are not one covariance for all; nor those of the others."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(n, n_features)), rng.uniform(0.01, 0.2, size=(n, n_features))
    options = {"n_folds": n_folds, "covariance_type": "diag", "n_init": 1, "eps": 0.1}
    result = cross_validate(x, 1, noise=noise, **options)
    expected = cross_validate(x, 1, noise=noise[:, :, None] * np.eye(n_features), **options)
    # The fits, by E-steps of two kinds, end within their tolerance of each other.
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_densities_of_seen_cells_integrate_to_one(fits):
    """Density × completeness over the line: that is what the cells were drawn from."""

    def slope(x):
        return np.clip(0.3 + 0.2 * x[:, 0], 0.0, 1.0)

    model = GaussianMixture(np.array([0.5, 0.5]), np.array([[0.0], [4.0]]), np.ones((2, 1, 1)))
    x = model.sample_observed(200, 0, completeness=slope).x
    result = cross_validate(x, 2, n_folds=3, completeness=slope)
    for inside, _, fit in fits:

        def density(t, fit=fit):
            at = np.array([[t]])
            return np.exp(fit.model.log_prob(at)[0] - np.log(fit.completeness)) * slope(at)[0]

        total = integrate.quad(density, -15, 20, points=[-1.5, 0, 3.5, 4], limit=200)[0]
        # 32 nodes a cell: the error of the share that is seen.
        assert total == pytest.approx(1, abs=2e-3)
        out = np.setdiff1d(np.arange(200), rows_of(inside, x))
        densities = [np.log(density(t) / slope(np.array([[t]]))[0]) for t in x[out, 0]]
        np.testing.assert_allclose(result[out], densities, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("completeness", [None, above(-1.0)])
def test_a_cell_without_features_is_predicted_with_certainty(completeness):
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(60, 2)))
    x[[3, 44]] = np.nan
    function = None if completeness is None else lambda x: completeness(np.nan_to_num(x))
    result = cross_validate(x, 1, n_folds=3, completeness=function)
    assert result[[3, 44]].tolist() == [0, 0]


def test_the_division_is_that_of_the_seed(fits):
    x = np.random.default_rng(0).normal(size=(40, 1))
    left, right, other = (cross_validate(x, 1, n_folds=4, random_state=seed) for seed in (0, 0, 1))
    assert np.array_equal(left, right)
    assert not np.array_equal(left, other)
    # Not by position, which in a cohort is by sample.
    assert not np.array_equal(fits[0][0], x[10:])
    for inside, arguments, _ in fits[:4]:
        assert arguments["random_state"] == 0
        assert len(inside) == 30


@pytest.mark.usefixtures("stops_early")
def test_options_are_those_of_the_fits(fits):
    x = np.random.default_rng(0).normal(size=(40, 1))
    cross_validate(x, 2, n_folds=2, max_iter=3, tol=0.0, covariance_type="diag")
    for _, arguments, fit in fits:
        assert arguments["max_iter"] == 3
        assert fit.n_iter == 3
        assert fit.model.covariance_type == "diag"


@pytest.mark.parametrize("n_folds", [1, 0, -2, 41, 2.5, "3", None])
def test_a_bad_number_of_folds_is_refused(n_folds):
    with pytest.raises(ConfigError, match=r"n_folds must be from 2 to the number of cells \(40\)"):
        cross_validate(np.zeros((40, 1)), 1, n_folds=n_folds)


@pytest.mark.parametrize("x", [np.zeros(20), np.zeros((20, 2, 2)), np.full((20, 2), "a"), np.full((20, 0), 1.0)])
@pytest.mark.parametrize("noise", [None, np.ones(2)])
def test_cells_of_another_shape_or_kind_are_one_clear_error(x, noise):
    with pytest.raises(DataError):
        cross_validate(x, 1, n_folds=4, noise=noise)


def test_an_error_of_a_fit_is_that_of_the_cross_validation():
    with pytest.raises(CohortgmmError, match="too few for 9 components"):
        cross_validate(np.random.default_rng(0).normal(size=(10, 1)), 9, n_folds=5)


# ---- weights -------------------------------------------------------------------------------------------------------


def test_weights_of_two_models_are_those_of_the_closed_form():
    # 2 log(0.1 + 0.8 w) + log(0.9 − 0.8 w) is highest at w = 17 / 24.
    weights = stacking_weights(np.log([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]]))
    # Gains below 1e-10 nats leave 1e-5 of a weight where the curvature is about 4.
    np.testing.assert_allclose(weights, [17 / 24, 7 / 24], atol=3e-5)


@pytest.mark.parametrize("shares", [[10, 20, 30], [1, 1], [7], [0, 5, 5]])
def test_models_of_cells_of_their_own_weigh_as_many_as_they_have(shares):
    n = sum(shares)
    log_prob = np.full((len(shares), n), -300.0)
    owner = np.repeat(np.arange(len(shares)), shares)
    log_prob[owner, np.arange(n)] = -3.0
    np.testing.assert_allclose(stacking_weights(log_prob), np.array(shares) / n, atol=1e-9)


def test_a_model_that_is_better_for_all_cells_has_all_the_weight():
    log_prob = np.random.default_rng(0).normal(size=(1, 50)) - np.array([[0.0], [1.0], [2.0]])
    np.testing.assert_allclose(stacking_weights(log_prob), [1, 0, 0], atol=1e-8)


def test_models_that_are_alike_share():
    log_prob = np.repeat(np.random.default_rng(0).normal(size=(1, 50)), 4, axis=0)
    np.testing.assert_allclose(stacking_weights(log_prob), 0.25, rtol=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 5),
    n=st.integers(1, 60),
    spread=st.floats(0.1, 30),
    far=st.booleans(),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_weights_are_the_optimum_of_a_general_optimiser(seed, m, n, spread, far):
    log_prob = spread * np.random.default_rng(seed).normal(size=(m, n)) - (1e5 if far else 0.0)
    weights = stacking_weights(log_prob)
    assert weights.shape == (m,)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, rel=1e-12)

    def negative(p):
        return -special.logsumexp(log_prob + special.log_softmax(p)[:, None], axis=0).mean()

    with np.errstate(divide="ignore"):
        reached = special.logsumexp(log_prob + np.log(weights)[:, None], axis=0).mean()
    found = optimize.minimize(negative, np.zeros(m), method="L-BFGS-B", options={"maxiter": 2000})
    # EM ends when an iteration gains less than 1e-10; towards a weight of zero it creeps.
    assert reached >= -found.fun - 1e-5
    # The conditions of Kuhn and Tucker: no model gains by more weight.
    with np.errstate(over="ignore"):
        ratios = np.exp(log_prob - special.logsumexp(log_prob, axis=0, b=weights[:, None])).mean(axis=1)
    assert (ratios <= 1 + 1e-2).all() or reached >= -found.fun - 1e-9


@pytest.mark.parametrize(
    "log_prob",
    [
        np.zeros(5),
        np.zeros((0, 5)),
        np.zeros((2, 0)),
        np.zeros((2, 3, 1)),
        np.array([[0.0, np.nan]]),
        np.array([[0.0, -np.inf]]),
        np.array([[np.inf]]),
    ],
)
def test_bad_log_densities_are_refused(log_prob):
    with pytest.raises(DataError, match=r"log_prob must be finite numbers of shape \(M, n\), got shape \("):
        stacking_weights(log_prob)


@pytest.mark.parametrize("log_prob", ["much", [[0.0, 1.0], [0.0]], [["a"]], None])
def test_log_densities_that_are_no_numbers_are_refused(log_prob):
    with pytest.raises(DataError, match="log_prob must be finite numbers"):
        stacking_weights(log_prob)


# ---- stacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3], [2, 5, 3], [1.0, 0.0, 0.0]])
def test_the_density_of_a_stack_is_the_mean_of_the_densities(make_mixture, covariance_type, weights):
    models = [make_mixture(k, 2, covariance_type, seed=k) for k in (1, 3, 2)]
    x = 4 * np.random.default_rng(0).normal(size=(100, 2))
    shares = np.ones(3) / 3 if weights is None else np.array(weights) / np.sum(weights)
    stacked = stack(models, weights)
    assert stacked.n_components == 6
    assert stacked.covariance_type == covariance_type
    expected = special.logsumexp([model.log_prob(x) for model in models], axis=0, b=shares[:, None])
    np.testing.assert_allclose(stacked.log_prob(x), expected, rtol=1e-10)
    assert stacked.weights.sum() == pytest.approx(1, rel=1e-12)


BOX = Background([-5.0, -5.0], [5.0, 5.0], 0.2)


@pytest.mark.parametrize(
    "amps",
    [
        (0.2, 0.4),
        (0.3, None),
        (None, 0.1),
        (0.0, 0.5),
    ],
)
def test_backgrounds_are_stacked_by_their_shares(make_mixture, amps):
    models = [
        make_mixture(2, 2, seed=seed)
        if amp is None
        else make_mixture(2, 2, seed=seed).with_background(Background(BOX.lower, BOX.upper, amp))
        for seed, amp in enumerate(amps)
    ]
    stacked = stack(models, [0.25, 0.75])
    assert stacked.background.amp == pytest.approx(0.25 * (amps[0] or 0) + 0.75 * (amps[1] or 0), rel=1e-12)
    x = 4 * np.random.default_rng(0).normal(size=(100, 2))
    expected = special.logsumexp([model.log_prob(x) for model in models], axis=0, b=np.array([0.25, 0.75])[:, None])
    np.testing.assert_allclose(stacked.log_prob(x), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("bounded", "amp"), [({"amp_min": 0.15}, None), ({"amp_max": 0.25}, 0.6), ({"adjust_amp": False}, 0.6)]
)
def test_bounds_of_the_amplitude_are_not_those_of_a_stack(make_mixture, bounded, amp):
    """They are of a fit; half of a background may be less than its own lower bound."""
    first = make_mixture(2, 2).with_background(Background(BOX.lower, BOX.upper, 0.2, **bounded))
    second = make_mixture(2, 2, seed=1)
    if amp is not None:
        second = second.with_background(Background(BOX.lower, BOX.upper, amp))
    stacked = stack([first, second])
    assert stacked.background.amp == pytest.approx((0.2 + (amp or 0.0)) / 2, rel=1e-12)


def test_one_mixture_by_itself_is_its_stack(make_mixture):
    model = make_mixture(3, 2).with_background(BOX)
    stacked = stack([model])
    for name, array in model.arrays().items():
        np.testing.assert_allclose(stacked.arrays()[name], array, rtol=1e-15)


def test_a_stack_predicts_no_worse_than_the_best_of_its_parts(make_cells):
    """Weighted by cells left out, and judged by the same."""
    x = make_cells(200, 2)
    log_prob = np.array([cross_validate(x, k, n_folds=4) for k in (1, 2, 3)])
    weights = stacking_weights(log_prob)
    assert special.logsumexp(log_prob, axis=0, b=weights[:, None]).mean() >= log_prob.mean(axis=1).max() - 1e-9


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 2.0, 3.0], [[1.0, 1.0]], [-0.5, 1.5], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], 1.0, "ab"]
)
def test_bad_weights_are_refused(make_mixture, weights):
    with pytest.raises(DataError, match="weights"):
        stack([make_mixture(2, 2), make_mixture(1, 2)], weights)


def test_mixtures_that_do_not_fit_together_are_refused(make_mixture):
    with pytest.raises(DataError, match="0 mixtures need as many weights"):
        stack([])
    with pytest.raises(DataError, match="different features or covariance types"):
        stack([make_mixture(2, 2), make_mixture(2, 3)])
    with pytest.raises(DataError, match="different features or covariance types"):
        stack([make_mixture(2, 2), make_mixture(2, 2, "diag")])
    for other in (Background(BOX.lower - 1, BOX.upper), Background(BOX.lower, BOX.upper + 1)):
        with pytest.raises(DataError, match="different boxes"):
            stack([make_mixture(2, 2).with_background(BOX), make_mixture(2, 2).with_background(other)])
