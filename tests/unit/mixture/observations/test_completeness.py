"""Truncated and incomplete samples: the unseen share, the likelihood, and what may be wrong with a user's function."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from cohortgmm.errors import CohortgmmError, DataError, DivergedError
from cohortgmm.mixture import fit as em
from cohortgmm.mixture.em.constraints import Constraints, Frozen
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.estep.choose import choose_estep
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.estep.truncated import QuadratureNodes, Selection, TruncatedExpectation, unobserved_moments
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.completeness import Completeness, NoiseOfRandomCells, scaled_noise
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]

# Quasi-random nodes err by about one node per edge: 1e-5 of the unseen share with 2^17 of them, 1e-4 with 2^14. What
# that does to a mean or a standard deviation is multiplied by how little the seen cells tell about them, here up to
# some thirty.
MANY, FEW = 1 << 17, 1 << 14
SHARE_ERROR = {MANY: 5e-5, FEW: 5e-4}
FIT_ERROR = 2e-3


@pytest.fixture
def few_nodes(tune):
    """Fits that need not be accurate to more than a hundredth."""
    tune(most_nodes=1 << 12)


@pytest.fixture
def many_nodes(tune):
    """Fits that are compared with closed forms."""
    tune(fewest_nodes=MANY)


def above(c, feature=0):
    """Cells are seen where a feature is above c."""
    return lambda x: (x[:, feature] > c).astype(float)


def within(lower, upper):
    return lambda x: ((x > lower) & (x < upper)).all(axis=1).astype(float)


def everywhere(x):
    return np.ones(len(x))


def nowhere(x):
    return np.zeros(len(x))


def constantly(c):
    return lambda x: np.full(len(x), c)


def logistic(x):
    return 1.0 / (1.0 + np.exp(-2.0 * x[:, 0] - x.sum(axis=1)))


def slope(x):
    return np.clip(1.0 - x[:, 0], 0.0, 1.0)


def selection_of(function, noise_at=None, seed=7):
    return Selection(Completeness(function), noise_at, seed)


def unseen_share(model, function, n_nodes=MANY, noise_at=None, seed=7, at=None):
    """Share of a mixture that is not seen, from nodes made for it, or for ``at``."""
    nodes = selection_of(function, noise_at, seed).nodes(model if at is None else at, n_nodes)
    return unobserved_moments(model, nodes).nk.sum()


def truncated(x, selection, start, n_nodes=FEW, noise=None):
    """The E-step with its nodes made for ``start``."""
    cells = Measurements(x, noise, background=start.background)
    seen = choose_estep(cells, start.n_components, start.covariance_type)
    return TruncatedExpectation(seen, selection, n_nodes).begin(start)


def free(n_components, floor=1e-9):
    return Constraints(floor, False, Frozen.from_argument(None, n_components))


def seen_of(x, function, seed=0):
    """The cells that are chosen with the probabilities that ``function`` gives."""
    return x[np.random.default_rng(seed).random(len(x)) < function(x)]


def minimum(negative_log_likelihood, start=(0.0, 0.0)):
    """Mean and standard deviation, from the minimum over mean and logarithm of the standard deviation."""
    found = optimize.minimize(
        negative_log_likelihood, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 1000}
    )
    assert found.success
    return found.x[0], np.exp(found.x[1]), -found.fun


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
def climbs(draw):
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


@given(climbs())
@settings(max_examples=80, derandomize=True, deadline=None)
def test_em_on_fixed_nodes_never_loses_likelihood(climb):
    """Few and bad nodes are as good as many: they define the likelihood that is climbed."""
    expectation, model = climb
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


# ---- fits ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_nodes")
def test_a_normal_cut_off_on_one_side_is_fitted_at_its_maximum_likelihood():
    function, rng = above(-0.5), np.random.default_rng(1)
    x = seen_of(rng.normal(size=(1500, 1)), function)
    mean, scale, log_likelihood = minimum(
        lambda p: -(stats.norm.logpdf(x, p[0], np.exp(p[1])) - stats.norm.logsf(-0.5, p[0], np.exp(p[1]))).mean()
    )
    assert abs(x.mean() - mean) > 0.4  # what a fit without the cut would find
    fit = fit_mixture(x, 1, completeness=function, tol=1e-12)
    assert fit.converged
    assert fit.model.means[0, 0] == pytest.approx(mean, abs=FIT_ERROR)
    assert np.sqrt(fit.model.covariances[0, 0, 0]) == pytest.approx(scale, abs=FIT_ERROR)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=SHARE_ERROR[MANY])
    seen = stats.norm.sf(-0.5, mean, scale)
    assert fit.completeness == pytest.approx(seen, abs=FIT_ERROR)
    assert fit.n_unobserved == pytest.approx(len(x) * (1 - seen) / seen, rel=4 * FIT_ERROR)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("noise", [1.0, "own"])
def test_a_normal_behind_noise_cut_off_on_one_side_is_fitted_at_its_maximum_likelihood(noise):
    """With noise of their own, the cells' share Z is a mean over the noise that the cells, seen and unseen, may have."""
    c, rng = -0.5, np.random.default_rng(3)
    everyone = rng.normal(size=(4000, 1))
    if noise == "own":
        variances = rng.choice([0.25, 2.0], size=(4000, 1))
        noise_at = None
    else:
        variances = np.full((4000, 1), noise)
    x = everyone + np.sqrt(variances) * rng.normal(size=(4000, 1))
    chosen = x[:, 0] > c
    x, variances = x[chosen], variances[chosen]
    if noise == "own":
        given_noise, share_of = variances, {v: np.mean(variances == v) for v in (0.25, 2.0)}
    else:
        given_noise, noise_at, share_of = np.array([noise]), None, {noise: 1.0}

    def negative(p):
        scale = np.sqrt(np.exp(2 * p[1]) + variances)
        seen = sum(share * stats.norm.sf(c, p[0], np.sqrt(np.exp(2 * p[1]) + v)) for v, share in share_of.items())
        return -(stats.norm.logpdf(x, p[0], scale) - np.log(seen)).mean()

    mean, scale, log_likelihood = minimum(negative)
    fit = fit_mixture(x, 1, completeness=above(c), noise=given_noise, noise_at=noise_at, tol=1e-11)
    # Noise that is drawn at random has a standard error of 5e-4 in the unseen share of a third, with 2^17 draws.
    error = 1 if noise == "own" else 0.2
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=3e-3 * error)
    assert fit.model.means[0, 0] == pytest.approx(mean, abs=2e-2 * error)
    assert np.sqrt(fit.model.covariances[0, 0, 0]) == pytest.approx(scale, abs=2e-2 * error)


