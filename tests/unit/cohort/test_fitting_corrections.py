"""Candidates and final mixtures of cells with noise, gaps, selection, background or a reference."""

import math
from dataclasses import replace

import numpy as np
import pytest
from corrected import ALL, BOX, GATE
from measured import posterior_by_definition
from scipy.stats import multivariate_normal

from cohortgmm.cohort.cells import PatientCells, derived_seed
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.fitting import final_fit, fit_candidate, heldout_nll, write_fit
from cohortgmm.config import read_gmm_options
from cohortgmm.config.gmm import GateConfig, GmmConfig
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit


def options(**changes):
    return fit_options(GmmConfig(**changes))


# Noise, gaps, selection, background


def corrected(**changes):
    """Options with some of the corrections; None leaves one out."""
    return fit_options(read_gmm_options({"max_iter": 30, "tol": 1e-4, "n_init": 2} | changes))


def same(one, other):
    """Whether two fits are the same bit by bit."""
    numbers = ("log_likelihood", "n_iter", "converged", "n_unobserved", "completeness", "n_empty")
    ours, theirs = one.model.arrays(), other.model.arrays()
    return ours.keys() == theirs.keys() and all(
        np.array_equal(a, b)
        for a, b in (
            *((ours[name], theirs[name]) for name in ours),
            *((getattr(one, name), getattr(other, name)) for name in (*numbers, "history", "floored")),
        )
    )


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_scores_of_cells_with_noise_gaps_and_debris(make_corrected_part, kind):
    """Cells without features count nowhere; the background is one more weight."""
    part = make_corrected_part()
    assert np.isnan(part.x).all(axis=1).tolist() == [i in (4, 7) for i in range(80)]
    chosen = corrected(covariance_type=kind, **{key: ALL[key] for key in ("noise", "missing", "background")})
    row, fit = fit_candidate(part, 2, chosen, seed=0)
    log_prob = posterior_by_definition(fit.model, part.x, part.noise).log_prob
    scored = ~np.isnan(part.x).all(axis=1)
    total, heldout = log_prob[scored & part.train].sum(), -log_prob[scored & ~part.train].mean()
    parameters = 2 * 2 + 2 * (3 if kind == "full" else 2) + 1 + 1
    close = {
        "log_likelihood": total,
        "aic": -2 * total + 2 * parameters,
        "bic": -2 * total + parameters * math.log(39),
        "train_nll": -total / 39,
        "heldout_nll": heldout,
        "nll_gap": heldout + total / 39,
    }
    assert {name: row[name] for name in close} == pytest.approx(close, rel=1e-9)
    assert (row["n_train"], row["n_val"], fit.n_empty) == (40, 40, 1)
    assert 0.01 < fit.model.background.amp < 0.5
    assert (fit.completeness, fit.n_unobserved) == (1, 0)


REFERENCE = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [5.0, 5.0]], [np.eye(2), np.eye(2)])


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # two means, two covariances of three numbers, one weight
        ({"missing": True}, 11),
        ({"missing": True, "covariance_type": "diag"}, 9),
        ({"background": {"lower": -9, "upper": 19}}, 12),
        ({"background": {"lower": -9, "upper": 19, "adjust_amp": False}}, 11),
        ({"completeness": {"gates": [{"inside": {"PC1": [-99, None]}}]}}, 11),
        ({"reference": "r"}, 1),
        ({"reference": "r", "background": {"lower": -9, "upper": 19}}, 2),
        ({"reference": "r", "frozen": {}}, 11),
        ({"reference": "r", "frozen": {"mean": [1]}}, 9),
        ({"reference": "r", "frozen": {"covar": "all"}}, 5),
        ({"reference": "r", "frozen": {"amp": "all", "mean": [0], "covar": [0, 1]}}, 2),
        ({"reference": "r", "frozen": {"amp": "all", "mean": "all", "covar": "all"}}, 0),
    ],
    ids=str,
)
def test_only_what_is_fitted_is_a_parameter(make_part, options, parameters):
    part = make_part(n=40, n_train=40)
    chosen = corrected(**options)
    if chosen["reference"] is not None:
        chosen["reference"] = REFERENCE
    row, fit = fit_candidate(part, 2, chosen, seed=0)
    assert (row["aic"] + 2 * row["log_likelihood"]) / 2 == pytest.approx(parameters, abs=1e-9)
    assert (row["bic"] + 2 * row["log_likelihood"]) / math.log(40) == pytest.approx(parameters, abs=1e-9)
    assert row["log_likelihood"] / 40 == pytest.approx(fit.log_likelihood, rel=1e-12)


