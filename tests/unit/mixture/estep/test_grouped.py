"""Every E-step of measured cells returns the moments of the definition."""

import numpy as np
import pytest
from measured import (
    GAPS,
    NOISES,
    e_step_by_definition,
    make_gaps,
    make_noise,
    posterior_by_definition,
    shifted,
    with_background,
)
from scipy.stats import chi2, norm

from cohortgmm.mixture.estep.choose import choose_estep, squared_cutoff
from cohortgmm.mixture.estep.dense import DenseExpectation
from cohortgmm.mixture.estep.grouped import ConvolvedExpectation, GroupedExpectation
from cohortgmm.mixture.estep.incremental import IncrementalExpectation
from cohortgmm.mixture.estep.noisy import NoisyExpectation
from cohortgmm.mixture.estep.quadratic import QuadraticExpectation
from cohortgmm.mixture.estep.screened import ScreenedExpectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Measurements

COVARIANCE_TYPES = ["full", "diag"]

# Condition numbers below 1e3 and some hundred cells leave eleven digits of the moments.
RTOL = 1e-10


@pytest.fixture
def small_groups(tune):
    """Sixty cells are enough for groups of several kinds of noise and gaps."""
    tune(smallest_group=6)
    tune(cells_per_noise=20)


@pytest.fixture
def many_tiles(monkeypatch, tune):
    """Tiles of so few rows that some hundred cells take enough of them for three threads."""
    tune(tile_values=1)
    tune(quadratic_values=1)
    tune(noisy_rows=(40, 40))


@pytest.fixture(params=["quadratic", "dense", "screened"])
def way(tune, request):
    """The E-step that uniform groups are given to."""
    tune(few_features=18 if request.param == "quadratic" else 0)
    tune(few_products=np.inf if request.param == "dense" else 0)
    return {"quadratic": QuadraticExpectation, "dense": DenseExpectation, "screened": ScreenedExpectation}[
        request.param
    ]


def measured_cells(make_mixture, noise, gaps, covariance_type, *, n=60, shape=(3, 3), spread=1.5, seed=0):
    """Overlapping components, cells of them, behind noise of the size of the covariances and with gaps."""
    rng = np.random.default_rng([seed, NOISES.index(noise), GAPS.index(gaps)])
    model = make_mixture(*shape, covariance_type, seed=seed, spread=spread)
    x = model.sample(n, rng)[0]
    values = make_noise(noise, n, shape[1], rng)
    return model, make_gaps(gaps, x + rng.normal(size=x.shape), rng), values


def moments_of(model, x, noise=None, *, n_threads=1, cutoff=None):
    cells = Measurements(x, noise, n_threads, model.background)
    return choose_estep(cells, model.n_components, model.covariance_type, cutoff)(model)


