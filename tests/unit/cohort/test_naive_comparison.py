"""What the figure of the corrections compares: draws in proportion, behind the same noise; a naive mixture."""

import numpy as np
import pytest
from corrected import ALL, BOX, GATE
from scipy.special import erfc

from cohortgmm.cohort.annotation import draw_cells
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.fitting import fit_candidate
from cohortgmm.cohort.naive_comparison import correction_of
from cohortgmm.config import read_gmm_options
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit

CORRECTIONS = ("noise", "missing", "completeness", "background")


def options(*names, **changes):
    return fit_options(read_gmm_options({name: ALL[name] for name in names} | {"max_iter": 20, "n_init": 1} | changes))


def correct(part, chosen, k=1, fit=None, max_cells=1000, seed=0):
    fit = fit_candidate(part, k, chosen, seed=0)[1] if fit is None else fit
    return correction_of(part, fit, chosen, max_cells=max_cells, seed=seed)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("left_out", CORRECTIONS)
def test_only_what_is_corrected_is_compared(make_corrected_part, left_out):
    part = make_corrected_part(empty=())
    if left_out == "missing":
        part = PatientCells("P1", np.nan_to_num(part.x), part.train, noise=part.noise, feature_names=part.feature_names)
    if left_out == "noise":
        part = PatientCells("P1", part.x, part.train, feature_names=part.feature_names)
    found = correct(part, options(*(name for name in CORRECTIONS if name != left_out)))
    assert (found.background is None) == (left_out == "background")
    assert (found.seen is None) == (found.unseen is None) == (left_out == "completeness")
    assert found.naive is not None
    assert found.naive.background is None
    assert found.shown.tolist() == list(range(80))


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_the_naive_mixture_is_that_of_complete_cells_as_they_are(make_corrected_part, kind):
    part = make_corrected_part()
    found = correct(part, options(*CORRECTIONS[:2], "background", covariance_type=kind))
    complete = part.x[~np.isnan(part.x).any(axis=1)].astype(float)
    assert 50 < len(complete) < 78
    np.testing.assert_allclose(found.naive.means[0], complete.mean(axis=0), rtol=1e-9)
    expected = np.cov(complete.T, bias=True)
    np.testing.assert_allclose(found.naive.covariances[0], expected if kind == "full" else np.diag(expected), rtol=1e-7)
    two = correct(part, options(*CORRECTIONS[:2], "background", covariance_type=kind), k=2).naive
    assert (two.n_components, two.covariance_type) == (2, kind)


def test_too_few_complete_cells_have_no_naive_mixture():
    """Two cells for every component, as a fit needs."""
    x = np.random.default_rng(0).normal(size=(40, 2))
    x[3:, 1] = np.nan
    part = PatientCells("P1", x, np.ones(40, bool), feature_names=("PC1", "PC2"))
    for k, n_naive in ((1, 1), (2, None)):
        model = GaussianMixture(np.full(k, 1 / k), np.zeros((k, 2)), [np.eye(2)] * k)
        fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(k, bool))
        naive = correct(part, options("missing"), fit=fit).naive
        assert (naive.n_components if naive else None) == n_naive
    x[:, 0] = np.nan
    assert correct(part, options("missing"), fit=line_fit()).naive is None  # not a single one


def test_the_background_is_that_of_the_cells_shown(make_corrected_part):
    part = make_corrected_part()
    found = correct(part, options("noise", "missing", "background"), k=2, max_cells=30, seed=5)
    np.testing.assert_array_equal(found.shown, draw_cells(80, 30, 5))
    expected = 1 - found.fit.model.responsibilities(part.x, part.noise).sum(axis=1)
    np.testing.assert_allclose(found.background, expected[found.shown], atol=1e-12)
    assert found.background.min() >= 0
    assert 0.3 < found.background.max() <= 1
    complete = part.x[found.shown]
    assert (~np.isnan(complete).any(axis=1)).sum() < 30  # the naive mixture too is of what is shown
    naive = correct(part, options("noise", "missing"), max_cells=30, seed=5).naive
    np.testing.assert_allclose(
        naive.means[0], complete[~np.isnan(complete).any(axis=1)].astype(float).mean(axis=0), rtol=1e-9
    )


@pytest.mark.usefixtures("stops_early")
def test_draws_are_seen_or_not_as_the_gate_says(make_corrected_part):
    part = make_corrected_part(empty=())
    found = correct(part, options(*CORRECTIONS), k=2)
    assert (found.seen[:, 0] >= GATE["PC1"][0]).all()
    assert (found.unseen[:, 0] < GATE["PC1"][0]).all()
    n = len(found.seen) + len(found.unseen)
    # The error of a share among n draws, and of the nodes of the fit, which draw the noise again.
    share = found.fit.completeness
    assert len(found.seen) / n == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n) + 5e-3)
    assert 0.7 < share < 0.98