def tail_of_normal(z):
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("noise", [None, "shared", "own"])
def test_held_out_cells_are_scored_among_those_that_are_seen(noise):
    """−log(p / Z) with the share Z of all cells that is seen, by the error function."""
    rng = np.random.default_rng(0)
    variances = {None: np.zeros(4000), "shared": np.full(4000, 0.3), "own": rng.uniform(0.1, 0.5, 4000)}[noise]
    x = 1 + 1.5 * rng.normal(size=4000) + np.sqrt(variances) * rng.normal(size=4000)
    kept = np.flatnonzero(x >= 0)[:600]
    part = PatientCells(
        "P1",
        x[kept, None],
        np.arange(600) % 2 == 0,
        noise=None if noise is None else variances[kept, None],
        feature_names=("PC1",),
    )
    changes = {} if noise is None else {"noise": {"obsm": "v"}}
    row, fit = fit_candidate(
        part, 1, corrected(completeness={"gates": [{"inside": {"PC1": [0, None]}}]}, **changes), seed=0
    )
    mean, variance = fit.model.means[0, 0], fit.model.covariances[0, 0, 0]
    held, fitted = kept[1::2], kept[::2]
    # Of unseen cells nobody knows the noise: it is drawn from that of the fitted ones.
    share = np.mean([tail_of_normal(-mean / math.sqrt(variance + s)) for s in variances[fitted]])
    log_p = multivariate_normal.logpdf
    densities = [log_p(x[i], mean, variance + variances[i]) for i in held]
    # 2^14 quasi-random nodes leave errors of 1e-5 to 3e-4; those of the draw of the cells' noise are ten times larger.
    tolerance = 5e-3 if noise == "own" else 1e-3
    assert fit.completeness == pytest.approx(share, rel=tolerance)
    assert 0.6 < share < 0.9
    assert row["heldout_nll"] == pytest.approx(math.log(share) - np.mean(densities), abs=tolerance)
    total = sum(log_p(x[i], mean, variance + variances[i]) - math.log(share) for i in fitted)
    assert row["log_likelihood"] == pytest.approx(total, abs=300 * tolerance)
    assert row["nll_gap"] == row["heldout_nll"] - row["train_nll"]
    assert fit.n_unobserved == pytest.approx(300 * (1 - fit.completeness) / fit.completeness, rel=1e-12)


def test_cells_held_out_without_features_have_no_score(make_corrected_part):
    part = make_corrected_part(empty=range(1, 80, 2))
    row, fit = fit_candidate(part, 1, corrected(missing=True), seed=0)
    assert math.isnan(row["heldout_nll"])
    assert math.isnan(row["nll_gap"])
    assert fit.n_empty == 0
    one = make_corrected_part(empty=range(3, 80, 2))
    expected = -posterior_by_definition(fit.model, one.x[1:2], one.noise[1:2]).log_prob[0]
    assert heldout_nll(fit, one) == pytest.approx(expected, rel=1e-12)