@pytest.mark.usefixtures("many_nodes")
def test_independent_features_in_a_box_are_fitted_one_by_one():
    lower, upper = np.array([-0.7, -1.0]), np.array([1.2, 1.5])
    function = within(lower, upper)
    x = seen_of(np.random.default_rng(0).normal(size=(3000, 2)), function)
    fit = fit_mixture(x, 1, completeness=function, covariance_type="diag", tol=1e-12, n_init=1)
    seen = 1.0
    for d in range(2):

        def negative(p, d=d):
            inside = np.diff(stats.norm.cdf([lower[d], upper[d]], p[0], np.exp(p[1])))
            return -(stats.norm.logpdf(x[:, d], p[0], np.exp(p[1])) - np.log(inside)).mean()

        mean, scale, _ = minimum(negative)
        seen *= float(np.diff(stats.norm.cdf([lower[d], upper[d]], mean, scale))[0])
        assert fit.model.means[0, d] == pytest.approx(mean, abs=FIT_ERROR)
        assert np.sqrt(fit.model.covariances[0, d]) == pytest.approx(scale, abs=FIT_ERROR)
    assert fit.completeness == pytest.approx(seen, abs=FIT_ERROR)


@pytest.mark.usefixtures("many_nodes")
def test_no_neighbour_of_a_correlated_normal_in_a_box_is_more_likely():
    lower, upper = np.array([-1.0, -1.0]), np.array([1.5, 1.2])
    function, rng = within(lower, upper), np.random.default_rng(2)
    x = seen_of(rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=2500), function)
    fit = fit_mixture(x, 1, completeness=function, tol=1e-12, n_init=1)

    def log_likelihood(mean, covariance):
        normal = stats.multivariate_normal(mean, covariance)
        return normal.logpdf(x).mean() - np.log(normal.cdf(upper, lower_limit=lower))

    mean, covariance = fit.model.means[0], fit.model.covariances[0]
    here = log_likelihood(mean, covariance)
    assert fit.log_likelihood == pytest.approx(here, abs=5e-4)
    for _ in range(40):
        root = np.eye(2) + 0.05 * rng.normal(size=(2, 2))
        there = log_likelihood(mean + 0.05 * rng.normal(size=2), root @ covariance @ root.T)
        assert there <= here + 1e-5