def assert_same_bits(left, right):
    for name in ("nk", "first", "second", "log_likelihood", "n"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.usefixtures("small_groups")
def test_moments_are_those_of_the_definition(
    make_mixture, assert_same_moments, noise, gaps, covariance_type, has_background
):
    model, x, values = measured_cells(make_mixture, noise, gaps, covariance_type)
    if has_background:
        model = with_background(model)
    moments = moments_of(model, x, values)
    assert_same_moments(moments, e_step_by_definition(model, x, values), rtol=RTOL)
    assert moments.second.shape == model.covariances.shape
    assert moments.nk.sum() == pytest.approx(moments.n, rel=1e-12) or has_background


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n_features", [1, 7])
@pytest.mark.usefixtures("small_groups")
def test_any_number_of_features_has_the_moments_of_the_definition(make_mixture, assert_same_moments, noise, n_features):
    for covariance_type in COVARIANCE_TYPES:
        for n_components in (1, 4):
            shape = (n_components, n_features)
            model, x, values = measured_cells(make_mixture, noise, "both", covariance_type, n=48, shape=shape, seed=3)
            model = with_background(model)
            assert_same_moments(moments_of(model, x, values), e_step_by_definition(model, x, values), rtol=RTOL)


@pytest.mark.parametrize(
    ("noise", "gaps", "types"),
    [
        ("none", "complete", [QuadraticExpectation]),
        ("none", "few patterns", [QuadraticExpectation, ConvolvedExpectation]),
        ("none", "any pattern", [NoisyExpectation]),
        ("none", "both", [NoisyExpectation, QuadraticExpectation, ConvolvedExpectation]),
        ("shared variances", "complete", [ConvolvedExpectation]),
        ("shared covariance", "few patterns", [ConvolvedExpectation]),
        ("shared covariance", "any pattern", [NoisyExpectation]),
        ("few variances", "complete", [ConvolvedExpectation]),
        ("few covariances", "both", [NoisyExpectation, ConvolvedExpectation]),
        ("own variances", "complete", [NoisyExpectation]),
        ("own covariances", "few patterns", [NoisyExpectation]),
    ],
)
def test_cells_that_were_measured_alike_share_their_matrices(make_mixture, noise, gaps, types):
    n = 250 if gaps == "any pattern" else 1000  # 64 patterns of a few cells each
    _, x, values = measured_cells(make_mixture, noise, gaps, "full", n=n, shape=(2, 6))
    if noise.startswith("few"):  # as many kinds as there may be, each with enough cells
        values = make_noise(noise, 4, 6, np.random.default_rng(0))[np.arange(1000) % 4]
    step = choose_estep(Measurements(x, values), 2, "full")
    parts = step.inner if isinstance(step, GroupedExpectation) else [step]
    assert sorted({type(part).__name__ for part in parts}) == sorted(cls.__name__ for cls in types)


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize(
    ("noise", "gaps"),
    [
        ("none", "few patterns"),
        ("shared variances", "complete"),
        ("shared covariance", "few patterns"),
        ("few covariances", "few patterns"),
    ],
)
@pytest.mark.usefixtures("small_groups")
def test_uniform_groups_may_go_any_way(make_mixture, assert_same_moments, way, noise, gaps, has_background):
    model, x, values = measured_cells(make_mixture, noise, gaps, "full", shape=(4, 4))
    if has_background:
        model = with_background(model)
    step = choose_estep(Measurements(x, values, 1, model.background), 4, "full")
    parts = step.inner if isinstance(step, GroupedExpectation) else [step]
    assert {type(part.inner[0]) for part in parts if isinstance(part, ConvolvedExpectation)} == {way}
    other = GaussianMixture(model.weights, model.means + 0.3, model.covariances, model.background)
    for mixture in (model, other):  # what was remembered of the first is wrong for the second
        truth = e_step_by_definition(mixture, x, values)
        assert_same_moments(step(mixture), truth, rtol=RTOL)
        assert_same_moments(step.begin(mixture)(mixture), truth, rtol=RTOL)


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize(
    ("noise", "gaps"),
    [
        ("shared covariance", "complete"),
        ("few variances", "few patterns"),
        ("own variances", "complete"),
        ("own covariances", "any pattern"),
        ("none", "both"),
    ],
)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.usefixtures("many_tiles")
def test_the_number_of_threads_changes_no_bit(make_mixture, noise, gaps, covariance_type, has_background):
    model, x, values = measured_cells(make_mixture, noise, gaps, covariance_type, n=900, shape=(3, 4))
    if has_background:
        model = with_background(model)
    alone, threaded = (moments_of(model, x, values, n_threads=n) for n in (1, 3))
    assert_same_bits(alone, threaded)


@pytest.mark.parametrize("gaps", ["complete", "any pattern"])
@pytest.mark.parametrize("noise", ["none", "shared covariance", "own variances", "own covariances"])
@pytest.mark.usefixtures("many_tiles", "small_groups")
def test_moments_of_several_tiles_are_those_of_the_definition(make_mixture, assert_same_moments, noise, gaps):
    model, x, values = measured_cells(make_mixture, noise, gaps, "full", n=150)
    model = with_background(model)
    assert_same_moments(moments_of(model, x, values, n_threads=2), e_step_by_definition(model, x, values), rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", ["complete", "both"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.usefixtures("small_groups")
def test_float32_cells_and_noise_are_taken_as_their_float64_values(
    make_mixture, assert_same_moments, noise, gaps, covariance_type
):
    model, x, values = measured_cells(make_mixture, noise, gaps, covariance_type)
    x = x.astype(np.float32)
    values = None if values is None else values.astype(np.float32)
    wide = None if values is None else values.astype(np.float64)
    # Kinds of noise are put in the order of their bytes, so that sums may go in another order.
    assert_same_moments(moments_of(model, x, values), moments_of(model, x.astype(np.float64), wide), rtol=1e-13)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", ["complete", "both"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.usefixtures("small_groups")
def test_cells_far_from_the_origin_keep_their_digits(make_mixture, assert_same_moments, noise, gaps, covariance_type):
    model, x, values = measured_cells(make_mixture, noise, gaps, covariance_type)
    model = with_background(model)
    shift = 1e6 * np.array([1.0, -2.0, 3.0])
    far, far_x = shifted(model, shift), x + shift
    # Subtracting the shift again is exact: both sides have the very same cells, rounded to 1e-10.
    near = GaussianMixture(
        model.weights,
        far.means - shift,
        model.covariances,
        Background(far.background.lower - shift, far.background.upper - shift, model.background.amp),
    )
    truth = e_step_by_definition(near, far_x - shift, values)
    assert_same_moments(moments_of(far, far_x, values), truth, rtol=RTOL)


def in_axes(axes, covariance_type, eigenvalues):
    """Matrices with these eigenvectors (the features for diagonal ones) and eigenvalues (..., D)."""
    if covariance_type == "diag":
        return eigenvalues
    matrices = np.einsum("ij,...j,kj->...ik", axes, eigenvalues, axes)
    return 0.5 * (matrices + np.swapaxes(matrices, -1, -2))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("level", [0.0, 1e-14, 1e-8, 1e-4, 1.0, 1e8])
@pytest.mark.parametrize("condition", [1.0, 1e6, 1e10])
def test_collinear_features_and_tiny_or_huge_noise_lose_no_more_digits_than_they_must(
    covariance_type, is_shared, level, condition
):
    """One component with the axes of its noise, in which every feature is known by itself in closed form."""
    rng = np.random.default_rng(0)
    n, d = 200, 4
    axes = np.eye(d) if covariance_type == "diag" else np.linalg.qr(rng.normal(size=(d, d)))[0]
    variances = np.geomspace(1.0, 1.0 / condition, d)
    own = level * (np.ones((n, d)) if is_shared else rng.uniform(0.5, 2.0, size=(n, d)))
    x = (rng.normal(size=(n, d)) * np.sqrt(variances + own)) @ axes.T
    noise = in_axes(axes, covariance_type, own)
    model = GaussianMixture([1.0], np.zeros((1, d)), in_axes(axes, covariance_type, variances)[None])
    moments = moments_of(model, x, noise[0] if is_shared else noise)
    along = x @ axes
    b, spread = variances / (variances + own) * along, variances * own / (variances + own)
    second = np.diag(spread.sum(axis=0)) + b.T @ b
    log_prob = norm.logpdf(along, scale=np.sqrt(variances + own)).sum()
    scale = np.sqrt(np.diag(second))
    # The condition number is what a matrix of doubles has to lose; of diagonal ones none.
    lost = 1e-13 if covariance_type == "diag" else max(1e-13, 1e-14 * condition)
    found = np.diag(moments.second[0]) if covariance_type == "diag" else axes.T @ moments.second[0] @ axes
    wanted = np.diag(np.diag(second)) if covariance_type == "diag" else second
    np.testing.assert_allclose(found / np.outer(scale, scale), wanted / np.outer(scale, scale), rtol=0, atol=lost)
    np.testing.assert_allclose(
        axes.T @ moments.first[0] / (scale * np.sqrt(n)), b.sum(axis=0) / (scale * np.sqrt(n)), rtol=0, atol=lost
    )
    assert moments.log_likelihood == pytest.approx(log_prob, rel=lost)


def test_features_that_are_there_have_their_own_moments_whatever_the_condition():
    """A gap elsewhere takes no digits from collinear features."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    variances = np.array([1.0, 1e-6, 1e-12])
    covariance = np.eye(4)
    covariance[:3, :3] = in_axes(axes, "full", variances)
    covariance[3, :3] = covariance[:3, 3] = 0.5 * covariance[0, :3]
    along = rng.normal(size=(200, 3)) * np.sqrt(variances)
    x = np.column_stack([along @ axes.T, np.full(200, np.nan)])
    moments = moments_of(GaussianMixture([1.0], np.zeros((1, 4)), covariance[None]), x)
    np.testing.assert_allclose(moments.first[0, :3], x[:, :3].sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.second[0, :3, :3], x[:, :3].T @ x[:, :3], rtol=1e-14)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_what_is_known_of_a_missing_feature_keeps_its_digits_in_collinear_features(covariance_type):
    """The last feature follows from the first within 1e-10 of its variance, or not at all for diagonal covariances."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2))
    x[:, 1] = np.nan
    small = 1e-10
    covariance = np.array([[1.0, 1.0], [1.0, 1.0 + small]])
    if covariance_type == "diag":
        covariance = np.diag(covariance)
    moments = moments_of(GaussianMixture([1.0], np.zeros((1, 2)), covariance[None]), x)
    first, squares = x[:, 0].sum(), (x[:, 0] ** 2).sum()
    if covariance_type == "diag":
        np.testing.assert_allclose(moments.first, [[first, 0.0]], rtol=1e-13)
        np.testing.assert_allclose(moments.second, [[squares, 100 * (1 + small)]], rtol=1e-13)
        return
    np.testing.assert_allclose(moments.first, [[first, first]], rtol=1e-13)
    np.testing.assert_allclose(moments.second[0, 0], [squares, squares], rtol=1e-13)
    # 1 + 1e-10 − 1 has six digits.
    assert moments.second[0, 1, 1] - moments.second[0, 0, 1] == pytest.approx(100 * small, rel=1e-5)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("kind", ["few variances", "few covariances"])
@pytest.mark.parametrize("gaps", ["complete", "both"])
def test_kinds_of_noise_give_the_moments_of_noise_that_is_each_cells_own(
    tune, make_mixture, assert_same_moments, kind, gaps, covariance_type
):
    model, x, values = measured_cells(make_mixture, kind, gaps, covariance_type, n=300)
    model = with_background(model)
    tune(smallest_group=6)
    tune(cells_per_noise=100)
    sorted_cells = Measurements(x, values, 1, model.background)
    tune(cells_per_noise=1000)
    own_cells = Measurements(x, values, 1, model.background)
    assert len(sorted_cells.groups) > 1
    assert len(own_cells.groups) == 1
    by_kind, by_cell = (choose_estep(cells, 3, covariance_type)(model) for cells in (sorted_cells, own_cells))
    assert_same_moments(by_kind, by_cell, rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("noise", ["none", "shared covariance"])
def test_patterns_give_the_moments_of_gaps_that_are_each_cells_own(
    tune, make_mixture, assert_same_moments, noise, covariance_type
):
    model, x, values = measured_cells(make_mixture, noise, "few patterns", covariance_type, n=300)
    model = with_background(model)
    by_pattern = Measurements(x, values, 1, model.background)
    tune(smallest_group=1000)
    by_cell = Measurements(x, values, 1, model.background)
    assert (len(by_pattern.groups), len(by_cell.groups)) == (4, 1)
    left, right = (choose_estep(cells, 3, covariance_type)(model) for cells in (by_pattern, by_cell))
    assert_same_moments(left, right, rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_variances_give_the_moments_of_the_same_matrices(make_mixture, assert_same_moments, covariance_type):
    for noise in ("shared variances", "own variances"):
        for gaps in GAPS:
            model, x, values = measured_cells(make_mixture, noise, gaps, covariance_type, n=200)
            matrices = values[..., None] * np.eye(3)
            assert_same_moments(moments_of(model, x, values), moments_of(model, x, matrices), rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("shape", [(3,), (3, 3), (200, 3), (200, 3, 3)])
def test_no_noise_is_noise_of_zero(make_mixture, assert_same_moments, shape, covariance_type):
    for gaps in GAPS:
        model, x, _ = measured_cells(make_mixture, "none", gaps, covariance_type, n=200)
        model = with_background(model)
        assert_same_moments(moments_of(model, x, np.zeros(shape)), moments_of(model, x), rtol=RTOL)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("gaps", ["few patterns", "any pattern"])
@pytest.mark.parametrize("is_own", [True, False])
def test_an_infinite_variance_is_a_missing_feature_and_a_huge_one_nearly(
    make_mixture, assert_same_moments, gaps, covariance_type, is_own
):
    model, x, _ = measured_cells(make_mixture, "none", gaps, covariance_type, n=200)
    model = with_background(model)
    missing = np.isnan(x)
    finite = np.full((200, 3), 0.5)
    if is_own:
        finite = np.random.default_rng(0).uniform(0.1, 2.0, size=(200, 3))
    written = np.where(missing, 7.0, x)
    by_nan = moments_of(model, x, finite)
    by_infinity = moments_of(model, written, np.where(missing, np.inf, finite))
    assert_same_bits(by_infinity, moments_of(model, x, np.where(missing, np.inf, finite)))
    assert_same_moments(by_infinity, by_nan, rtol=1e-12)
    huge = moments_of(model, written, np.where(missing, 1e12, finite))
    # Such a feature has the same density in every component and in the background, to 1e-11.
    whole = np.isnan(x).all(axis=1).sum()
    assert (by_nan.n, huge.n) == (200 - whole, 200)
    huge.log_likelihood += 0.5 * np.log(2 * np.pi * 1e12) * missing.sum()
    empty = model.weights * whole  # the cells without features, which are as anybody's
    np.testing.assert_allclose(huge.nk - empty, by_nan.nk, atol=1e-6)
    np.testing.assert_allclose(huge.first, by_nan.first, atol=1e-6 * 200)
    spread = empty.reshape(-1, *[1] * (model.covariances.ndim - 1)) * model.covariances
    np.testing.assert_allclose(huge.second - spread, by_nan.second, atol=1e-6 * 200)
    assert huge.log_likelihood == pytest.approx(by_nan.log_likelihood, abs=1e-6 * 200)


def test_a_feature_that_is_missing_in_all_cells_leaves_its_covariance_as_it_was(make_mixture):
    model = make_mixture(2, 3, "diag", spread=1.0)
    x = model.sample(100, 0)[0]
    moments = moments_of(model, x, np.array([0.5, np.inf, 0.5]))
    np.testing.assert_allclose(moments.second[:, 1], moments.nk * model.covariances[:, 1], rtol=1e-12)
    np.testing.assert_allclose(moments.first[:, 1], 0.0, atol=1e-12)


def test_expected_moments_of_complete_cells_behind_a_mask_are_unbiased(make_mixture):
    """Averaged over the cells of the mixture itself, the moments are those of the mixture."""
    model = make_mixture(2, 2, spread=1.0)
    rng = np.random.default_rng(1)
    n = 20_000
    x = model.sample(n, rng)[0] + rng.normal(size=(n, 2)) * np.sqrt([0.5, 2.0])
    x[rng.random((n, 2)) < 0.2] = np.nan
    moments = moments_of(model, x, np.array([0.5, 2.0]))
    per_cell = moments.nk / moments.n
    # Five standard errors of a mean of 19,000 numbers of order one (weights) or of the covariances' order (the rest).
    np.testing.assert_allclose(per_cell, model.weights, atol=5 * 0.5 / np.sqrt(moments.n))
    np.testing.assert_allclose(moments.first / moments.nk[:, None], 0.0, atol=5 * 1.5 / np.sqrt(moments.nk.min()))
    np.testing.assert_allclose(
        moments.second / moments.nk[:, None, None], model.covariances, atol=5 * 3.0 / np.sqrt(moments.nk.min())
    )


@pytest.mark.parametrize("noise", ["none", "shared covariance", "few variances"])
def test_a_run_of_em_leaves_settled_cells_alone_in_every_group(tune, make_mixture, assert_same_moments, noise):
    tune(few_features=0)
    tune(few_products=0)
    tune(unsettled_share=1.0)
    model, x, values = measured_cells(make_mixture, noise, "few patterns", "full", n=900, spread=3.0)
    step = choose_estep(Measurements(x, values), 3, "full").begin(model)
    assert all(
        isinstance(part.inner[0] if isinstance(part, ConvolvedExpectation) else part, IncrementalExpectation)
        for part in step.inner
    )
    assert_same_moments(step(model), e_step_by_definition(model, x, values), rtol=RTOL)
    near = shifted(model, 0.02)
    exact = moments_of(near, x, values)
    bound = step(near)
    assert bound.is_bound
    assert not exact.is_bound
    assert exact.log_likelihood - 0.01 * exact.n < bound.log_likelihood < exact.log_likelihood
    assert_same_moments(step(near), exact, rtol=RTOL)


def test_a_background_keeps_every_iteration_exact(tune, make_mixture):
    tune(few_features=0)
    tune(few_products=0)
    model, x, values = measured_cells(make_mixture, "shared covariance", "few patterns", "full", n=400)
    model = with_background(model)
    step = choose_estep(Measurements(x, values, 1, model.background), 3, "full").begin(model)
    assert all(isinstance(part.inner[0], ScreenedExpectation) for part in step.inner)
    step(model)
    assert not step(shifted(model, 0.01)).is_bound


@pytest.mark.parametrize("n_features", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("cutoff", [0.1, 1.0, 3.0, 5.0, 8.0])
def test_the_reach_leaves_out_as_many_cells_as_in_one_dimension(n_features, cutoff):
    assert squared_cutoff(cutoff, n_features) == pytest.approx(chi2.isf(2 * norm.sf(cutoff), n_features), rel=1e-10)
    assert squared_cutoff(cutoff, 1) == pytest.approx(cutoff**2, rel=1e-10)


def test_a_cutoff_beyond_every_double_is_none():
    assert squared_cutoff(50.0, 3) == np.inf
    reaches = [squared_cutoff(cutoff, 3) for cutoff in np.linspace(0.5, 37.0, 50)]
    assert (np.diff(reaches) > 0).all()
    assert np.isfinite(reaches).all()


def test_groups_share_one_origin_of_the_moments(make_mixture):
    """Sums over groups are the sums of each group's moments, in the order of the groups."""
    model, x, values = measured_cells(make_mixture, "none", "few patterns", "full", n=400)
    step = choose_estep(Measurements(x, values), 3, "full")
    parts = [part(model) for part in step.inner]
    whole = step(model)
    assert whole.n == sum(part.n for part in parts) == np.count_nonzero(~np.isnan(x).all(axis=1))
    np.testing.assert_allclose(whole.second, sum(part.second for part in parts), rtol=1e-14)
    assert whole.log_likelihood == pytest.approx(sum(part.log_likelihood for part in parts), rel=1e-14)


def test_plain_cells_take_the_plain_way(make_mixture):
    x = make_mixture(2, 3).sample(100, 0)[0]
    step = choose_estep(Measurements(x), 2, "full")
    assert type(step) is QuadraticExpectation
    assert type(step.cells) is CellData
    assert step.cells.x is x


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_moments_are_symmetric_and_leave_room_for_a_covariance(make_mixture, covariance_type):
    model, x, values = measured_cells(make_mixture, "few covariances", "both", covariance_type, n=300)
    moments = moments_of(model, x, values)
    second = moments.second / moments.nk.reshape(-1, *[1] * (model.covariances.ndim - 1))
    shift = moments.first / moments.nk[:, None]
    if covariance_type == "full":
        np.testing.assert_allclose(second, second.transpose(0, 2, 1), rtol=0, atol=1e-13)
        assert np.linalg.eigvalsh(second - shift[:, :, None] * shift[:, None, :]).min() > 0
    else:
        assert (second - shift**2).min() > 0


def test_the_log_likelihood_is_the_sum_of_the_cells_log_densities(make_mixture):
    for noise in NOISES:
        model, x, values = measured_cells(make_mixture, noise, "both", "full")
        model = with_background(model)
        log_prob = model.log_prob(x, values)
        assert moments_of(model, x, values).log_likelihood == pytest.approx(log_prob.sum(), rel=1e-12)
        truth = posterior_by_definition(model, x, values).log_prob
        np.testing.assert_allclose(log_prob, truth, rtol=1e-11, atol=1e-11)
