"""Extrapolated EM: where its steps lead, that nothing is lost by them, and what they must leave alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortgmm.mixture.density.evaluate import log_prob
from cohortgmm.mixture.em import loop as run
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.loop import EM
from cohortgmm.mixture.em.squarem import Squarem
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.numerics.gaussian import covariance_floor
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]

NO_FLOOR = 1e-9


def constraints(n_components, floor=NO_FLOOR, **frozen):
    return Constraints(floor, False, Frozen.from_argument(frozen, n_components))


def run_em(x, start, *, accelerated, noise=None, tol=1e-12, max_iter=20_000, limits=None):
    """EM from this start, with the expectation that a fit would use."""
    cells = Measurements(x, noise, background=start.background)
    limits = constraints(start.n_components) if limits is None else limits
    expectation = choose_estep(cells, start.n_components, start.covariance_type)
    return EM(expectation, limits, max_iter, tol, accelerated).run(start)


def both(x, start, **options):
    return (run_em(x, start, accelerated=accelerated, **options) for accelerated in (True, False))


def assert_same_optimum(fit, other, *, log_likelihood, parameters):
    assert fit.log_likelihood == pytest.approx(other.log_likelihood, abs=log_likelihood)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(fit.model, name), getattr(other.model, name), atol=parameters)


# ---- extrapolation -------------------------------------------------------------------------------------------------


def mixture_at(coordinates, covariance_type="full", amp=None):
    """A mixture of two components in two features from logarithms of its shares, means, and a root's coordinates."""
    logits, means, spread = coordinates[:3], coordinates[3:7].reshape(2, 2), coordinates[7:].reshape(2, 3)
    shares = np.exp(logits)
    shares = shares / shares.sum() if amp else shares[:2] / shares[:2].sum()
    background = Background([-50.0, -50.0], [50.0, 50.0], float(shares[2])) if amp else None
    if covariance_type == "diag":
        covariances = np.exp(2 * spread[:, [0, 2]])
    else:
        roots = np.zeros((2, 2, 2))
        roots[:, 0, 0], roots[:, 1, 0], roots[:, 1, 1] = np.exp(spread[:, 0]), spread[:, 1], np.exp(spread[:, 2])
        covariances = roots @ roots.transpose(0, 2, 1)
    return GaussianMixture(shares[:2], means, covariances, background)


def geometric_path(limit, first, ratio, n):
    return [limit + first * ratio**i for i in range(n)]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.74])
def test_a_geometric_path_is_followed_to_its_limit(covariance_type, amp, ratio):
    """If every iteration brings all coordinates nearer by the same factor, the third mixture shows where they end."""
    rng = np.random.default_rng(0)
    limit, first = 0.5 * rng.normal(size=13), 0.2 * rng.normal(size=13)
    # Logarithms of the shares stay normalised only if the deviations share out evenly: two of them move.
    logits = limit[:3] - np.log(np.exp(limit[:3]).sum()) if amp else limit[:3]
    limit[:3], first[:3] = logits, 0.0
    path = [mixture_at(point, covariance_type, amp) for point in geometric_path(limit, first, ratio, 5)]
    squarem = Squarem(path[0], constraints(2))
    assert squarem.extrapolate(path[1]) is None
    assert not squarem.has_extrapolated
    # The first triple only allows for longer steps.
    assert squarem.extrapolate(path[2]) is None
    assert squarem.has_extrapolated
    assert squarem.extrapolate(path[3]) is None
    assert not squarem.has_extrapolated
    found = squarem.extrapolate(path[4])
    assert squarem.has_extrapolated
    expected = mixture_at(limit, covariance_type, amp)
    np.testing.assert_allclose(found.means, expected.means, atol=1e-12)
    np.testing.assert_allclose(found.covariances, expected.covariances, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-12)
    if amp:
        assert found.background.amp == pytest.approx(expected.background.amp, rel=1e-12)


def test_weights_are_extrapolated_in_their_logarithms():
    """Two components whose log-ratio nears its limit geometrically."""
    unit = np.ones((2, 1))

    def at(log_ratio):
        # log w changes geometrically in both if the second weight is tiny: then log(w_1) stays near to 0.
        return GaussianMixture.from_factors(np.array([1.0, np.exp(log_ratio)]), np.array([[0.0], [1.0]]), unit)

    path = [at(v) for v in geometric_path(-3.0, 1.0, 0.5, 5)]
    squarem = Squarem(path[0], constraints(2))
    found = [squarem.extrapolate(model) for model in path[1:]][-1]
    assert found.weights[1] / found.weights[0] == pytest.approx(np.exp(-3.0), rel=1e-12)
    assert found.weights.sum() == pytest.approx(1, rel=1e-14)