@pytest.mark.usefixtures("many_nodes")
def test_a_slope_is_fitted_at_its_maximum_likelihood():
    x = seen_of(np.random.default_rng(5).normal(size=(2500, 1)), slope)

    def negative(p):
        scale = np.exp(p[1])
        # ∫ (1 − t) p(t) dt from 0 to 1, by parts of the normal distribution.
        low, high = (np.array([0.0, 1.0]) - p[0]) / scale
        ramp = (1 - p[0]) * (stats.norm.cdf(high) - stats.norm.cdf(low)) + scale * (
            stats.norm.pdf(high) - stats.norm.pdf(low)
        )
        seen = stats.norm.cdf(0.0, p[0], scale) + ramp
        return -(stats.norm.logpdf(x, p[0], scale) - np.log(seen)).mean()

    mean, scale, log_likelihood = minimum(negative)
    fit = fit_mixture(x, 1, completeness=slope, tol=1e-12)
    assert fit.model.means[0, 0] == pytest.approx(mean, abs=1e-4)
    assert np.sqrt(fit.model.covariances[0, 0, 0]) == pytest.approx(scale, abs=1e-4)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-6)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_fit_is_as_likely_as_one_that_starts_at_the_truth(covariance_type):
    truth = GaussianMixture(
        np.array([0.6, 0.4]),
        np.array([[0.0, 0.0], [4.0, 1.0]]),
        np.array([[1.0, 0.5], [0.7, 2.0]]) if covariance_type == "diag" else np.array([np.eye(2)] * 2),
    )
    function = above(-0.5)
    x = truth.sample_observed(1000, 3, completeness=function).x
    options = {"covariance_type": covariance_type, "completeness": function}
    fit = fit_mixture(x, 2, **options)
    reference = fit_mixture(x, 2, initial=truth, **options)
    assert fit.log_likelihood >= reference.log_likelihood - 1e-3
    # On the same nodes, more of them, and other ones.
    on_nodes = [
        truncated(x, selection_of(function, seed=123), f.model, MANY << 1)(f.model).log_likelihood / len(x)
        for f in (fit, reference)
    ]
    assert on_nodes[0] >= on_nodes[1] - 1e-3
    assert fit.log_likelihood == pytest.approx(on_nodes[0], abs=1e-4)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_number_of_unobserved_cells_is_near_the_true_one(covariance_type):
    covariances = np.array([[1.0, 1.5], [0.5, 1.0]])
    covariances = covariances if covariance_type == "diag" else covariances[:, :, None] * np.eye(2)
    truth = GaussianMixture(np.array([0.7, 0.3]), np.array([[0.0, 0.0], [5.0, 2.0]]), covariances)
    function = above(-0.3)
    sample = truth.sample_observed(4000, 5, completeness=function)
    fit = fit_mixture(sample.x, 2, covariance_type=covariance_type, completeness=function, n_init=2)
    true = sample.n_drawn - 4000
    assert true > 1000
    # Counting alone has a standard deviation of √(n U) / (1 − U), here 3 %; what the cells tell of the mean and width
    # of the component that is cut off adds about 4 %.
    assert fit.n_unobserved == pytest.approx(true, rel=0.15)
    assert fit.completeness == pytest.approx(4000 / sample.n_drawn, rel=0.04)
    # The number is that of the model.
    scale = np.sqrt(fit.model.full_covariances[:, 0, 0])
    share = fit.model.weights @ stats.norm.cdf(-0.3, fit.model.means[:, 0], scale)
    assert fit.n_unobserved == pytest.approx(4000 * share / (1 - share), rel=1e-3)


def test_a_truncated_mixture_with_noise_and_background_is_found_again():
    truth = GaussianMixture(
        np.array([0.5, 0.3]),
        np.array([[0.0, 0.0], [4.0, 3.0]]),
        np.array([[[1.0, 0.3], [0.3, 0.5]], [[0.5, 0.0], [0.0, 1.5]]]),
        Background([-6.0, -6.0], [9.0, 9.0], 0.2),
    )
    noise, function = np.array([0.2, 0.4]), above(-0.5)
    sample = truth.sample_observed(5000, 1, noise=noise, completeness=function)
    fit = fit_mixture(
        sample.x, 2, completeness=function, noise=noise, background=truth.background.with_amp(0.1), n_init=3
    )
    order = np.argsort(fit.model.means[:, 0])
    # Some four standard errors of 5,000 cells, half of a component's being cut off.
    np.testing.assert_allclose(fit.model.means[order], truth.means, atol=0.2)
    np.testing.assert_allclose(fit.model.covariances[order], truth.covariances, atol=0.25)
    np.testing.assert_allclose(fit.model.weights[order], truth.weights, atol=0.05)
    assert fit.model.background.amp == pytest.approx(0.2, abs=0.04)
    assert fit.n_unobserved == pytest.approx(sample.n_drawn - 5000, rel=0.1)


