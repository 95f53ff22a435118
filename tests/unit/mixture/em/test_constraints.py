"""Frozen parameters and the background in the M-step: bits that stay, optima within what is left free, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from cohortgmm.errors import ConfigError, SingularCovarianceError
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.moments import Moments
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import floor_covariances
from cohortgmm.mixture.observations.background import Background

COVARIANCE_TYPES = ["full", "diag"]

KINDS = {"amp": "weights", "mean": "means", "covar": "covariances"}

SUBSETS = [("amp",), ("mean",), ("covar",), ("amp", "mean"), ("amp", "covar"), ("mean", "covar"), tuple(KINDS)]

# A floor far below every eigenvalue here.
NO_FLOOR = 1e-9


def constraints(n_components, floor=NO_FLOOR, strict=False, **frozen):
    return Constraints(floor, strict, Frozen.from_argument(frozen, n_components))


# ---- what a user asks for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, {}, {"amp": []}, {"mean": np.array([], dtype=int), "covar": ()}])
def test_nothing_is_frozen_unless_asked_for(nothing):
    frozen = Frozen.from_argument(nothing, 3)
    assert not frozen.any
    assert frozen.n_parameters == (0, 0, 0)


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        ("all", [True, True, True, True]),
        ([0, 2], [True, False, True, False]),
        ((3,), [False, False, False, True]),
        (1, [False, True, False, False]),
        (np.array([1, 1, 2]), [False, True, True, False]),
        (np.uint8(3), [False, False, False, True]),
        (range(2, 4), [False, False, True, True]),
    ],
)
@pytest.mark.parametrize("kind", list(KINDS))
def test_components_are_frozen_by_their_numbers(kind, components, expected):
    frozen = Frozen.from_argument({kind: components}, 4)
    for name, attribute in KINDS.items():
        assert getattr(frozen, attribute).tolist() == (expected if name == kind else [False] * 4)
    assert frozen.any
    assert sum(frozen.n_parameters) == sum(expected)


def test_kinds_are_counted_in_their_order():
    assert Frozen.from_argument({"covar": "all", "amp": [0], "mean": [0, 1]}, 3).n_parameters == (1, 2, 3)


@pytest.mark.parametrize("frozen", ["all", ["amp"], [0], 3, {"amp", "mean"}, True])
def test_what_is_no_mapping_is_refused(frozen):
    with pytest.raises(ConfigError, match="frozen must be a mapping with the keys amp, mean, covar, got"):
        Frozen.from_argument(frozen, 2)


@pytest.mark.parametrize("kind", ["weights", "means", "Amp", "", 0, None])
def test_another_kind_is_refused(kind):
    with pytest.raises(ConfigError, match=rf"frozen has the keys amp, mean, covar, not {kind!r}"):
        Frozen.from_argument({kind: [0]}, 2)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    "components", [[2], [-1], 2, [0.0], [0, 1.5], "0", "ALL", ["all"], [True, False], None, [None], {0, 1}, [[0], [2]]]
)
def test_components_that_are_not_there_are_refused(kind, components):
    with pytest.raises(ConfigError, match=rf"frozen\['{kind}'\] must be 'all' or numbers of components from 0 to 1"):
        Frozen.from_argument({kind: components}, 2)


# ---- the floor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_without_frozen_covariances_the_floor_is_all_there_is(make_mixture, covariance_type):
    model = make_mixture(4, 3, covariance_type)
    covariances = model.covariances * np.array([1.0, 1e-3, 1.0, 1e-6]).reshape(-1, *[1] * (model.covariances.ndim - 1))
    left = constraints(4, 0.1, amp=[0], mean=[1]).project(covariances, model)
    right = floor_covariances(covariances, 0.1, strict=False)
    for i in (0, 2):
        assert np.array_equal(left[i], right[i])
    for name in ("root", "whitener", "half_log_det"):
        assert np.array_equal(getattr(left[1], name), getattr(right[1], name))
    assert left[2].tolist() == [False, True, False, True]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("floor", [0.05, 30.0])
@pytest.mark.parametrize("suspected", [None, np.array([True, True, False, False])])
def test_frozen_covariances_are_those_of_the_mixture_whatever_the_floor(
    make_mixture, covariance_type, floor, suspected
):
    model = make_mixture(4, 3, covariance_type)
    tiny = model.covariances.copy()
    tiny[1] *= 1e-6
    model = GaussianMixture(model.weights, model.means, tiny)
    proposed = make_mixture(4, 3, covariance_type, seed=1).covariances
    proposed[1] = np.nan_to_num(np.full_like(proposed[1], 0.0))  # what a dead component would be given
    before = proposed.copy()
    covariances, factors, floored = constraints(4, floor, covar=[1, 2]).project(proposed, model, suspected)
    assert np.array_equal(proposed, before)
    expected, expected_factors, expected_floored = floor_covariances(proposed[[0, 3]], floor, strict=False)
    for k in (1, 2):
        assert np.array_equal(covariances[k], model.covariances[k])
        assert not floored[k]
        for name in ("root", "whitener", "half_log_det"):
            assert np.array_equal(getattr(factors, name)[k], getattr(model.factors, name)[k])
    # Two matrices are factored in the same bits as four, but for those that are suspected and go another way.
    np.testing.assert_allclose(covariances[[0, 3]], expected, rtol=1e-12)
    np.testing.assert_allclose(factors.half_log_det[[0, 3]], expected_factors.half_log_det, rtol=1e-12)
    assert floored[[0, 3]].tolist() == expected_floored.tolist()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_strict_lets_a_frozen_covariance_be_below_the_floor(make_mixture, covariance_type):
    model = make_mixture(3, 2, covariance_type)
    below = model.covariances.copy()
    below[1] *= 1e-6
    model = GaussianMixture(model.weights, model.means, below)
    covariances, _, floored = constraints(3, 1e-3, strict=True, covar=[1]).project(below, model)
    assert np.array_equal(covariances, below)
    assert not floored.any()
    with pytest.raises(SingularCovarianceError, match="component 1 of 3"):
        constraints(3, 1e-3, strict=True, covar=[0]).project(below, model)


# ---- the M-step ----------------------------------------------------------------------------------------------------


def problem(seed, covariance_type, n_features=2, n_components=3, amp=None):
    """Cells, a mixture, and responsibilities of the components (n, K), which leave a rest to a background."""
    rng = np.random.default_rng(seed)
    x = 2.0 * rng.normal(size=(60, n_features))
    covariances = rng.uniform(0.3, 2.0, size=(n_components, n_features))
    if covariance_type == "full":
        roots = rng.normal(size=(n_components, n_features, n_features))
        covariances = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(n_features)
    background = None if amp is None else Background(np.full(n_features, -9.0), np.full(n_features, 9.0), amp)
    weights = rng.dirichlet(np.ones(n_components)) * (1 - (amp or 0.0))
    model = GaussianMixture(weights, rng.normal(size=(n_components, n_features)), covariances, background)
    resp = rng.dirichlet(np.ones(n_components + (amp is not None)), size=60)[:, :n_components]
    return x, model, resp


def expected_log_likelihood(x, resp, model):
    """Σ responsibility × log(weight × density), with that of the background's amplitude."""
    with np.errstate(divide="ignore"):
        shares = np.log(model.weights)
    total = 0.0
    for k in range(model.n_components):
        density = stats.multivariate_normal(model.means[k], model.full_covariances[k]).logpdf(x)
        total += resp[:, k] @ (shares[k] + density)
    if model.background is not None:
        total += (1 - resp.sum(axis=1)).sum() * np.log(model.background.amp)
    return total


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_features", [1, 3])
@pytest.mark.parametrize("kinds", SUBSETS)
def test_the_m_step_is_the_definition_but_for_what_is_frozen(moments_by_definition, covariance_type, n_features, kinds):
    x, model, resp = problem(0, covariance_type, n_features)
    moments = moments_by_definition(x, resp, model.means, covariance_type)
    fitted, floored = m_step(moments, model, constraints(3, **{kind: [1] for kind in kinds}))
    assert not floored.any()
    for kind, name in KINDS.items():
        is_same = np.array_equal(getattr(fitted, name)[1], getattr(model, name)[1])
        assert is_same == (kind in kinds), name
    nk = resp.sum(axis=0)
    # Weights in proportion to the cells, of what frozen ones leave.
    rest = 1 - model.weights[1] if "amp" in kinds else 1.0
    free = [0, 2] if "amp" in kinds else [0, 1, 2]
    np.testing.assert_allclose(fitted.weights[free], rest * nk[free] / nk[free].sum(), rtol=1e-12)
    # Means of the cells, and covariances about them, or about the mean that is frozen.
    for k in range(3):
        mean = model.means[k] if k == 1 and "mean" in kinds else resp[:, k] @ x / nk[k]
        np.testing.assert_allclose(fitted.means[k], mean, rtol=1e-12, atol=1e-12)
        if not (k == 1 and "covar" in kinds):
            covariance = (resp[:, k, None] * (x - mean)).T @ (x - mean) / nk[k]
            covariance = np.diag(covariance) if covariance_type == "diag" else covariance
            np.testing.assert_allclose(fitted.covariances[k], covariance, rtol=1e-10, atol=1e-10)