def test_cells_held_out_with_infinite_noise_have_no_score(make_corrected_part):
    part = make_corrected_part(empty=())
    noise = part.noise.copy()
    noise[1:40:2] = np.inf
    hidden = PatientCells("P1", part.x, part.train, noise=noise, feature_names=part.feature_names)
    row, fit = fit_candidate(hidden, 1, corrected(missing=True, noise={"obsm": "v"}), seed=0)
    left = np.arange(41, 80, 2)
    expected = -posterior_by_definition(fit.model, part.x[left], noise[left]).log_prob.mean()
    assert row["heldout_nll"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_candidate_is_fit_mixture_on_the_training_cells(make_corrected_part, kind):
    part = make_corrected_part(empty=())
    chosen = corrected(**ALL, covariance_type=kind, cutoff=6.0, init="random", eps=0.01)
    row, fit = fit_candidate(part, 2, chosen, seed=3)

    def direct(rows):
        return fit_mixture(
            part.x[rows],
            2,
            covariance_type=kind,
            max_iter=30,
            tol=1e-4,
            n_init=2,
            eps=0.01,
            init="random",
            cutoff=6.0,
            noise=part.noise[rows],
            completeness=lambda x: (x[:, 0] >= GATE["PC1"][0]).astype(float),
            background=Background(np.full(2, BOX[0]), np.full(2, BOX[1]), 0.05),
            random_state=derived_seed(3, "P1", 2),
        )

    assert same(fit, direct(part.train))
    assert row["n_iter"] == fit.n_iter
    again = final_fit(part, 2, fit, "full", chosen, seed=3)
    assert same(again, direct(np.ones(80, bool)))
    assert not same(again, fit)
    assert final_fit(part, 2, fit, "none", chosen, seed=3).model is fit.model


def test_the_noise_of_unseen_cells_may_be_told(make_corrected_part):
    """With the noise of all cells the same everywhere, telling so changes nothing but the draw of it."""
    part = make_corrected_part(empty=(), all_fitted=True)
    part = PatientCells("P1", part.x, part.train, noise=np.full((80, 2), 0.3), feature_names=part.feature_names)
    chosen = corrected(noise={"obsm": "v"}, completeness=ALL["completeness"], missing=True)
    drawn = fit_candidate(part, 1, chosen, seed=0)[1]
    told = fit_candidate(part, 1, chosen | {"noise_at": lambda x: np.full(x.shape, 0.3)}, seed=0)[1]
    assert same(told, drawn)
    more = fit_candidate(part, 1, chosen | {"noise_at": lambda x: np.full(x.shape, 3.0)}, seed=0)[1]
    assert more.completeness < drawn.completeness - 0.01


def test_threads_change_no_bit_of_a_corrected_fit(make_corrected_part):
    part = make_corrected_part(n=200)
    chosen = corrected(noise=ALL["noise"], missing=True, background=ALL["background"])
    one, two = (fit_candidate(part, 2, chosen, seed=0, n_threads=n) for n in (1, 2))
    assert same(one[1], two[1])
    assert one[0]["heldout_nll"] == two[0]["heldout_nll"]


def test_patients_are_mapped_onto_a_reference(make_part, tmp_path):
    """Means and covariances stay bit by bit; the weights become those that EM finds for fixed densities."""
    part, first = make_part(n=60), np.arange(60) % 2 == 0
    x = np.concatenate([part.x[first], part.x[~first][:8]]).astype(float)
    part = PatientCells("P1", x, np.ones(len(x), bool))
    reference = GaussianMixture([0.9, 0.1], [[0.1, -0.1], [5.9, 6.2]], [1.1 * np.eye(2), 0.7 * np.eye(2)])
    reference.save(tmp_path / "r.npz")
    chosen = fit_options(read_gmm_options({"reference": str(tmp_path / "r.npz")}))
    _, fit = fit_candidate(part, 2, chosen, seed=0)
    np.testing.assert_array_equal(fit.model.means, reference.means)
    np.testing.assert_array_equal(fit.model.covariances, reference.covariances)
    weights = np.array([0.5, 0.5])
    densities = np.exp(
        [multivariate_normal(m, s).logpdf(x) for m, s in zip(reference.means, reference.covariances, strict=True)]
    )
    for _ in range(200):
        joint = weights[:, None] * densities
        weights = (joint / joint.sum(axis=0)).mean(axis=1)
    np.testing.assert_allclose(fit.model.weights, weights, atol=1e-5)  # tol is 1e-6 nats
    assert weights[0] == pytest.approx(30 / 38, abs=0.01)
    loaded = fit_candidate(part, 2, chosen | {"reference": reference}, seed=5)[1]
    assert same(loaded, fit)  # the file and the mixture are the same; one start, whatever the seed


@pytest.mark.parametrize(
    ("frozen", "kept"),
    [
        ({"mean": [1]}, {"means": [1]}),
        ({"covar": [0]}, {"covariances": [0]}),
        ({"mean": "all", "covar": [1]}, {"means": [0, 1], "covariances": [1]}),
        ({"amp": "all"}, {"weights": [0, 1]}),
        ({}, {}),
    ],
    ids=str,
)
def test_what_is_frozen_stays_and_nothing_else(make_part, frozen, kept):
    part = make_part(n=60, n_train=60)
    reference = GaussianMixture([0.9, 0.1], [[0.1, -0.1], [5.9, 6.2]], [1.1 * np.eye(2), 0.7 * np.eye(2)])
    chosen = fit_options(read_gmm_options({"reference": "r", "frozen": frozen})) | {"reference": reference}
    _, fit = fit_candidate(part, 2, chosen, seed=0)
    for name in ("weights", "means", "covariances"):
        for k in range(2):
            stays = np.array_equal(getattr(fit.model, name)[k], getattr(reference, name)[k])
            assert stays == (k in kept.get(name, ())), (name, k)


def test_a_references_background_comes_with_it(make_corrected_part):
    part = make_corrected_part()
    background = Background(np.full(2, BOX[0]), np.full(2, BOX[1]), 0.3)
    chosen = corrected(reference="r", missing=True) | {"reference": REFERENCE.with_background(background)}
    row, fit = fit_candidate(part, 2, chosen, seed=0)
    np.testing.assert_array_equal(fit.model.background.upper, background.upper)
    assert 0 < fit.model.background.amp < 0.3
    assert (row["aic"] + 2 * row["log_likelihood"]) / 2 == pytest.approx(2, abs=1e-9)  # a weight and the amplitude
    np.testing.assert_array_equal(fit.model.means, REFERENCE.means)
    chosen = corrected(reference=chosen["reference"], missing=True, background=background_of(BOX[0], BOX[1] + 5.0))
    again = fit_candidate(part, 2, chosen, seed=0)[1]
    np.testing.assert_array_equal(again.model.background.upper, np.full(2, BOX[1] + 5.0))


def background_of(lower, upper):
    return Background(np.full(2, lower), np.full(2, upper), 0.1)


def test_a_reference_of_other_features_or_components(make_part):
    chosen = corrected(reference="r") | {"reference": REFERENCE}
    with pytest.raises(
        ConfigError, match=r"^initial has 2 full components in 2 features; the fit asks for 2 full .* 3$"
    ):
        fit_candidate(make_part(n_features=3), 2, chosen, seed=0)
    with pytest.raises(
        ConfigError, match=r"^frozen\['mean'\] must be 'all' or numbers of components from 0 to 1, got \[2\]$"
    ):
        fit_candidate(make_part(), 2, chosen | {"frozen": {"mean": [2]}}, seed=0)


def test_completeness_that_denies_the_cells(make_corrected_part):
    """Whether they are fitted or held out; they are named as in the cohort, or without names by their rows."""
    names = np.array([f"Zelle ä{i}".encode() for i in range(80)])
    part = replace(make_corrected_part(empty=()), cell_names=names)
    gate = [GateConfig(inside={"PC1": [3.0, None]}).model_dump()]
    chosen = corrected(missing=True) | {"completeness": {"gates": gate, "function": None}}
    denied = np.flatnonzero(part.x[:, 0] < 3)
    first = ", ".join(f"'Zelle ä{i}'" for i in denied[:5])
    with pytest.raises(
        DataError, match=rf"^completeness is 0 for {len(denied)} observed cells \({first}, \.\.\.\): the"
    ):
        fit_candidate(part, 1, chosen, seed=0)
    held_out = replace(part, train=part.x[:, 0] >= 3)
    with pytest.raises(DataError, match=rf"^completeness is 0 for {len(denied)} observed cells \({first}"):
        fit_candidate(held_out, 1, chosen, seed=0)
    with pytest.raises(DataError, match=rf"observed cells \({', '.join(map(str, denied[:5]))}, "):
        fit_candidate(replace(part, cell_names=None), 1, chosen, seed=0)


def test_a_gate_on_a_feature_that_some_cells_lack(make_corrected_part):
    part = make_corrected_part(empty=())
    chosen = corrected(missing=True, completeness={"gates": [{"inside": {"PC2": [-99, None]}}]})
    with pytest.raises(DataError) as caught:
        fit_candidate(part, 1, chosen, seed=0)
    assert str(caught.value).startswith("cells 0 to 79: the completeness function returned nan at (")
    assert str(caught.value).endswith("must be within [0, 1]; cells with missing features are among them")


def test_infinite_variances_go_with_completeness(make_corrected_part):
    part = make_corrected_part(empty=())
    noise = part.noise.copy()
    noise[np.isnan(part.x)] = np.inf
    hidden = PatientCells("P1", part.x, part.train, noise=noise, feature_names=part.feature_names)
    _, fit = fit_candidate(hidden, 1, corrected(**ALL), seed=0)
    assert 0.5 < fit.completeness < 1


@pytest.mark.usefixtures("stops_early")
def test_as_many_cells_as_features_keep_their_own_noise():
    """Two training cells in two features; the fit must not tell them from three of the same kind."""
    rng = np.random.default_rng(0)
    part = PatientCells(
        "P1",
        rng.normal(size=(4, 2)),
        np.arange(4) < 2,
        noise=np.full((4, 2), 0.3),
        feature_names=("a", "b"),
    )
    _, fit = fit_candidate(part, 1, corrected(noise={"obsm": "v"}, max_iter=5, tol=0), seed=0)
    expected = posterior_by_definition(fit.model, part.x[:2], np.full((2, 2, 2), 0.3 * np.eye(2))).log_prob.mean()
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-9)