@pytest.mark.usefixtures("many_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("c", [1.0, 0.02])
def test_a_completeness_that_is_the_same_everywhere_tells_nothing(make_cells, covariance_type, c):
    """The fit is that of the cells, and the unseen are as many as the completeness says."""
    x = make_cells(300, 2, n_components=1)
    fit = fit_mixture(x, 1, covariance_type=covariance_type, completeness=constantly(c), tol=1e-12)
    covariance = np.cov(x, rowvar=False, bias=True)
    covariance = np.diag(covariance) if covariance_type == "diag" else covariance
    # What is off in 98 % of unseen cells is enlarged by 50.
    error = {1.0: 1e-9, 0.02: 5e-3}[c]
    np.testing.assert_allclose(fit.model.means[0], x.mean(axis=0), atol=error)
    np.testing.assert_allclose(fit.model.covariances[0], covariance, atol=error)
    matrix = np.diag(covariance) if covariance_type == "diag" else covariance
    plain = stats.multivariate_normal(x.mean(axis=0), matrix)
    # What is seen has the density p Ω / Z = p: the likelihood is given without the constant Ω.
    assert fit.log_likelihood == pytest.approx(plain.logpdf(x).mean() - np.log(c), abs=error)
    assert fit.completeness == pytest.approx(c, rel=1e-3)
    assert fit.n_unobserved == pytest.approx(300 * (1 - c) / c, rel=1e-3, abs=1e-9)


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("noise", [None, "own"])
@pytest.mark.parametrize("background", [None, Background([-9.0, -9.0], [9.0, 9.0], 0.1)])
@pytest.mark.parametrize("missing", [False, True])
def test_a_completeness_of_one_everywhere_is_none(start_at_cells, noise, background, missing):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 2)) + 6.0 * rng.integers(2, size=(120, 1))
    start = start_at_cells(x, 2)
    if missing:
        x = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    options = {
        "initial": start,
        "noise": None if noise is None else np.full(x.shape, 0.1),
        "background": background,
        "tol": 1e-9,
    }
    with_it, without = (fit_mixture(x, 2, completeness=f, **options) for f in (everywhere, None))
    # To begin again with new nodes makes another path to the same optimum.
    assert with_it.log_likelihood == pytest.approx(without.log_likelihood, abs=1e-6)
    assert with_it.n_unobserved == 0
    assert with_it.completeness == 1


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_fit_is_the_same_in_every_bit_when_repeated(make_mixture, assert_bit_identical, covariance_type):
    x = seen_of(make_mixture(2, 2, covariance_type, seed=3).sample(300, 0)[0], above(-1.0))
    options = {"covariance_type": covariance_type, "completeness": above(-1.0), "n_init": 2}
    fit = fit_mixture(x, 2, **options)
    assert_bit_identical(fit, fit_mixture(x, 2, **options))
    assert_bit_identical(fit, fit_mixture(x, 2, random_state=np.random.default_rng(0), n_threads=2, **options))
    other = fit_mixture(x, 2, random_state=1, **options)
    # Other nodes, the same likelihood but for their error; the starts agree on data like these.
    assert other.log_likelihood == pytest.approx(fit.log_likelihood, abs=2e-3)
    assert other.log_likelihood != fit.log_likelihood


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("noise", [None, np.array([0.1, 0.2])])
def test_the_function_gets_arrays_of_its_own(make_mixture, assert_bit_identical, noise):
    x = seen_of(make_mixture(2, 2).sample(200, 0)[0], above(0.0))
    before = x.copy()

    def greedy(places):
        values = above(0.0)(places)
        places[:] = np.nan
        return values

    options = {"n_init": 1, "noise": noise}
    fit = fit_mixture(x, 2, completeness=greedy, **options)
    assert np.array_equal(x, before)
    assert_bit_identical(fit, fit_mixture(x, 2, completeness=above(0.0), **options))


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("dtype", [bool, np.float32, np.int64, list])
def test_completeness_may_be_of_any_numeric_type(dtype, assert_bit_identical):
    x = seen_of(np.random.default_rng(0).normal(size=(200, 1)), above(0.0))

    def typed(places):
        values = above(0.0)(places)
        return values.tolist() if dtype is list else values.astype(dtype)

    fit = fit_mixture(x, 1, completeness=typed, n_init=1)
    assert_bit_identical(fit, fit_mixture(x, 1, completeness=above(0.0), n_init=1))