@given(
    seed=st.integers(0, 2**32 - 1),
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    amp=st.sampled_from([None, 0.1, 0.7]),
    adjust=st.booleans(),
    masks=st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=3, max_size=3),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_no_mixture_within_the_constraints_is_more_likely_than_the_m_step(seed, covariance_type, amp, adjust, masks):
    x, model, resp = problem(seed, covariance_type, amp=amp)
    if amp is not None and not adjust:
        background = Background(model.background.lower, model.background.upper, amp, adjust_amp=False)
        model = GaussianMixture(model.weights, model.means, model.covariances, background)
    limits = constraints(3, **dict(zip(KINDS, masks, strict=True)))
    deviation = x[None] - model.means[:, None, :]
    best, _ = m_step(Moments.weighted(deviation, resp.T, covariance_type, n=len(x)), model, limits)
    highest = expected_log_likelihood(x, resp, best)
    rng = np.random.default_rng(seed)
    frozen = limits.frozen
    for size in (0.3, 1e-2):
        shares = best.weights * np.exp(size * rng.normal(size=3))
        background, rest = best.background, 1.0
        if background is not None and adjust and not frozen.weights.all():
            taken = best.weights[frozen.weights].sum()
            background = background.with_amp((1 - taken) * rng.beta(1 + 9 * background.amp, 2))
        rest = 1.0 - (0.0 if background is None else background.amp) - best.weights[frozen.weights].sum()
        free = np.where(frozen.weights, 0.0, shares)
        weights = best.weights
        if free.sum() > 0:
            weights = np.where(frozen.weights, best.weights, rest * free / free.sum())
        means = np.where(frozen.means[:, None], best.means, best.means + size * rng.normal(size=best.means.shape))
        if covariance_type == "diag":
            covariances = best.covariances * np.exp(size * rng.normal(size=best.covariances.shape))
        else:
            roots = np.eye(2) + size * rng.normal(size=(3, 2, 2))
            covariances = roots @ best.covariances @ roots.transpose(0, 2, 1) + 1e-6 * np.eye(2)
        covariances[frozen.covariances] = best.covariances[frozen.covariances]
        other = GaussianMixture(weights, means, covariances, background)
        assert expected_log_likelihood(x, resp, other) <= highest + 1e-9