def test_the_final_mixture_counts_the_cells_held_out_too(make_corrected_part):
    part = make_corrected_part(empty=(4, 7, 9))  # of which 4 is fitted
    chosen = corrected(**ALL | {"completeness": lambda x: np.full(len(x), 0.25)})
    _, fit = fit_candidate(part, 1, chosen, seed=0)
    assert (fit.n_empty, fit.n_unobserved) == (1, pytest.approx(39 * 3, rel=1e-3))
    final = final_fit(part, 1, fit, "none", chosen, seed=0)
    assert (final.n_empty, final.n_unobserved) == (3, pytest.approx(77 * 3, rel=1e-3))
    again = final_fit(part, 1, fit, "full", chosen, seed=0)
    assert (again.n_empty, again.n_unobserved) == (3, pytest.approx(77 * 3, rel=1e-3))


def test_a_corrected_fit_is_written_and_loaded(make_corrected_part, tmp_path):
    part = make_corrected_part(empty=(4,))
    options_without_gate = corrected(**{key: ALL[key] for key in ("noise", "missing", "background")})
    _, fit = fit_candidate(part, 2, options_without_gate, seed=0)
    write_fit(tmp_path / "a.npz", fit)
    assert same(MixtureFit.load(tmp_path / "a.npz"), fit)
    assert fit.n_empty == 1
    whole = make_corrected_part(empty=())
    _, fit = fit_candidate(whole, 2, corrected(**ALL), seed=0)
    write_fit(tmp_path / "b.npz", fit)
    assert same(MixtureFit.load(tmp_path / "b.npz"), fit)
    assert fit.n_unobserved > 0
    assert fit.model.background is not None