# ---- the noise of unseen cells -------------------------------------------------------------------------------------


@pytest.fixture
def noisy_cut():
    """Two features behind the same noise, cut off in the first."""
    truth = GaussianMixture(np.array([0.6, 0.4]), np.array([[0.0, 0.0], [3.0, 2.0]]), np.array([np.eye(2), np.eye(2)]))
    noise = np.array([0.3, 0.8])  # in ascending order, so that eigenvectors come in that of the features
    return truth.sample_observed(500, 0, noise=noise, completeness=above(0.0)).x, noise


FORMS_OF_NOISE = {
    "shared covariance": lambda noise: np.diag(noise),
    "callable of variances": lambda noise: lambda x: np.tile(noise, (len(x), 1)),
    "callable of covariances": lambda noise: lambda x: np.tile(np.diag(noise), (len(x), 1, 1)),
    "callable of one variance": lambda noise: lambda x: noise,
}


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("form", list(FORMS_OF_NOISE))
def test_noise_of_unseen_cells_is_the_same_in_every_form(noisy_cut, form):
    x, noise = noisy_cut
    options = {"noise": noise, "completeness": above(0.0), "n_init": 1, "init": "kmeans"}
    expected = fit_mixture(x, 2, noise_at=noise, **options)
    fit = fit_mixture(x, 2, noise_at=FORMS_OF_NOISE[form](noise), **options)
    # Square roots by way of eigenvectors are rounded otherwise.
    np.testing.assert_allclose(fit.model.means, expected.model.means, rtol=1e-8, atol=1e-8)
    assert fit.n_unobserved == pytest.approx(expected.n_unobserved, rel=1e-8)


@pytest.mark.usefixtures("few_nodes")
def test_noise_of_unseen_cells_is_that_of_all_where_it_is_shared(noisy_cut, assert_bit_identical):
    x, noise = noisy_cut
    options = {"noise": noise, "completeness": above(0.0), "n_init": 1}
    assert_bit_identical(fit_mixture(x, 2, **options), fit_mixture(x, 2, noise_at=noise, **options))


@pytest.mark.usefixtures("few_nodes")
def test_noise_of_unseen_cells_is_drawn_from_the_cells_own(noisy_cut):
    x, noise = noisy_cut
    options = {"completeness": above(0.0), "n_init": 1}
    expected = fit_mixture(x, 2, noise=noise, **options)
    for own in (np.tile(noise, (len(x), 1)), np.tile(np.diag(noise), (len(x), 1, 1))):
        fit = fit_mixture(x, 2, noise=own, **options)
        # Where the E-step takes another way, EM ends within its tolerance of the same optimum.
        np.testing.assert_allclose(fit.model.means, expected.model.means, atol=1e-2)
        assert fit.n_unobserved == pytest.approx(expected.n_unobserved, rel=5e-3)
    other = fit_mixture(x, 2, noise=noise, noise_at=2.0 * noise, **options)
    assert other.n_unobserved != pytest.approx(expected.n_unobserved, rel=0.02)


def test_noise_that_grows_with_the_place_is_asked_for_there():
    """Uniform cells in a narrow component at each of two places: the unseen share is that of each one's own noise."""
    model = GaussianMixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.full((2, 1, 1), 1e-6))

    def noise_at(x):
        return np.where(x > 0, 4.0, 1.0)

    exact = 0.5 * stats.norm.cdf(0.5, -1, 1) + 0.5 * stats.norm.cdf(0.5, 1, 2)
    assert unseen_share(model, above(0.5), noise_at=noise_at) == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("covariances", [False, True])
def test_drawn_noise_is_that_of_the_cells_in_equal_parts(covariances):
    own = np.repeat([0.25, 4.0], [100, 300])[:, None]
    model = GaussianMixture(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))
    exact = 0.25 * stats.norm.cdf(0.7, 0, np.sqrt(1.25)) + 0.75 * stats.norm.cdf(0.7, 0, np.sqrt(5))
    drawn = NoiseOfRandomCells(own[:, :, None] if covariances else own, 3)
    # 2^17 independent draws of one of two kinds that differ by 0.11 in the unseen share.
    assert unseen_share(model, above(0.7), noise_at=drawn) == pytest.approx(exact, abs=1e-3)
    assert np.array_equal(drawn(np.zeros((50, 1))), drawn(np.zeros((50, 1))))
    assert set(drawn(np.zeros((500, 1))).ravel().tolist()) == {0.25, 4.0}


