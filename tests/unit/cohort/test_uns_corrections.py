"""The layout in `uns` of mixtures of corrected cells."""

import anndata as ad
import numpy as np
import pytest
from corrected import ALL, BOX, make_corrected
from measured import posterior_by_definition

import cohortgmm
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.uns import assign_components
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit

KEY = "gmm_X_pca"

TOP = {
    *("component_sharing", "use_rep", "covariance_type", "n_components", "distribution_n_components", "fit_params"),
    *("selection", "backend", "model_family", "representation_space", "backend_metadata", "model"),
    *("distribution_weights", "weight_inference", "schema_version", "provenance", "diagnostics"),
}


def fit(cohort, **options):
    options = {"k_comps": [1, 2], "k_selection_metric": "bic", "verbose": False} | options
    return cohortgmm.fit_gmm(cohort, patient_col="patient", use_rep="X_pca", **options)


def equal(one, other):
    """Compare nested dicts of arrays, scalars and texts exactly; NaN is equal to NaN."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


# Corrections


EDGES = Background([-4.0, -4.0], [10.0, 10.0], 0.25)

NEAR_AND_FAR = GaussianMixture([0.5, 0.25], [[0.0, 0.0], [5.0, 5.0]], [np.eye(2), np.diag([2.0, 0.5])], EDGES)


def fit_of(model, **numbers):
    return MixtureFit(model, -1.5, 3, True, np.zeros(4), np.zeros(model.n_components, bool), **numbers)


def test_noise_gaps_and_background_decide_where_a_cell_belongs(results_of):
    """Responsibilities, and what they lack of one, by their definition; a cell without features is as the mixture is."""
    x = np.array([[0.0, 0.0], [5.0, np.nan], [np.nan, np.nan], [9.0, -3.5], [40.0, 40.0], [2.5, 2.5]])
    noise = np.array([[0.1, 0.1], [0.1, 9.0], [1.0, 1.0], [0.5, 0.5], [0.1, 0.1], [30.0, 30.0]])
    positions = np.array([7, 0, 3, 1, 5, 2])
    part = PatientCells("P1", x, np.ones(6, bool), noise=noise)
    plain = PatientCells("P2", x[:1], np.ones(1, bool))
    fits = {"P1": fit_of(NEAR_AND_FAR), "P2": fit_of(NEAR_AND_FAR.without_background())}
    cells, _ = assign_components(results_of(fits), [part, plain], {"P1": positions, "P2": np.array([6])}, 9)
    expected = posterior_by_definition(NEAR_AND_FAR, x, noise).responsibilities
    expected[2] = NEAR_AND_FAR.weights
    np.testing.assert_allclose(cells.resp[positions], expected, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(cells.background[positions], 1 - expected.sum(axis=1), atol=1e-12)
    assert cells.background[3] == 0.25
    assert cells.background[1] > 0.99
    np.testing.assert_array_equal(cells.components[positions], expected.argmax(axis=1))
    # Of the patient without a background, and of cells that have no patient.
    assert cells.background[[6, 4, 8]].tolist() == [0, 0, 0]
    assert cells.components.tolist()[4] == cells.components.tolist()[8] == -1
    assert cells.resp[6].sum() == pytest.approx(1, rel=1e-12)


def test_a_patient_with_as_many_cells_as_features_keeps_its_own_noise(results_of):
    x, noise = np.array([[1.0, 4.0], [2.0, 2.5]]), np.array([[0.1, 9.0], [9.0, 0.1]])
    part = PatientCells("P1", x, np.ones(2, bool), noise=noise)
    cells, _ = assign_components(results_of({"P1": fit_of(NEAR_AND_FAR)}), [part], {"P1": np.arange(2)}, 2)
    expected = posterior_by_definition(NEAR_AND_FAR, x, noise[:, :, None] * np.eye(2)).responsibilities
    np.testing.assert_allclose(cells.resp, expected, rtol=1e-9)


def test_a_probability_of_being_background_is_never_negative(results_of):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(500, 2)), 5 + rng.normal(size=(500, 2))])
    model = NEAR_AND_FAR.without_background().with_background(Background([60.0, 60.0], [70.0, 70.0], 1e-9))
    part = PatientCells("P1", x, np.ones(1000, bool))
    cells, _ = assign_components(results_of({"P1": fit_of(model)}), [part], {"P1": np.arange(1000)}, 1000)
    assert cells.background.min() >= 0
    np.testing.assert_array_equal(cells.background, model.background_probability(x))


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_the_layout_with_all_corrections(sharing):
    cohort = fit(make_corrected(), component_sharing=sharing, **ALL, cutoff=9.0)
    uns, shared = cohort.uns[KEY], sharing == "global"
    assert uns.keys() == TOP | {"noise", "background"}
    assert uns["noise"] == {"obsm": "X_pca_var"}
    assert uns["fit_params"] == {
        "max_iter": 30,
        "tol": 1e-4,
        "n_init": 2,
        "eps": 1e-4,
        "singularity_handling": "guarded",
        "init": "kmeans",
        "split_merge": 0,
        "missing": True,
        "cutoff": 9.0,
    }
    n = 1 if shared else 3
    background = uns["background"]
    assert background.keys() == {"lower", "upper", "amp"}
    np.testing.assert_array_equal(background["lower"], np.full((n, 2), BOX[0]))
    np.testing.assert_array_equal(background["upper"], np.full((n, 2), BOX[1]))
    assert background["amp"].shape == (3,)  # of every patient, also where it shares the components
    assert background["amp"].max() > 0.01
    # ggml-ot knows no background: the weights that it reads are those of the components alone.
    np.testing.assert_allclose(uns["model"]["pi"].sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(uns["distribution_weights"].sum(axis=1), 1, rtol=1e-14)
    diagnostics = uns["diagnostics"]
    assert diagnostics["n_empty"].tolist() == [0] * n
    share, n_cells = diagnostics["completeness"], diagnostics["n_cells"]
    assert (diagnostics["n_fit"] < n_cells).all()  # what is expected beside the cells held out counts too
    assert ((share > 0.5) & (share < 1)).all()
    np.testing.assert_allclose(diagnostics["n_unobserved"], n_cells * (1 - share) / share, rtol=1e-9)
    assert cohort.obs[f"{KEY}_background"].dtype == np.float64
    resp = cohort.obsm[f"{KEY}_resp"]
    np.testing.assert_allclose(cohort.obs[f"{KEY}_background"], 1 - resp.sum(axis=1), atol=1e-12)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize(
    ("corrections", "keys"),
    [
        ({"missing": True}, set()),
        ({"missing": True, "noise": {"obsm": "X_pca_var"}}, {"noise"}),
        ({"missing": True, "background": {}}, {"background"}),
        ({"missing": True, "completeness": ALL["completeness"]}, set()),
    ],
    ids=["missing", "noise", "background", "completeness"],
)
def test_every_correction_leaves_its_own_keys(corrections, keys):
    cohort = fit(make_corrected(), **corrections, max_iter=5, n_init=1)
    assert cohort.uns[KEY].keys() == TOP | keys
    assert (f"{KEY}_background" in cohort.obs) == ("background" in corrections)
    assert (cohort.uns[KEY]["diagnostics"]["n_unobserved"] > 0).all() == ("completeness" in corrections)
    assert cohort.uns[KEY]["fit_params"]["missing"] is True


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_file_gives_back_the_corrections(tmp_path, sharing, kind):
    cohort = make_corrected(("a/b", "P2"))
    cohort.obsm["X_pca"][5] = np.nan
    options = ALL | {"completeness": lambda x: np.where(x[:, 0] >= -1, 0.9, 0.0) + np.where(np.isnan(x[:, 0]), 0.5, 0)}
    cohort = fit(cohort, component_sharing=sharing, covariance_type=kind, refit="full", **options)
    cohort.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert equal(cohort.uns[KEY], again.uns[KEY])
    assert again.uns[KEY]["diagnostics"]["n_empty"].tolist() == ([1] if sharing == "global" else [0, 1])  # P2, a/b
    np.testing.assert_array_equal(again.obs[f"{KEY}_background"], cohort.obs[f"{KEY}_background"])
    ours, theirs = cohortgmm.read_gmm(cohort), cohortgmm.read_gmm(tmp_path / "x.h5ad")
    for patient, model in ours.items():
        for name, values in model.arrays().items():
            np.testing.assert_array_equal(theirs[patient].arrays()[name], values)
        assert model.covariance_type == kind
        assert model.weights.sum() + model.background.amp == pytest.approx(1, abs=1e-14)


def test_read_gmm_gives_back_the_mixtures_with_their_backgrounds():
    """As a mapping of arrays gives them, up to the rounding of weights that were normalised."""
    own_boxes = ALL | {"background": {"amp": 0.05}, "k_comps": 2}
    cohort = fit(make_corrected(), **own_boxes)
    ids = cohort.obs["patient"].to_numpy()
    arrays, noise = (
        {patient: cohort.obsm[key][ids == patient] for patient in np.unique(ids)} for key in ("X_pca", "X_pca_var")
    )
    direct = cohortgmm.fit_gmm(
        arrays,
        component_sharing="sample_specific",
        k_selection_metric="bic",
        verbose=False,
        **own_boxes | {"noise": noise, "completeness": lambda x: (x[:, 0] >= -1).astype(float)},
    )
    for patient, model in cohortgmm.read_gmm(cohort).items():
        np.testing.assert_array_equal(model.means, direct[patient].means)
        np.testing.assert_array_equal(model.covariances, direct[patient].covariances)
        np.testing.assert_allclose(model.weights, direct[patient].weights, rtol=1e-14)
        assert model.background.amp == direct[patient].background.amp
        for name in ("lower", "upper"):
            np.testing.assert_array_equal(getattr(model.background, name), getattr(direct[patient].background, name))
        x, own = arrays[patient], noise[patient]
        np.testing.assert_allclose(model.log_prob(x, own), direct[patient].log_prob(x, own), rtol=1e-12)
        np.testing.assert_allclose(
            model.responsibilities(x, own), cohort.obsm[f"{KEY}_resp"][ids == patient], atol=1e-14
        )


def test_a_patient_of_a_shared_mixture_has_weights_and_a_background_of_its_own():
    """Where EM has converged, the mean probabilities under the patient's own mixture are its weights."""
    cohort = fit(
        make_corrected(), component_sharing="global", **ALL | {"completeness": None, "max_iter": None, "tol": 1e-9}
    )
    assert cohort.uns[KEY]["weight_inference"]["weights_source"] == "mixture"
    assert cohort.uns[KEY]["weight_inference"]["weights_fit_scope"] == "all_cells"
    ids = cohort.obs["patient"].to_numpy()
    for patient, model in cohortgmm.read_gmm(cohort).items():
        x, noise = (cohort.obsm[name][ids == patient].astype(float) for name in ("X_pca", "X_pca_var"))
        resp = posterior_by_definition(model, x, noise).responsibilities
        np.testing.assert_allclose(model.weights, resp.mean(axis=0), atol=1e-4)
        assert model.background.amp == pytest.approx(1 - resp.sum(axis=1).mean(), abs=1e-4)


def test_without_a_background_there_is_none():
    for model in cohortgmm.read_gmm(fit(make_corrected(), missing=True, max_iter=5, n_init=1)).values():
        assert model.background is None
