"""Truncated and incomplete samples: the unseen share, the likelihood, and what may be wrong with a user's function."""

from contextlib import contextmanager

import numpy as np
import pytest
from cut_cells import (
    COVARIANCE_TYPES,
    FEW,
    MANY,
    SHARE_ERROR,
    above,
    constantly,
    everywhere,
    seen_of,
    selection_of,
    slope,
    truncated,
    unseen_share,
    within,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from cohortgmm.errors import DivergedError
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.estep.truncated import QuadratureNodes, TruncatedExpectation, unobserved_moments
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.measurements import Measurements


@pytest.fixture
def few_nodes(tune):
    """Fits that need not be accurate to more than a hundredth."""
    tune(most_nodes=1 << 12)


def nowhere(x):
    return np.zeros(len(x))


def logistic(x):
    return 1.0 / (1.0 + np.exp(-2.0 * x[:, 0] - x.sum(axis=1)))


def free(n_components, floor=1e-9):
    return Constraints(floor, False, Frozen.from_argument(None, n_components))


def mixture_1d():
    return GaussianMixture(
        np.array([0.5, 0.3, 0.2]), np.array([[-1.0], [0.5], [4.0]]), np.array([[[1.0]], [[0.09]], [[4.0]]])
    )


# ---- the unseen share ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [-3.0, -1.0, 0.45, 3.0])
@pytest.mark.parametrize("n_nodes", [MANY, FEW])
def test_the_unseen_share_beyond_an_edge_is_that_of_the_normal_distribution(c, n_nodes):
    model = mixture_1d()
    exact = model.weights @ stats.norm.cdf(c, model.means[:, 0], np.sqrt(model.covariances[:, 0, 0]))
    assert unseen_share(model, above(c), n_nodes) == pytest.approx(exact, abs=SHARE_ERROR[n_nodes])


@pytest.mark.parametrize("function", [slope, logistic])
def test_the_unseen_share_of_a_slope_is_the_integral(function):
    model = mixture_1d()

    def seen(t):
        x = np.array([[t]])
        return float(np.exp(model.log_prob(x)[0]) * function(x)[0])

    exact = 1 - integrate.quad(seen, -12, 25, points=[-1, 0, 0.5, 1, 4], limit=300, epsabs=1e-10)[0]
    # Without an edge the error of quasi-random nodes is far smaller.
    assert unseen_share(model, function) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_unseen_share_outside_a_box_is_that_of_the_normal_distribution(make_mixture, covariance_type):
    model = make_mixture(3, 2, covariance_type, spread=1.0)
    lower, upper = np.array([-1.0, -2.0]), np.array([2.0, 1.5])
    inside = [
        stats.multivariate_normal(mean, covariance).cdf(upper, lower_limit=lower)
        for mean, covariance in zip(model.means, model.full_covariances, strict=True)
    ]
    exact = 1 - model.weights @ inside
    # The edge of a box in two dimensions passes by some hundred nodes of 2^17.
    assert unseen_share(model, within(lower, upper)) == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize(("n_features", "error"), [(1, 5e-6), (2, 2e-5), (6, 2e-3)])
def test_nodes_integrate_every_mixture_near_to_their_origin_to_one(make_mixture, covariance_type, n_features, error):
    """Where no cell is seen, the unseen share is all."""
    origin, rng = make_mixture(3, n_features, covariance_type), np.random.default_rng(0)
    nodes = selection_of(nowhere).nodes(origin, MANY)
    assert len(nodes.points) >= MANY / 2
    for size in (0.0, 0.02, 0.05, 0.1):
        weights = rng.dirichlet(np.ones(3))
        shift = size * rng.normal(size=origin.means.shape) * np.sqrt(np.einsum("kdd->kd", origin.full_covariances))
        model = GaussianMixture(weights, origin.means + shift, origin.covariances * (1 + size))
        total = unobserved_moments(model, nodes)
        assert total.nk.sum() == pytest.approx(1, abs=error), size
        # Each component by itself, however few of the cells were its own in the origin.
        np.testing.assert_allclose(total.nk, weights, atol=error)


def test_a_component_of_almost_no_weight_has_its_share_of_nodes():
    """It may gain weight while the nodes stay where they are."""
    means, covariances = np.array([[-4.0], [4.0]]), np.ones((2, 1, 1))
    origin = GaussianMixture(np.array([1e-9, 1 - 1e-9]), means, covariances)
    nodes = selection_of(above(0.0)).nodes(origin, FEW)
    assert nodes.distance(GaussianMixture(np.array([0.5, 0.5]), means, covariances)) == pytest.approx(0, abs=1e-12)
    for weight in (1e-9, 0.2, 0.9):
        model = GaussianMixture(np.array([weight, 1 - weight]), means, covariances)
        exact = weight * stats.norm.cdf(4) + (1 - weight) * stats.norm.cdf(-4)
        assert unobserved_moments(model, nodes).nk.sum() == pytest.approx(exact, abs=5e-4)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moments_of_the_unseen_are_those_of_truncated_normals(covariance_type):
    """Independent features of which the first is cut off: it has truncated moments, the other one all of its own."""
    c, weights, means = 0.5, np.array([0.3, 0.7]), np.array([[0.0, 1.0], [2.0, -1.0]])
    variances = np.array([[1.0, 4.0], [2.25, 0.25]])
    covariances = variances if covariance_type == "diag" else variances[:, :, None] * np.eye(2)
    model = GaussianMixture(weights, means, covariances)
    moments = unobserved_moments(model, selection_of(above(c)).nodes(model, MANY))
    for k in range(2):
        scale = np.sqrt(variances[k, 0])
        cut = stats.truncnorm(-np.inf, (c - means[k, 0]) / scale, loc=means[k, 0], scale=scale)
        share = weights[k] * stats.norm.cdf(c, means[k, 0], scale)
        assert moments.nk[k] == pytest.approx(share, abs=1e-4)
        first = np.array([cut.mean() - means[k, 0], 0.0])
        second = np.diag([cut.var() + first[0] ** 2, variances[k, 1]])
        np.testing.assert_allclose(moments.first[k], share * first, atol=3e-4)
        second = np.diag(second) if covariance_type == "diag" else second
        np.testing.assert_allclose(moments.second[k], share * second, atol=1e-3)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_unseen_share_behind_noise_is_that_of_what_is_measured(make_mixture, covariance_type):
    model, noise = make_mixture(2, 2, covariance_type, spread=1.0), np.array([0.5, 2.0])
    for feature in range(2):
        scale = np.sqrt(model.full_covariances[:, feature, feature] + noise[feature])
        exact = model.weights @ stats.norm.cdf(0.3, model.means[:, feature], scale)
        share = unseen_share(model, above(0.3, feature), noise_at=noise)
        # Two features and their noise are four dimensions, in which nodes are less even.
        assert share == pytest.approx(exact, abs=1e-3)


def test_moments_of_the_unseen_are_of_the_cells_behind_the_noise():
    """By regression of the cell on what is measured of it, which is what the edge cuts off."""
    mean, variance, noise, c = 0.5, 2.0, 3.0, 0.2
    model = GaussianMixture(np.ones(1), np.array([[mean]]), np.array([[[variance]]]))
    moments = unobserved_moments(model, selection_of(above(c), np.array([noise])).nodes(model, MANY))
    scale = np.sqrt(variance + noise)
    cut = stats.truncnorm(-np.inf, (c - mean) / scale, loc=mean, scale=scale)
    share, gain = stats.norm.cdf(c, mean, scale), variance / (variance + noise)
    first = gain * (cut.mean() - mean)
    second = gain**2 * (cut.var() + (cut.mean() - mean) ** 2) + gain * noise
    np.testing.assert_allclose(moments.nk, share, atol=1e-4)
    np.testing.assert_allclose(moments.first[0], share * first, atol=5e-4)
    np.testing.assert_allclose(moments.second[0], share * second, atol=2e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [None, 0.04])
def test_the_unseen_share_of_the_background_is_that_of_its_box(seed, noise):
    """Uniform between 0 and 1, cut off at 0.2; through noise, cell by cell of the box."""
    model = GaussianMixture(np.array([0.6]), np.array([[9.0]]), np.array([[[0.01]]]), Background([0.0], [1.0], 0.4))
    noise_at = None if noise is None else np.array([noise])
    share = selection_of(above(0.2), noise_at, seed).nodes(model, FEW).background_share
    exact = 0.2
    if noise is not None:
        exact = integrate.quad(lambda t: stats.norm.cdf(0.2, t, np.sqrt(noise)), 0, 1)[0]
    # 2^14 nodes; with noise the box and the noise are two dimensions.
    assert share == pytest.approx(exact, abs=3e-3)


@pytest.mark.parametrize("noise", [None, np.array([0.5, 0.1])])
def test_the_unseen_background_counts_by_its_amplitude(noise):
    background = Background([-2.0, -2.0], [2.0, 2.0], 0.4)
    model = GaussianMixture(np.array([0.6]), np.array([[9.0, 0.0]]), np.array([[0.01, 0.01]]), background)
    x = np.vstack([model.sample(50, 0)[0], [[1.0, 1.0]]])
    moments = truncated(x, selection_of(above(0.0), noise), model, noise=noise)(model)
    # Half of the box is below 0, also through symmetric noise.
    assert moments.n_unobserved / (moments.n + moments.n_unobserved) == pytest.approx(0.2, abs=2e-3)
    assert moments.nk.sum() < moments.n


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_mixture_of_background_alone_has_nodes_too(make_mixture, covariance_type):
    """Its components have no weight, and may have died."""
    model = make_mixture(2, 2, covariance_type).with_background(Background([-1.0, -1.0], [3.0, 1.0], 1.0))
    x = np.array([[0.5, 0.5], [2.0, 0.0]])
    moments = truncated(x, selection_of(above(0.0)), model)(model)
    assert not moments.nk.any()
    assert moments.n_unobserved == pytest.approx(2 / 3, rel=2e-3)
    assert moments.log_likelihood == pytest.approx(2 * np.log(1 / 8 / 0.75), abs=2e-3)


@pytest.mark.usefixtures("few_nodes")
def test_a_fit_of_which_the_background_takes_all_cells_is_finite():
    x = np.random.default_rng(0).uniform(0, 1, size=(50, 1))
    background = Background([-1.0], [1.0], 0.5)
    far = GaussianMixture(np.array([0.5]), np.array([[1e4]]), np.ones((1, 1, 1)), background)
    fit = fit_mixture(x, 1, initial=far, completeness=above(0.0))
    assert fit.model.background.amp == 1
    assert fit.model.weights[0] == 0
    assert fit.completeness == pytest.approx(0.5, abs=2e-3)
    assert fit.log_likelihood == pytest.approx(0, abs=5e-3)  # uniform between 0 and 1


def test_only_nodes_that_may_be_unseen_are_kept():
    nodes = selection_of(above(0.0)).nodes(mixture_1d(), FEW)
    assert len(nodes.points) < FEW
    assert nodes.points.max() <= 0
    assert np.isfinite(nodes.log_weights).all()
    assert len(selection_of(everywhere).nodes(mixture_1d(), FEW).points) == 0


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_nodes_are_the_same_in_every_bit_for_the_same_seed(make_mixture, covariance_type):
    model, noise = make_mixture(3, 2, covariance_type), np.array([0.1, 0.2])
    left, right, other = (selection_of(above(0.0), noise, seed).nodes(model, 1000) for seed in (3, 3, 4))
    assert np.array_equal(left.points, right.points)
    assert np.array_equal(left.log_weights, right.log_weights)
    assert not np.array_equal(left.points[:10], other.points[:10])


# ---- how far nodes serve -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_distance_of_nodes_is_the_largest_divergence_of_a_component(make_mixture, covariance_type):
    origin, model = (make_mixture(3, 4, covariance_type, seed=seed, spread=1.0) for seed in (0, 1))
    divergences = []
    for k in range(3):
        inverse = np.linalg.inv(origin.full_covariances[k])
        shift = model.means[k] - origin.means[k]
        ratio = np.linalg.slogdet(model.full_covariances[k])[1] - np.linalg.slogdet(origin.full_covariances[k])[1]
        trace = np.trace(inverse @ model.full_covariances[k])
        divergences.append(0.5 * (trace - 4 - ratio + shift @ inverse @ shift))
    nodes = QuadratureNodes(np.empty((0, 4)), np.empty(0), origin)
    assert nodes.distance(model) == pytest.approx(max(divergences), rel=1e-10)
    assert nodes.distance(origin) == 0
    assert nodes.distance(GaussianMixture(origin.weights, origin.means, origin.covariances)) == pytest.approx(
        0, abs=1e-12
    )


@pytest.mark.parametrize(
    ("divergence", "covers", "is_settled"), [(0.004, True, True), (0.006, True, False), (0.06, False, False)]
)
def test_nodes_serve_for_mixtures_that_are_near(divergence, covers, is_settled):
    model = GaussianMixture(np.ones(1), np.zeros((1, 1)), np.full((1, 1, 1), 4.0))
    expectation = truncated(np.ones((5, 1)), selection_of(above(0.0)), model, 64)
    shifted = GaussianMixture(model.weights, model.means + 2 * np.sqrt(2 * divergence), model.covariances)
    assert (expectation.covers(shifted), expectation.is_settled(shifted)) == (covers, is_settled)


def test_the_coarse_version_has_fewer_nodes_in_the_next_run():
    model = mixture_1d()
    expectation = truncated(np.ones((5, 1)), selection_of(nowhere), model, 1 << 16)
    other = expectation.coarse()
    assert other.nodes is None
    assert len(other.begin(model).nodes.points) < len(expectation.nodes.points) / 8


# ---- the likelihood ------------------------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_cells_that_were_seen():
    model, x = mixture_1d(), np.array([[0.1], [2.0], [5.0]])
    moments = truncated(x, selection_of(above(0.0)), model, MANY)(model)
    scales = np.sqrt(model.covariances[:, 0, 0])
    seen = model.weights @ stats.norm.sf(0.0, model.means[:, 0], scales)
    density = stats.norm.pdf(x, model.means[:, 0], scales) @ model.weights
    # Each of three cells takes the error of the share once.
    assert moments.log_likelihood == pytest.approx(np.log(density / seen).sum(), abs=3e-4)
    assert moments.n == 3
    assert moments.n_unobserved == pytest.approx(3 * (1 - seen) / seen, rel=1e-3)
    assert moments.nk.sum() == pytest.approx(3 / seen, rel=1e-3)


NOISES = {
    "none": lambda n, d, rng: None,
    "shared": lambda n, d, rng: rng.uniform(0.1, 1.0, size=d),
    "own": lambda n, d, rng: rng.uniform(0.1, 1.0, size=(n, d)),
    "full": lambda n, d, rng: 0.3 * (lambda a: a @ a.transpose(0, 2, 1))(rng.normal(size=(n, d, d))),
}

FUNCTIONS = {"edge": above(-0.3), "logistic": logistic, "constant": constantly(0.3), "slope": slope}


@st.composite
def problems(draw):
    """Cells with complications, and a random start on nodes of its own."""
    n, d, k = draw(st.integers(20, 80)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(n, d)) + 2.0 * rng.integers(2, size=(n, 1))
    if draw(st.booleans()):
        x[rng.random(x.shape) < 0.2] = np.nan
        x[0] = 0.5
    noise = NOISES[draw(st.sampled_from(list(NOISES)))](n, d, rng)
    background = Background(np.full(d, -3.0), np.full(d, 4.0), 0.2) if draw(st.booleans()) else None
    covariances = rng.uniform(0.3, 2.0, size=(k, d))
    if draw(st.booleans()):
        roots = rng.normal(size=(k, d, d)) / np.sqrt(d)
        covariances = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(d)
    start = GaussianMixture(rng.dirichlet(np.ones(k)), 1.5 * rng.normal(size=(k, d)), covariances)
    start = start if background is None else start.with_background(background)
    noise_at = draw(st.sampled_from([None, np.full(d, 0.4)]))
    selection = selection_of(FUNCTIONS[draw(st.sampled_from(list(FUNCTIONS)))], noise_at, draw(st.integers(0, 99)))
    return truncated(x, selection, start, draw(st.sampled_from([64, 512])), noise), start


@contextmanager
def assume_not_diverged():
    """Few nodes may add up to more than all cells: no example of the property."""
    try:
        yield
    except DivergedError:
        assume(False)


@given(problems())
@settings(max_examples=80, derandomize=True, deadline=None)
def test_em_on_fixed_nodes_never_loses_likelihood(problem):
    """Few and bad nodes are as good as many: they define the likelihood that EM raises."""
    expectation, model = problem
    with assume_not_diverged():
        moments = expectation(model)
    for _ in range(10):
        model, _ = m_step(moments, model, free(model.n_components))
        before = moments.log_likelihood
        with assume_not_diverged():
            moments = expectation(model)
        # Sums over 80 cells of some ten nats round at 1e-12.
        assert moments.log_likelihood >= before - 1e-9


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("noise", [None, np.array([0.2, 0.4])])
def test_the_m_step_climbs_along_the_gradient_of_the_truncated_likelihood(make_mixture, covariance_type, noise):
    """The gradient by finite differences, in the mean: what EM adds up is its other form, Σ⁻¹ × first moment."""
    model = make_mixture(2, 2, covariance_type, spread=1.0)
    x = seen_of(model.sample(300, 1)[0], above(-0.5))
    expectation = truncated(x, selection_of(above(-0.5), noise), model, noise=noise)
    moments = expectation(model)
    for k in range(2):
        gradient = np.linalg.solve(model.full_covariances[k], moments.first[k])
        for d in range(2):
            step = 1e-4 * (np.arange(2) == d) * (np.arange(2) == k)[:, None]
            up, down = (
                expectation(GaussianMixture(model.weights, model.means + s, model.covariances)).log_likelihood
                for s in (step, -step)
            )
            # Central differences of 1e-4 err by 1e-8 of the third derivative, and round at 1e-9.
            assert (up - down) / 2e-4 == pytest.approx(gradient[d], rel=1e-5, abs=1e-4)


@pytest.mark.usefixtures("stops_early")
def test_screened_cells_that_are_left_alone_take_their_unseen_part_with_them(make_mixture):
    """The E-step of many features remembers its moments; what is added for the unseen must not get into them."""
    x = make_mixture(3, 20, spread=0.7).sample(3000, 0)[0]
    # Where completeness is the same everywhere, the optimum is that of the cells, where the nodes are made.
    start = fit_mixture(x, 3, tol=1e-9).model
    selection = selection_of(constantly(0.6))
    seen = (ScreenedExpectation(Measurements(x).whole, 3), choose_estep(Measurements(x), 3, "full"))
    screened, dense = (TruncatedExpectation(e, selection, 1 << 12).begin(start) for e in seen)
    left = right = start
    bounds = []
    for _ in range(6):
        moments, exact = screened(left), dense(right)
        bounds.append(moments.is_bound)
        assert moments.n_unobserved == pytest.approx(exact.n_unobserved, rel=1e-3)
        # Settled cells lag behind by less than a thousandth of a cell each.
        np.testing.assert_allclose(moments.nk, exact.nk, rtol=1e-3)
        left, right = (m_step(m, at, free(3))[0] for m, at in ((moments, left), (exact, right)))
    assert any(bounds)