@pytest.mark.parametrize("shared", [False, True])
def test_scaled_noise_has_the_covariance_asked_for(shared):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    covariance = root @ root.T
    noise = covariance if shared else lambda x: np.repeat(covariance[None], len(x), axis=0)
    # The images of unit vectors are the columns of the square root that is used.
    columns = scaled_noise(np.zeros((4, 3)), noise, np.vstack([np.eye(3), np.zeros((1, 3))]))
    np.testing.assert_allclose(columns.T @ columns, covariance, rtol=1e-12, atol=1e-12)
    assert not columns[3].any()


def test_scaled_noise_of_every_cell_is_its_own():
    variances = np.arange(1.0, 11.0).reshape(5, 2)
    normal = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(scaled_noise(np.zeros((5, 2)), lambda x: variances, normal), np.sqrt(variances) * normal)
    matrices = variances[:, :, None] * np.eye(2)
    np.testing.assert_allclose(scaled_noise(np.zeros((5, 2)), lambda x: matrices, normal), np.sqrt(variances) * normal)
    assert not scaled_noise(np.zeros((5, 2)), np.zeros((2, 2)), normal).any()


def fails(x):
    raise KeyError("no such place")


BAD_NOISE_AT = {
    "fails": fails,
    "text": lambda x: "abc",
    "negative variance": lambda x: np.full(x.shape, -1.0),
    "NaN": lambda x: np.full(x.shape, np.nan),
    "infinite": np.array([1.0, np.inf]),
    "negative eigenvalue": np.diag([1.0, -1.0]),
    "NaN in a matrix": np.full((2, 2), np.nan),
    "three features": np.ones(3),
    "another number of cells": lambda x: np.ones((len(x) - 1, 2)),
    "a column": lambda x: np.ones((len(x), 1)),
}


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("name", list(BAD_NOISE_AT))
def test_noise_of_unseen_cells_that_is_none_is_one_clear_error(name):
    x = np.abs(np.random.default_rng(0).normal(size=(40, 2)))
    with pytest.raises(CohortgmmError, match="noise_at"):
        fit_mixture(x, 1, completeness=above(0.0), noise_at=BAD_NOISE_AT[name], n_init=1)


# ---- missing features ----------------------------------------------------------------------------------------------


@pytest.fixture
def incomplete_cut(make_mixture):
    """Cells cut off in the first feature, which all have; part of the second is missing."""
    x = make_mixture(2, 2, seed=3).sample(400, 0)[0]
    x = x[x[:, 0] > 0]
    hidden = x.copy()
    hidden[::4, 1] = np.nan
    return x, hidden


@pytest.mark.usefixtures("many_nodes")
def test_a_completeness_of_the_present_features_goes_with_missing_ones(incomplete_cut):
    x, hidden = incomplete_cut
    fit, complete = (fit_mixture(cells, 2, completeness=above(0.0), n_init=2) for cells in (hidden, x))
    for part in fit.model.arrays().values():
        assert np.isfinite(part).all()
    # A quarter of one feature less: the same mixture within its standard errors, and much the same unseen share.
    assert fit.completeness == pytest.approx(complete.completeness, abs=0.05)
    share = fit.model.weights @ stats.norm.cdf(0, fit.model.means[:, 0], np.sqrt(fit.model.full_covariances[:, 0, 0]))
    assert 1 - fit.completeness == pytest.approx(share, abs=SHARE_ERROR[MANY])


def test_a_completeness_that_is_nan_for_missing_features_is_refused(incomplete_cut):
    _, hidden = incomplete_cut

    def needs_both(x):
        return np.where(np.isnan(x.sum(axis=1)), np.nan, above(0.0)(x))

    with pytest.raises(DataError, match=r"cells 0 to \d+: .*returned nan at \(.*nan\).*missing features are among"):
        fit_mixture(hidden, 2, completeness=needs_both)


@pytest.mark.usefixtures("few_nodes")
def test_cells_without_any_feature_are_not_shown_to_the_function(incomplete_cut):
    _, hidden = incomplete_cut
    hidden[5] = np.nan

    def picky(x):
        assert not np.isnan(x).all(axis=1).any()
        return above(0.0)(x)

    assert fit_mixture(hidden, 2, completeness=picky, n_init=1).n_empty == 1