LINE = GaussianMixture([1.0], [[0.0]], [[[1.0]]])


def line_fit(**numbers):
    return MixtureFit(LINE, 0.0, 1, True, np.zeros(2), np.zeros(1, bool), **numbers)


def line_part(noise=None):
    rng = np.random.default_rng(0)
    return PatientCells("P1", np.abs(rng.normal(size=(60, 1))), np.ones(60, bool), noise=noise, feature_names=("PC1",))


@pytest.mark.parametrize(
    "noise", [None, np.full((60, 1), 3.0), np.full((60, 1, 1), 3.0)], ids=["none", "variances", "covariances"]
)
def test_draws_are_as_noisy_as_the_cells(noise):
    chosen = options(completeness={"gates": [{"inside": {"PC1": [0.5, None]}}]})
    found = correct(line_part(noise), chosen, fit=line_fit())
    everyone = np.concatenate([found.seen, found.unseen])[:, 0]
    variance = 1.0 if noise is None else 4.0
    n = len(everyone)
    assert everyone.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / n))
    share = 0.5 * erfc(0.5 / np.sqrt(2 * variance))
    assert len(found.seen) / n == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n))


def test_noise_that_is_told_is_that_of_the_draws(tmp_path):
    (tmp_path / "noise.py").write_text("import numpy as np\ndef at(x):\n    return np.where(x > 0, 8.0, 0.0)\n")
    chosen = options(
        completeness={"gates": [{"inside": {"PC1": [-0.5, None]}}]},
        noise={"obsm": "v", "at": f"{tmp_path}/noise.py:at"},
    )
    found = correct(line_part(np.full((60, 1), 99.0)), chosen, fit=line_fit())
    everyone = np.concatenate([found.seen, found.unseen])[:, 0]
    n = len(everyone)
    assert everyone.var() == pytest.approx(1 + 4.0, rel=20 / np.sqrt(n))  # half of the cells have a variance of 8


def test_features_that_are_missing_for_their_noise_are_drawn_without(make_corrected_part):
    part = make_corrected_part(empty=())
    noise = part.noise.copy()
    noise[::2, 1] = np.inf
    part = PatientCells("P1", part.x, part.train, noise=noise, feature_names=part.feature_names)
    model = GaussianMixture([1.0], [[1.0, 1.0]], [np.eye(2)])
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(1, bool))
    found = correct(part, options("noise", "missing", "completeness"), fit=fit)
    assert np.isfinite(found.seen).all()
    assert np.isfinite(found.unseen).all()


def test_nothing_unseen():
    chosen = options(completeness={"gates": [{"inside": {"PC1": [-99, None]}}]})
    found = correct(line_part(), chosen, fit=line_fit())
    assert len(found.seen) > 0
    assert found.unseen.shape == (0, 1)


def test_a_background_is_among_the_draws():
    model = LINE.with_background(Background([BOX[0]], [BOX[1]], 0.5))
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(1, bool))
    chosen = options(completeness={"gates": [{"inside": {"PC1": [5.0, None]}}]})
    found = correct(line_part(), chosen, fit=fit)  # of the components nothing is beyond 5
    assert len(found.seen) / (len(found.seen) + len(found.unseen)) == pytest.approx(0.5 * 5 / 14, abs=0.01)


@pytest.mark.usefixtures("stops_early")
def test_the_same_seed_gives_the_same_comparison(make_corrected_part):
    part, chosen = make_corrected_part(empty=()), options(*CORRECTIONS)
    fit = fit_candidate(part, 2, chosen, seed=0)[1]
    one, same, other = (correct(part, chosen, fit=fit, max_cells=40, seed=seed) for seed in (0, 0, 1))
    for name in ("shown", "background", "seen", "unseen"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.naive.means, same.naive.means)
    assert one.fit is fit


def test_where_hardly_a_cell_is_seen_few_unseen_ones_are_drawn():
    """A fit may leave 999 of 1,000 cells unseen: 20 million draws, of all features, for a figure."""
    chosen = options() | {"completeness": {"gates": [], "function": lambda x: np.full(len(x), 0.01)}}
    found = correct(line_part(), chosen, fit=line_fit(completeness=0.01, n_unobserved=5940.0))
    assert len(found.unseen) <= 500_000