def test_steps_are_longer_after_good_ones_and_shorter_after_bad_ones():
    """On a line that never ends, the step is the longest that is allowed."""
    unit = np.ones((1, 1))

    def at(place):
        return GaussianMixture(np.ones(1), np.array([[place]]), unit)

    squarem, place = Squarem(at(0.0), constraints(1)), 0.0

    def leap():
        nonlocal place
        # The tiny bend is what bounds the length of a straight line's step.
        middle, end = place + 1.0, place + 2.0 - 1e-9
        assert squarem.extrapolate(at(middle)) is None
        found = squarem.extrapolate(at(end))
        start, place = place, end
        return None if found is None else (found.means[0, 0] - start) / 2

    assert leap() is None
    for good, longest in ((True, 4), (True, 16), (False, 64), (False, 16), (True, 4), (False, 16)):
        assert leap() == pytest.approx(longest, rel=1e-5)
        squarem.judge(at(place) if good else None)
    assert leap() == pytest.approx(4, rel=1e-6)
    squarem.judge(None)
    assert leap() is None  # the step of EM itself, from where it grows again
    assert leap() == pytest.approx(4, rel=1e-6)


def test_a_good_extrapolation_is_where_the_next_begins():
    unit = np.ones((1, 1))
    models = [GaussianMixture(np.ones(1), np.array([[place]]), unit) for place in (0.0, 1.0, 1.9, 2.6, 3.1, 9.0)]
    squarem = Squarem(models[0], constraints(1))
    for model in models[1:5]:
        squarem.extrapolate(model)
    squarem.judge(models[5])
    assert squarem.has_extrapolated
    # From 9.0 by steps of 0.8 and 0.4 to the limit 9.8.
    for place, expected in ((9.4, None), (9.6, 9.8)):
        found = squarem.extrapolate(GaussianMixture(np.ones(1), np.array([[place]]), unit))
        assert found is None if expected is None else found.means[0, 0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_mixture_that_stays_where_it_is_leads_nowhere(make_mixture, covariance_type):
    model = make_mixture(3, 2, covariance_type)
    squarem = Squarem(model, constraints(3))
    assert [squarem.extrapolate(model) for _ in range(6)] == [None] * 6


def test_extrapolation_does_not_depend_on_the_units(make_mixture):
    """Means are measured in standard deviations of the mixture where EM starts."""
    start, first = make_mixture(2, 3, "diag", spread=1.0), np.random.default_rng(0).normal(size=(2, 3))
    # Every feature nears its limit at a speed of its own: the length of the step weighs one against the other.
    steps = [first * np.array([0.4, 0.6, 0.8]) ** i for i in range(4)]
    found = []
    for units in (np.ones(3), np.array([1e-3, 1.0, 1e4])):

        def at(means, units=units):
            return GaussianMixture(start.weights, means * units, start.covariances * units**2)

        squarem, means = Squarem(at(start.means), constraints(2, floor=1e-12)), start.means
        for step in steps:
            means = means + step
            last = squarem.extrapolate(at(means))
        found.append(last.means / units)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    assert np.abs(found[0] - means).max() > 0.1


@given(
    seed=st.integers(0, 2**32 - 1),
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    n_features=st.integers(1, 3),
    amp=st.sampled_from([None, 0.1, 0.5]),
    adjust=st.booleans(),
    masks=st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=3, max_size=3),
    dead=st.booleans(),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_every_extrapolation_is_a_mixture_within_the_constraints(
    seed, covariance_type, n_features, amp, adjust, masks, dead
):
    rng, floor = np.random.default_rng(seed), 0.05
    limits = constraints(3, floor, **dict(zip(("amp", "mean", "covar"), masks, strict=True)))
    frozen = limits.frozen
    edge = np.full(n_features, 30.0)
    background = None
    if amp is not None:
        background = Background(-edge, edge, amp, amp_min=0.05, amp_max=0.6, adjust_amp=adjust)

    def anything():
        covariances = rng.uniform(0.1, 3.0, size=(3, n_features))
        if covariance_type == "full":
            roots = rng.normal(size=(3, n_features, n_features)) / n_features
            covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(n_features)
        return GaussianMixture(rng.dirichlet(np.ones(3)), rng.normal(size=(3, n_features)), covariances)

    start = anything()
    if dead:
        weights = np.where(np.arange(3) == 1, 0.0, start.weights)
        start = GaussianMixture(weights / weights.sum(), start.means, start.covariances)
    start = start if background is None else start.with_background(background)
    squarem, model = Squarem(start, limits), start
    for step in range(12):
        other = anything()
        share = 0.5 ** (step + 1)  # nearer and nearer, so that steps grow
        means = np.where(frozen.means[:, None], model.means, (1 - share) * model.means + share * other.means)
        covariances = (1 - share) * model.covariances + share * other.covariances
        covariances[frozen.covariances] = model.covariances[frozen.covariances]
        free = np.where(frozen.weights, 0.0, model.weights * other.weights**share)
        amplitude = 0.0 if background is None else background.amp
        rest = 1 - amplitude - model.weights[frozen.weights].sum()
        weights = model.weights
        if free.sum() > 0:
            weights = np.where(frozen.weights, model.weights, rest * free / free.sum())
        model = GaussianMixture(weights, means, covariances, model.background)
        found = squarem.extrapolate(model)
        if found is None:
            continue
        total = found.weights.sum() + (0.0 if background is None else found.background.amp)
        assert total == pytest.approx(1, rel=1e-9)
        assert found.weights.min() >= 0
        assert not (dead and found.weights[1])
        for name in ("weights", "means", "covariances"):
            kept = getattr(frozen, name)
            assert np.array_equal(getattr(found, name)[kept], getattr(start, name)[kept]), name
        smallest = np.linalg.eigvalsh(found.full_covariances[~frozen.covariances])
        assert smallest.size == 0 or smallest.min() >= floor * (1 - 1e-9)
        if background is not None:
            assert 0.05 <= found.background.amp <= 0.6
            assert adjust or found.background.amp == amp
        # The factors that come with it are its own.
        anew = GaussianMixture(found.weights, found.means, found.covariances, found.background)
        x = rng.normal(size=(5, n_features))
        np.testing.assert_allclose(log_prob(found, x), anew.log_prob(x), rtol=1e-9, atol=1e-9)
        squarem.judge(found if rng.random() < 0.5 else None)


# ---- runs of EM --------------------------------------------------------------------------------------------------------


def creeping(covariance_type="full", n=400):
    """Noise of twenty times the variance: EM's steps shrink by a factor of 20 / 21 only."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2)) * [1.5, 1.2] + np.sqrt(20.0) * rng.normal(size=(n, 2))
    x -= x.mean(axis=0)
    # The sample as exactly what the noise and these covariances make, so that the optimum is inside the bounds.
    root = np.linalg.cholesky(np.cov(x, rowvar=False, bias=True))
    truth = np.diag([2.25, 1.44])
    x = x @ np.linalg.inv(root).T @ np.linalg.cholesky(truth + 20 * np.eye(2)).T
    covariance = np.ones((1, 2)) if covariance_type == "diag" else np.eye(2)[None]
    return x, GaussianMixture(np.ones(1), np.array([[1.0, -1.0]]), 4 * covariance), truth


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_creeping_em_is_far_quicker_and_ends_at_the_same_optimum(covariance_type):
    x, start, truth = creeping(covariance_type)
    accelerated, plain = both(x, start, noise=np.full(2, 20.0), tol=1e-13)
    assert accelerated.n_iter < plain.n_iter / 8
    expected = np.diag(truth) if covariance_type == "diag" else truth
    # The closed form: the covariance of the sample less the noise.
    np.testing.assert_allclose(accelerated.model.covariances[0], expected, atol=1e-3)
    np.testing.assert_allclose(accelerated.model.means[0], 0, atol=1e-4)
    assert accelerated.log_likelihood >= plain.log_likelihood - 1e-12
    # Plain EM stops when a step gains no more than 1e-13, the optimum being some hundred such steps away.
    assert_same_optimum(accelerated, plain, log_likelihood=1e-10, parameters=1e-2)
    assert np.diff(accelerated.history).min() >= -1e-13


PROBLEMS = {
    "plain": {},
    "shared noise": {"noise": np.array([0.6, 0.3])},
    "own noise": {"noise": "own"},
    "missing": {"missing": True},
    "background": {"background": Background([-8.0, -8.0], [8.0, 8.0], 0.3)},
    "fixed background": {"background": Background([-8.0, -8.0], [8.0, 8.0], 0.15, adjust_amp=False)},
    "bounded background": {"background": Background([-8.0, -8.0], [8.0, 8.0], 0.3, amp_min=0.25, amp_max=0.5)},
    "weight of zero": {"dead": True},
    "everything": {"noise": "own", "missing": True, "background": Background([-8.0, -8.0], [8.0, 8.0], 0.3)},
}


def overlapping(name, covariance_type):
    """Cells of two components that overlap, some of them spread over a box, and a broad start."""
    asked, rng = PROBLEMS[name], np.random.default_rng(1)
    x = rng.normal(size=(300, 2)) + np.array([[-1.7, 0.0], [1.7, 1.0]])[rng.integers(2, size=300)]
    x[:45] = rng.uniform(-8, 8, size=(45, 2))
    noise = asked.get("noise")
    if isinstance(noise, str):
        noise = rng.uniform(0.1, 0.8, size=x.shape)
    if asked.get("missing"):
        x[rng.random(x.shape) < 0.15] = np.nan
    unit = np.ones((2, 2)) if covariance_type == "diag" else np.array([np.eye(2)] * 2)
    start = GaussianMixture(np.array([0.5, 0.5]), np.array([[-2.0, -1.0], [1.0, 1.0]]), 3 * unit)
    if asked.get("dead"):
        start = GaussianMixture(
            np.array([0.5, 0.0, 0.5]),
            np.vstack([start.means[0], [0.0, 0.0], start.means[1]]),
            np.concatenate([start.covariances, start.covariances[:1]]),
        )
    if "background" in asked:
        start = start.with_background(asked["background"])
    return x, start, noise


@pytest.mark.parametrize("name", list(PROBLEMS))
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_optimum_is_that_of_plain_em_in_fewer_iterations(name, covariance_type):
    x, start, noise = overlapping(name, covariance_type)
    accelerated, plain = both(x, start, noise=noise)
    assert accelerated.converged
    assert plain.converged
    assert accelerated.n_iter < plain.n_iter
    assert accelerated.log_likelihood >= plain.log_likelihood - 1e-10
    # A gain of 1e-12 an iteration leaves 1e-9 nats, of which the flattest direction makes 1e-3.
    assert_same_optimum(accelerated, plain, log_likelihood=1e-8, parameters=5e-3)
    assert np.diff(accelerated.history).min() >= -1e-13
    if name == "weight of zero":
        assert accelerated.model.weights[1] == 0
    if name == "fixed background":
        assert accelerated.model.background.amp == 0.15
    if name == "bounded background":
        assert accelerated.model.background.amp == plain.model.background.amp == 0.25


@pytest.mark.parametrize("name", ["own noise", "missing", "background"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize(
    "frozen", [{"mean": [0]}, {"covar": [1]}, {"amp": [0]}, {"amp": [0], "mean": [1], "covar": [0]}]
)
def test_frozen_bits_are_kept_and_the_optimum_is_that_of_plain_em(name, covariance_type, frozen):
    x, start, noise = overlapping(name, covariance_type)
    limits = constraints(2, **frozen)
    accelerated, plain = both(x, start, noise=noise, limits=limits)
    assert_same_optimum(accelerated, plain, log_likelihood=1e-8, parameters=5e-3)
    assert accelerated.n_iter < plain.n_iter
    for kind, name in (("amp", "weights"), ("mean", "means"), ("covar", "covariances")):
        for k in frozen.get(kind, ()):
            assert np.array_equal(getattr(accelerated.model, name)[k], getattr(start, name)[k])


def test_covariances_end_at_the_floor_where_those_of_plain_em_do():
    """Noise of more than the variance in one feature: nothing is left for the component."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)) * [1.0, 2.0]
    start = GaussianMixture(np.ones(1), np.zeros((1, 2)), np.ones((1, 2)))
    limits = constraints(1, floor=0.01)
    accelerated, plain = both(x, start, noise=np.array([2.0, 1.0]), limits=limits, tol=1e-12)
    for fit in (accelerated, plain):
        assert fit.model.covariances[0, 0] == pytest.approx(0.01, rel=1e-12)
    assert accelerated.floored.tolist() == [True]
    assert np.diff(accelerated.history).min() >= -1e-13
    assert accelerated.model.covariances[0, 1] == pytest.approx(x[:, 1].var() - 1, abs=1e-4)


def test_only_hidden_cells_are_climbed_with_extrapolation(monkeypatch, make_cells):
    """Plain fits end after some iterations and must not change a bit."""
    made = []
    monkeypatch.setattr(run, "Squarem", lambda *arguments: made.append(arguments) or Squarem(*arguments))
    x = make_cells(100, 2)
    fit_mixture(x, 2)
    assert not made
    fit_mixture(x, 2, noise=np.ones(2), n_init=1)
    assert made


# ---- leaps that are not taken --------------------------------------------------------------------------------------


class Misled(Squarem):
    """Extrapolates to a mixture that is worse."""

    judged: list

    def extrapolate(self, model):
        super().extrapolate(model)
        return GaussianMixture(model.weights, model.means + 10.0, model.covariances, model.background)

    def judge(self, model):
        type(self).judged.append(model)
        super().judge(model)


@pytest.mark.parametrize("name", ["own noise", "background"])
def test_a_leap_that_is_not_better_is_not_taken(monkeypatch, name):
    x, start, noise = overlapping(name, "full")
    monkeypatch.setattr(run, "Squarem", Misled)
    monkeypatch.setattr(Misled, "judged", [], raising=False)
    misled, plain = both(x, start, noise=noise, tol=0, max_iter=30)
    assert Misled.judged == [None] * 29
    # With noise, the E-step remembers of the leap which component was each cell's best: another order of the sums.
    np.testing.assert_allclose(misled.history, plain.history, rtol=1e-13)
    for part, array in plain.model.arrays().items():
        np.testing.assert_allclose(misled.model.arrays()[part], array, rtol=1e-9, atol=1e-12)


def test_a_leap_that_is_as_good_is_not_taken(monkeypatch):
    """Else EM would end in a circle."""
    x, start, noise = overlapping("own noise", "full")

    class Still(Misled):
        def extrapolate(self, model):
            Squarem.extrapolate(self, model)
            return model

    monkeypatch.setattr(run, "Squarem", Still)
    monkeypatch.setattr(Still, "judged", [], raising=False)
    run_em(x, start, accelerated=True, noise=noise, max_iter=5, tol=0)
    assert Still.judged == [None] * 4


def test_a_leap_that_is_better_is_taken_with_its_likelihood(monkeypatch):
    x, start, noise = overlapping("own noise", "full")
    best = run_em(x, start, accelerated=True, noise=noise).model

    class Prophetic(Misled):
        def extrapolate(self, model):
            Squarem.extrapolate(self, model)
            return best

    monkeypatch.setattr(run, "Squarem", Prophetic)
    monkeypatch.setattr(Prophetic, "judged", [], raising=False)
    fit = run_em(x, start, accelerated=True, noise=noise, max_iter=2, tol=0)
    assert Prophetic.judged == [best]
    assert fit.history[1] == pytest.approx(log_prob(best, x, noise).mean(), rel=1e-12)
    # The last iteration is EM's own.
    assert fit.model is not best


def test_there_is_no_leap_after_the_last_iteration():
    """Whose result is what EM itself made of the one before."""
    x, start, noise = overlapping("own noise", "full")
    fit = run_em(x, start, accelerated=True, noise=noise, max_iter=1, tol=0)
    plain = run_em(x, start, accelerated=False, noise=noise, max_iter=1, tol=0)
    assert np.array_equal(fit.history, plain.history)
    assert np.array_equal(fit.model.means, plain.model.means)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_fit_is_what_a_climb_without_leaps_would_reach(make_cells, covariance_type):
    """Through the front door, with the floor and the starts of a fit."""
    x = make_cells(200, 2, n_components=2, seed=2)
    noise = np.array([0.1, 0.2])
    fit = fit_mixture(x, 2, covariance_type=covariance_type, noise=noise, tol=1e-12)
    assert fit.converged
    limits = constraints(2, floor=covariance_floor(x.var(axis=0), 1e-4, "guarded"))
    again = run_em(x, fit.model, accelerated=False, noise=noise, limits=limits)
    assert again.log_likelihood == pytest.approx(fit.log_likelihood, abs=1e-8)