@pytest.mark.usefixtures("small_tiles", "few_nodes")
def test_the_function_is_not_called_without_places(incomplete_cut):
    """As in a tile of which no cell has a feature; a function that looks for the largest value would fail there."""
    _, hidden = incomplete_cut
    hidden = np.vstack([np.full((64, 2), np.nan), hidden])

    def largest_first(x):
        assert x[:, 0].max() > -np.inf
        return above(0.0)(x)

    assert fit_mixture(hidden, 2, completeness=largest_first, n_init=1).n_empty == 64


def infinite_noise(x):
    """The same gaps as infinite variances, with anything in their place."""
    missing = np.isnan(x)
    return np.where(missing, -1e6, x), np.where(missing, np.inf, 0.1)


@pytest.mark.usefixtures("few_nodes")
def test_an_infinite_variance_is_a_missing_feature_for_the_function_too(incomplete_cut):
    _, hidden = incomplete_cut
    filled, noise = infinite_noise(hidden)

    def needs_no_second(x):
        return np.where(np.isnan(x[:, 1]) | (x[:, 1] > -100), above(0.0)(x), 0.0)

    options = {"completeness": needs_no_second, "noise_at": np.full(2, 0.1), "n_init": 1}
    fit = fit_mixture(filled, 2, noise=noise, **options)
    expected = fit_mixture(hidden, 2, noise=np.full(hidden.shape, 0.1), **options)
    assert fit.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-9)


@pytest.mark.usefixtures("few_nodes")
def test_noise_of_unseen_cells_is_drawn_from_finite_ones(incomplete_cut):
    _, hidden = incomplete_cut
    filled, noise = infinite_noise(hidden)
    fit = fit_mixture(filled, 2, completeness=above(0.0), noise=noise, n_init=1)
    assert np.isfinite(fit.log_likelihood)
    assert 0 < fit.completeness < 1


# ---- errors --------------------------------------------------------------------------------------------------------


def raises(x):
    raise RuntimeError("no map of this region")


def raises_lines(x):
    raise RuntimeError("no map\n  of this\r\nregion\n")


def asserts(x):
    raise AssertionError