def lacks_a_feature(**more):
    """60 cells that have the first of two features only, three quarters of them about 0, the others about 6."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=60) + 6.0 * (np.arange(60) % 4 == 0), np.full(60, np.nan)])
    return PatientCells("P1", x, np.arange(60) % 2 == 0, feature_names=("CD3", "CD4"), **more)


def test_a_feature_that_a_patient_lacks_is_named():
    with pytest.raises(DataError) as caught:
        fit_candidate(lacks_a_feature(), 1, options(missing=True), seed=0)
    assert str(caught.value) == (
        "feature 'CD4' is missing in all 30 fitted cells: leave it out, fit the patients together (component_sharing "
        "global) or map them onto a reference"
    )
    everyone = lacks_a_feature(owner=np.zeros(60, dtype=int), patients=("P1",))
    with pytest.raises(DataError, match=r"^feature 'CD4' is missing in all 30 fitted cells: leave it out$"):
        fit_candidate(everyone, 1, options(missing=True), seed=0)


def test_a_patient_that_lacks_a_feature_is_mapped_onto_a_reference(tmp_path):
    GaussianMixture([0.5, 0.5], [[0.0, 1.0], [6.0, 2.0]], [np.eye(2)] * 2).save(tmp_path / "atlas.npz")
    mapped = options(missing=True, reference=str(tmp_path / "atlas.npz"), k_comps=2)
    _, fit = fit_candidate(lacks_a_feature(), 2, mapped, seed=0)
    np.testing.assert_allclose(fit.model.weights, [0.5, 0.5], atol=0.01)  # every other training cell is about 6
    assert fit.model.means.tolist() == [[0.0, 1.0], [6.0, 2.0]]