def shares_by_optimisation(nk, n_background, model, frozen):
    """The weights and the amplitude that maximise Σ n log share, by a general optimiser."""
    background = model.background
    counts = np.append(nk, n_background)
    bounds = [(w, w) if f else (1e-12, 1.0) for w, f in zip(model.weights, frozen, strict=True)]
    bounds.append((max(background.amp_min, 1e-12), background.amp_max))
    if not background.adjust_amp:
        bounds[-1] = (background.amp, background.amp)
    found = optimize.minimize(
        lambda w: -counts @ np.log(np.maximum(w, 1e-300)),
        np.append(model.weights, background.amp),
        jac=lambda w: -counts / np.maximum(w, 1e-300),
        bounds=bounds,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("frozen", [[], [0], [0, 2]])
@pytest.mark.parametrize(
    ("amp", "amp_min", "amp_max", "adjust"),
    [(0.2, 0.0, 1.0, True), (0.2, 0.15, 1.0, True), (0.1, 0.0, 0.12, True), (0.2, 0.0, 1.0, False)],
)
@pytest.mark.parametrize("n_background", [0.5, 20.0])
def test_shares_are_those_of_a_general_optimiser(frozen, amp, amp_min, amp_max, adjust, n_background):
    background = Background([-1.0], [1.0], amp, amp_min, amp_max, adjust)
    weights = np.array([0.5, 0.3, 0.2]) * (1 - amp)
    model = GaussianMixture(weights, np.zeros((3, 1)), np.ones((3, 1)), background)
    nk = np.array([10.0, 30.0, 5.0])
    n = float(nk.sum() + n_background)
    # Two fifths of the cells were never seen.
    moments = Moments(nk, np.zeros((3, 1)), nk[:, None].copy(), 0.0, 0.6 * n, 0.4 * n)
    fitted, _ = m_step(moments, model, constraints(3, amp=frozen))
    mask = np.isin(np.arange(3), frozen)
    expected = shares_by_optimisation(nk, n_background, model, mask)
    np.testing.assert_allclose(np.append(fitted.weights, fitted.background.amp), expected, atol=2e-6)
    assert fitted.weights.sum() + fitted.background.amp == pytest.approx(1, rel=1e-14)
    assert np.array_equal(fitted.weights[mask], weights[mask])
    if not adjust:
        assert fitted.background.amp == amp


def test_a_background_beside_frozen_weights_stays_as_it_is():
    background = Background([-1.0], [1.0], 0.2)
    model = GaussianMixture(np.array([0.5, 0.3]), np.zeros((2, 1)), np.ones((2, 1)), background)
    moments = Moments(np.array([1.0, 2.0]), np.zeros((2, 1)), np.ones((2, 1)), 0.0, 10)
    fitted, _ = m_step(moments, model, constraints(2, amp="all"))
    assert fitted.background.amp == 0.2
    assert np.array_equal(fitted.weights, model.weights)


@pytest.mark.parametrize("claimed", [0.0, 1e-11])
@pytest.mark.parametrize("amp", [None, 0.2])
def test_a_dead_component_loses_its_weight_unless_that_is_frozen(amp, claimed):
    background = None if amp is None else Background([-1.0], [1.0], amp, adjust_amp=False)
    rest = 1 - (amp or 0.0)
    model = GaussianMixture(rest * np.array([0.5, 0.3, 0.2]), np.arange(3.0)[:, None], np.ones((3, 1)), background)
    nk = np.array([30.0, claimed, 10.0])
    moments = Moments(nk, np.zeros((3, 1)), nk[:, None].copy(), 0.0, 50 if amp else 40)
    fitted, floored = m_step(moments, model, constraints(3))
    np.testing.assert_allclose(fitted.weights, rest * np.array([0.75, 0.0, 0.25]), rtol=1e-12)
    assert floored.tolist() == [False, True, False]
    assert fitted.weights[1] == 0
    assert np.array_equal(fitted.means[1], model.means[1])
    kept, floored = m_step(moments, model, constraints(3, amp=[1], covar=[1]))
    assert floored.tolist() == [False, True, False]
    assert kept.weights[1] == model.weights[1]
    assert np.array_equal(kept.covariances[1], model.covariances[1])
    np.testing.assert_allclose(kept.weights[[0, 2]], (rest - model.weights[1]) * np.array([0.75, 0.25]), rtol=1e-12)


def test_strict_refuses_a_dead_component_unless_its_covariance_is_frozen():
    model = GaussianMixture(np.array([0.5, 0.5]), np.zeros((2, 1)), np.ones((2, 1)))
    moments = Moments(np.array([10.0, 0.0]), np.zeros((2, 1)), np.array([[10.0], [0.0]]), 0.0, 10)
    with pytest.raises(SingularCovarianceError, match="component 1 of 2"):
        m_step(moments, model, constraints(2, strict=True, covar=[0], mean=[1], amp=[1]))
    fitted, _ = m_step(moments, model, constraints(2, strict=True, covar=[1]))
    assert fitted.covariances[1, 0] == 1


def test_weights_that_nobody_claims_stay_in_their_proportions():
    """All cells are background, or belong to a component of frozen weight."""
    background = Background([-1.0], [1.0], 0.4)
    model = GaussianMixture(np.array([0.4, 0.2]), np.zeros((2, 1)), np.ones((2, 1)), background)
    nothing = Moments(np.zeros(2), np.zeros((2, 1)), np.zeros((2, 1)), 0.0, 10)
    fitted, _ = m_step(nothing, model, constraints(2))
    assert fitted.background.amp == 1
    assert not fitted.weights.any()
    again, _ = m_step(nothing, fitted, constraints(2))
    assert again.background.amp == 1
    assert not again.weights.any()
    limited = GaussianMixture(model.weights, model.means, model.covariances, Background([-1], [1], 0.4, amp_max=0.7))
    fitted, _ = m_step(nothing, limited, constraints(2))
    np.testing.assert_allclose(fitted.weights, [0.2, 0.1], rtol=1e-12)
    moments = Moments(np.array([10.0, 0.0]), np.zeros((2, 1)), np.array([[10.0], [0.0]]), 0.0, 10)
    plain = GaussianMixture(np.array([0.4, 0.6]), np.zeros((2, 1)), np.ones((2, 1)))
    fitted, _ = m_step(moments, plain, constraints(2, amp=[0]))
    assert fitted.weights.tolist() == [0.4, 0.6]