BAD_ANSWERS = {
    "raises": (raises, r"failed on \d+ places: RuntimeError: no map of this region"),
    "raises lines": (raises_lines, r"failed on \d+ places: RuntimeError: no map of this region$"),
    "asserts": (asserts, r"failed on \d+ places: AssertionError$"),
    "divides by zero": (lambda x: np.full(len(x), 1 // 0), "failed on .* ZeroDivisionError"),
    "a column": (lambda x: np.ones((len(x), 1)), r"returned shape \(\d+, 1\) for \d+ places"),
    "one value less": (lambda x: np.ones(len(x) - 1), "returned shape"),
    "a number": (lambda x: 1.0, r"returned shape \(\)"),
    "nothing": (lambda x: None, "the completeness function returned"),
    "text": (lambda x: "often", "returned str, not numbers"),
    "words": (lambda x: np.full(len(x), "often"), "returned ndarray, not numbers"),
    "ragged": (lambda x: [[1.0], [1.0, 2.0]], "returned list, not numbers"),
    "NaN": (lambda x: np.full(len(x), np.nan), r"returned nan at \(.*\): must be within \[0, 1\]"),
    "above one": (lambda x: np.full(len(x), 1.5), r"returned 1.5 at \("),
    "barely above one": (lambda x: np.full(len(x), 1 + 1e-9), r"must be within \[0, 1\]"),
    "negative": (lambda x: np.full(len(x), -0.1), r"returned -0.1 at \("),
    "infinite": (lambda x: np.full(len(x), np.inf), r"returned inf at \("),
}


@pytest.mark.parametrize("name", list(BAD_ANSWERS))
def test_a_bad_answer_for_the_cells_is_one_error_that_names_them(name, make_cells):
    function, message = BAD_ANSWERS[name]
    with pytest.raises(DataError, match=f"^cells 0 to 49: .*{message}") as caught:
        fit_mixture(make_cells(50, 2), 1, completeness=function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(BAD_ANSWERS))
def test_a_bad_answer_only_far_from_the_cells_is_one_error_too(name):
    x = np.random.default_rng(0).uniform(-1, 1, size=(80, 2))
    bad, message = BAD_ANSWERS[name]

    def function(places):
        return bad(places) if np.abs(places).max() > 1 else np.full(len(places), 0.5)

    with pytest.raises(DataError, match=message) as caught:
        fit_mixture(x, 1, completeness=function)
    assert "\n" not in str(caught.value)


def test_one_bad_place_is_named():
    """The first of them, by its features."""
    x = np.array([[0.0, 0.0], [1.25, -3.5], [2.0, 2.0]])
    with pytest.raises(DataError, match=r"returned 2 at \(1.25, -3.5\): must be within \[0, 1\]"):
        fit_mixture(x, 1, completeness=lambda x: np.where(x[:, 0] > 1, 2.0, 1.0))


@pytest.mark.usefixtures("small_tiles")
def test_the_cells_named_are_those_that_were_asked_for(make_cells):
    x = make_cells(200, 2)
    x[150, 0] = 1000.0
    with pytest.raises(DataError, match=r"^cells 128 to 191: "):
        fit_mixture(x, 1, completeness=lambda x: np.where(x[:, 0] > 500, np.nan, 1.0))


@pytest.mark.usefixtures("small_tiles")
def test_cells_that_could_not_have_been_seen_are_counted_and_named(make_cells):
    x = make_cells(200, 2)
    x[[3, 70, 71, 199]] = 1000.0

    def function(places):
        return (places[:, 0] < 500).astype(float)

    with pytest.raises(DataError, match=r"0 for 4 observed cells \(3, 70, 71, 199\): the function does not describe"):
        fit_mixture(x, 1, completeness=function)
    x[[4, 5, 190]] = 1000.0
    with pytest.raises(DataError, match=r"0 for 7 observed cells \(3, 4, 5, 70, 71, \.\.\.\)"):
        fit_mixture(x, 1, completeness=function)


@pytest.mark.parametrize("value", [0.5, "half", np.ones(50)])
def test_what_is_no_function_is_refused(make_cells, value):
    with pytest.raises(DataError, match=rf"must be a callable .* got {type(value).__name__}"):
        fit_mixture(make_cells(50, 2), 1, completeness=value)


# ---- too little is seen --------------------------------------------------------------------------------------------


def test_a_fit_in_which_nearly_all_would_be_unseen_is_an_error(make_cells):
    x = make_cells(100, 2, n_components=1)
    with pytest.raises(DivergedError, match=r"^0\.999\d* of all cells would be unobserved: .* fewer components"):
        fit_mixture(x, 1, completeness=constantly(8e-4))
    assert fit_mixture(x, 1, completeness=constantly(1.2e-3)).completeness == pytest.approx(1.2e-3, rel=0.05)


def test_data_without_a_maximum_end_in_that_error(tune):
    """Cells in the corners of a window: the wider the normal, the better, without end."""
    tune(fewest_nodes=1 << 15)  # fewer nodes would end it with an error of their own
    rng, window = np.random.default_rng(0), within(-1.0, 1.0)
    corners = 0.9 * rng.choice([-1.0, 1.0], size=(200, 6)) + 0.02 * rng.normal(size=(200, 6))
    with pytest.raises(DivergedError, match="would be unobserved"):
        fit_mixture(corners, 1, completeness=window, covariance_type="diag", n_init=1)


def test_densities_that_overflow_at_the_nodes_are_that_error(make_mixture):
    model = make_mixture(2, 2)
    nodes = QuadratureNodes(np.zeros((3, 2)), np.full(3, 1e4), model)
    assert np.isinf(unobserved_moments(model, nodes).nk).all()
    selection = selection_of(above(0.0))
    seen = choose_estep(Measurements(np.ones((5, 2))), 2, "full")
    with pytest.raises(DivergedError, match="inf of all cells"):
        TruncatedExpectation(seen, selection, 8, nodes)(model)


@pytest.mark.usefixtures("few_nodes")
def test_another_start_may_do_where_one_diverges(monkeypatch, make_mixture):
    """Only if all of them fail, the fit does."""
    model = make_mixture(2, 2)
    x = model.sample(60, 0)[0]
    beyond = GaussianMixture(model.weights, model.means + 1e6, model.covariances)
    far = x.max(axis=0) + 100
    options = {"completeness": within(-far, far), "n_init": 3}
    for starts in ([beyond, model, beyond], [beyond] * 3):
        left = iter(starts)
        for name in em.STARTS:  # several starts may be of several kinds
            monkeypatch.setitem(em.STARTS, name, lambda *arguments, left=left: next(left))
        if model in starts:
            fit = fit_mixture(x, 2, **options)
            assert fit.completeness == 1
            np.testing.assert_allclose(fit.model.means, model.means, atol=1.0)
        else:
            with pytest.raises(DivergedError, match="1 of all cells would be unobserved"):
                fit_mixture(x, 2, **options)
