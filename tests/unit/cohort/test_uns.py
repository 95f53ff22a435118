"""The layout in ``uns``: keys, shapes and meaning; the same after a file; read from what ggml-ot wrote itself."""

import warnings
from dataclasses import replace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort

import cohortgmm
from cohortgmm.cohort.reading import Embedding
from cohortgmm.cohort.split import split_patients
from cohortgmm.cohort.uns import assign_components, uns_key
from cohortgmm.errors import DataError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.result import MixtureFit
from cohortgmm.storage.names import ALL_PATIENTS

KEY = "gmm_X_pca"

TOP = {
    *("component_sharing", "use_rep", "covariance_type", "n_components", "distribution_n_components", "fit_params"),
    *("selection", "backend", "model_family", "representation_space", "backend_metadata", "model"),
    *("distribution_weights", "weight_inference", "schema_version", "provenance", "diagnostics"),
}

SELECTION = {
    *(
        "metric",
        "k_comps",
        "best_k",
        "scores",
        "selection_cells_count",
        "refit",
        "train_frac",
        "val_frac",
        "score_name",
    ),
    *("best_k_by_distribution", "scores_by_distribution"),
}

SCORES = {"k", "score", "train_nll", "validation_nll", "nll_gap", "n_train_cells", "n_val_cells", "aic", "bic"}


def uneven(patients=("P1", "P2", "P3")):
    """P1 has one group of cells, the others two."""
    cohort = make_cohort(patients)
    first = (cohort.obs["patient"] == patients[0]).to_numpy()
    cohort.obsm["X_pca"][first] -= 6 * (np.arange(first.sum()) % 2)[:, None]
    return cohort


def fit(cohort, **options):
    options = {"k_comps": [1, 2], "k_selection_metric": "bic", "verbose": False} | options
    return cohortgmm.fit_gmm(cohort, patient_col="patient", use_rep="X_pca", **options)


def equal(one, other):
    """Compare nested dicts of arrays, scalars and texts exactly; NaN is equal to NaN."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_the_layout_of_mixtures_of_their_own(kind):
    uns = fit(uneven(), covariance_type=kind).uns[KEY]
    assert uns.keys() == TOP
    assert uns["selection"].keys() == SELECTION
    model = uns["model"]
    assert {name: model[name].shape for name in model} == {"mu": (3, 2, 3), "var": (3, 2, 3, 3), "pi": (3, 2)}
    assert uns["distribution_weights"].shape == (3, 2)
    assert uns["distribution_n_components"].tolist() == [1, 2, 2]
    assert (uns["n_components"], uns["model_family"], uns["representation_space"]) == (2, "gmm", "use_rep")
    assert (uns["component_sharing"], uns["use_rep"], uns["covariance_type"]) == ("sample_specific", "X_pca", kind)
    # The second component of P1 is padding.
    assert not model["mu"][0, 1].any()
    assert not model["var"][0, 1].any()
    assert not model["pi"][0, 1]
    assert not uns["distribution_weights"][0, 1]
    off_diagonal = model["var"][:, :, ~np.eye(3, dtype=bool)]
    assert off_diagonal[1].any() == (kind == "full")
    np.testing.assert_allclose(uns["distribution_weights"].sum(axis=1), 1, rtol=1e-15)
    assert uns["weight_inference"]["distribution_ids"].tolist() == ["P1", "P2", "P3"]
    assert uns["weight_inference"]["weights_fit_scope"] == "selection_cells"
    assert uns["weight_inference"]["weights_source"] == "mixture"
    assert uns["fit_params"] == {
        "max_iter": 100,
        "tol": 1e-3,
        "n_init": 1,
        "eps": 1e-4,
        "singularity_handling": "guarded",
        "init": "kmeans",
        "split_merge": 0,
        "missing": False,
    }
    diagnostics = uns["diagnostics"]
    assert diagnostics["n_cells"].tolist() == [60, 60, 60]
    assert diagnostics["n_fit"].tolist() == [30, 30, 30]
    assert diagnostics["n_floored"].tolist() == [0, 0, 0]
    assert diagnostics["completeness"].tolist() == [1, 1, 1]
    assert diagnostics["n_unobserved"].tolist() == [0, 0, 0]
    assert diagnostics["n_empty"].tolist() == [0, 0, 0]
    spectra = np.linalg.eigvalsh(model["var"][1])
    assert diagnostics["max_condition"][1] == pytest.approx((spectra[:, -1] / spectra[:, 0]).max(), rel=1e-9)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_the_layout_of_a_shared_mixture(kind):
    uns = fit(uneven(), covariance_type=kind, component_sharing="global").uns[KEY]
    assert uns.keys() == TOP
    assert uns["selection"].keys() == SELECTION - {"best_k_by_distribution", "scores_by_distribution"}
    shapes = {name: array.shape for name, array in uns["model"].items()}
    assert shapes == {"mu": (2, 3), "var": (2, 3, 3), "pi": (1, 2)}
    assert uns["distribution_weights"].shape == (3, 2)
    assert uns["distribution_n_components"].tolist() == [2, 2, 2]
    assert uns["distribution_weights"][0].max() > 0.99  # P1 has one of the groups only
    np.testing.assert_allclose(np.sort(uns["distribution_weights"][1]), [0.5, 0.5], atol=0.01)
    np.testing.assert_allclose(uns["distribution_weights"].sum(axis=1), 1, rtol=1e-15)
    assert uns["weight_inference"]["weights_source"] == "mean_responsibilities"
    assert uns["weight_inference"]["weights_fit_scope"] == "all_cells"
    assert uns["diagnostics"]["n_cells"].tolist() == [180]
    assert uns["selection"]["selection_cells_count"] == 90


@pytest.mark.parametrize(("metric", "name"), [("aic", "aic"), ("bic", "bic"), ("heldout_nll", "validation_nll")])
def test_the_selection_by_patient(metric, name):
    selection = fit(uneven(), k_selection_metric=metric, train_size=0.6).uns[KEY]["selection"]
    assert (selection["metric"], selection["score_name"], selection["refit"]) == (metric, name, "none")
    assert (selection["train_frac"], selection["val_frac"]) == (0.6, 0.4)
    assert selection["k_comps"].tolist() == [1, 2]
    assert selection["selection_cells_count"] == 3 * 36
    best, tables = selection["best_k_by_distribution"], selection["scores_by_distribution"]
    assert best["P2"] == 2
    assert selection["best_k"] == 2
    for patient, table in tables.items():
        assert table.keys() == SCORES
        assert table["k"].tolist() == [1, 2]
        np.testing.assert_array_equal(table["score"], table[name])
        assert best[patient] == table["k"][table["score"].argmin()]
        np.testing.assert_allclose(
            table["nll_gap"], table["validation_nll"] - table["train_nll"], rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(table["aic"], 2 * 36 * table["train_nll"] + 2 * np.array([9, 19]), rtol=1e-12)
    mean = np.mean([table["score"] for table in tables.values()], axis=0)
    np.testing.assert_allclose(selection["scores"]["score"], mean, rtol=1e-12)
    assert selection["scores"].keys() == SCORES


def test_a_fixed_k_has_no_selection():
    for k_comps in (2, [2]):
        uns = fit(uneven(), k_comps=k_comps).uns[KEY]
        assert uns.keys() == TOP - {"selection"}
        assert uns["backend_metadata"] == {"fit_indices_count": 180, "refit": "full"}
        assert uns["weight_inference"]["weights_fit_scope"] == "all_cells"


def test_x_itself_has_no_use_rep():
    cohort = uneven()
    cohort = ad.AnnData(cohort.obsm["X_pca"], obs=cohort.obs)
    cohortgmm.fit_gmm(cohort, patient_col="patient", k_comps=1, verbose=False)
    assert cohort.uns["gmm_X"].keys() == TOP - {"selection", "use_rep"}


IDS = ("a/b", ".", "a=2Fb", "..", "a.b", "é 1", "NA", "x/")


@pytest.mark.parametrize(
    ("patients", "options"),
    [
        (("P1", "P2", "P3"), {}),
        (("P1", "P2", "P3"), {"k_comps": [1, 2, 40], "covariance_type": "diag"}),
        (("P1", "P2", "P3"), {"component_sharing": "global"}),
        (("P1", "P2"), {"train_size": 1, "k_selection_metric": "aic"}),  # NaN among the scores
        (("P1", "P2"), {"k_comps": 2}),
        (IDS, {}),
    ],
)
def test_a_file_gives_back_the_same(tmp_path, patients, options):
    cohort = fit(uneven(patients), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?i).*slash")  # anndata warns of keys that it will refuse one day
        cohort.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert equal(cohort.uns[KEY], again.uns[KEY])
    np.testing.assert_array_equal(again.obsm[f"{KEY}_resp"], cohort.obsm[f"{KEY}_resp"])
    np.testing.assert_array_equal(again.obs[f"{KEY}_comp"], cohort.obs[f"{KEY}_comp"])
    ours, theirs = cohortgmm.read_gmm(cohort), cohortgmm.read_gmm(tmp_path / "x.h5ad", KEY)
    assert list(ours) == list(theirs) == sorted(patients)
    for patient, model in ours.items():
        np.testing.assert_array_equal(model.covariances, theirs[patient].covariances)
        assert model.covariance_type == options.get("covariance_type", "full")
        assert model.weights.sum() == pytest.approx(1, abs=1e-12)
        assert model.weights.min() > 0


def test_keys_of_patients():
    keys = {patient: uns_key(patient) for patient in (*IDS, "a", "=", "=2E", "=2F", "/", "a b")}
    assert len(set(keys.values())) == len(keys)
    assert keys["a"] == "a"
    assert keys["a b"] == "a b"
    assert keys["a/b"] == "a=2Fb"
    assert keys["a=2Fb"] == "a=3D2Fb"
    assert keys["."] == "=2E"
    assert keys[".."] == ".."


def one_component(mean):
    model = GaussianMixture([1.0], [[mean]], [[[1.0]]])
    return MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(1, bool))


def test_responsibilities_go_to_the_rows_of_their_cells(results_of):
    ids = np.array(list("babc"), dtype=object)
    split = split_patients(ids, train_size=1, seed=0, wanted=["a", "b"], on_small_patient="drop", min_cells=1)
    assert split.patients == ["b"]  # one cell is too few
    two = GaussianMixture([0.25, 0.75], [[0.0], [4.0]], [[[1.0]], [[1.0]]])
    fits = {"b": MixtureFit(two, 0.0, 1, True, np.zeros(2), np.zeros(2, bool))}
    source = Embedding(np.array([[0.0], [9.0], [4.0], [9.0]]), ("f",))
    cells, weights = assign_components(results_of(fits), split.units(source, "sample_specific"), split.positions, 4)
    assert cells.components.tolist() == [0, -1, 1, -1]
    share = 1 / (1 + 3 * np.exp(-8))  # of the first component, in the cell at its mean
    other = 1 / (1 + 3 * np.exp(8))
    np.testing.assert_allclose(cells.resp, [[share, 1 - share], [0, 0], [other, 1 - other], [0, 0]], rtol=1e-10)
    assert cells.background is None
    assert weights == {}
    everyone = {ALL_PATIENTS: fits["b"]}
    cells, weights = assign_components(
        results_of(everyone), split.units(source, "global"), split.unit_positions("global"), 4
    )
    np.testing.assert_allclose(weights["b"], [(share + other) / 2, 1 - (share + other) / 2], rtol=1e-12)
    own = replace(fits["b"], patient_weights=np.array([[0.1, 0.9]]))
    again, weights = assign_components(
        results_of({ALL_PATIENTS: own}), split.units(source, "global"), split.unit_positions("global"), 4
    )
    assert weights["b"].tolist() == [0.1, 0.9]
    np.testing.assert_array_equal(again.resp, cells.resp)


def test_responsibilities_are_padded(results_of):
    ids = np.repeat(np.array(["a", "b"], dtype=object), 2)
    split = split_patients(ids, train_size=1, seed=0)
    two = GaussianMixture([0.5, 0.5], [[0.0], [9.0]], [[[1.0]], [[1.0]]])
    fits = {"a": one_component(0.0), "b": MixtureFit(two, 0.0, 1, True, np.zeros(2), np.zeros(2, bool))}
    source = Embedding(np.array([[0.0], [1], [0], [9]]), ("f",))
    cells, _ = assign_components(results_of(fits), split.units(source, "sample_specific"), split.positions, 4)
    assert cells.components.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(cells.resp, [[1, 0], [1, 0], [1, 0], [0, 1]], atol=1e-12)


# read_gmm


def ggml_layout(sharing="sample_specific", kind="full", leading_axis=False):
    """As ggml-ot 0.9 leaves it in memory: lists of patients and counts, texts, None."""
    mu = np.array([[0.0, 1.0], [2.0, 3.0]])
    var = np.array([np.diag([1.0, 2.0]), np.diag([3.0, 4.0])])
    pi = np.array([[0.5, 0.5]])
    counts = [2, 2]
    if sharing == "sample_specific":
        mu, var, pi = np.stack([mu, mu + 10]), np.stack([var, var + np.eye(2)]), np.array([[0.25, 0.75], [1.0, 0.0]])
        counts = [2, 1]
    elif leading_axis:
        mu, var = mu[None], var[None]
    return {
        "component_sharing": sharing,
        "use_rep": None,
        "covariance_type": kind,
        "n_components": 2,
        "distribution_n_components": counts,
        "fit_params": {"tol": 1e-3},
        "selection": None,
        "backend": "torch_gmm",
        "model_family": "gmm",
        "representation_space": "use_rep",
        "backend_metadata": {},
        "model": {"mu": mu.tolist(), "var": var.tolist(), "pi": pi.tolist()},
        "distribution_weights": [[0.25, 0.75], [1.0, 0.0]],
        "weight_inference": {
            "weights_fit_scope": "all_cells",
            "weights_source": "stored",
            "distribution_ids": ["b", "a"],
        },
    }


def holder(**uns):
    return ad.AnnData(np.zeros((1, 1)), obs=pd.DataFrame(index=["c"]), uns=uns)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_mixtures_of_their_own_in_the_layout_of_ggml(kind):
    models = cohortgmm.read_gmm(holder(gmm_X=ggml_layout(kind=kind)))
    assert list(models) == ["b", "a"]
    np.testing.assert_array_equal(models["b"].means, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(models["b"].weights, [0.25, 0.75])
    assert models["a"].n_components == 1
    np.testing.assert_array_equal(models["a"].means, [[10, 11]])
    np.testing.assert_array_equal(models["a"].full_covariances, [[[2, 0], [0, 3]]])
    assert models["a"].covariance_type == kind


@pytest.mark.parametrize("leading_axis", [False, True])
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_shared_mixture_in_the_layout_of_ggml(kind, leading_axis):
    models = cohortgmm.read_gmm(holder(gmm_X=ggml_layout("global", kind, leading_axis)), "gmm_X")
    assert list(models) == ["b", "a"]
    for patient, weights in (("b", [0.25, 0.75]), ("a", [1.0, 0.0])):
        np.testing.assert_array_equal(models[patient].weights, weights)
        np.testing.assert_array_equal(models[patient].means, [[0, 1], [2, 3]])
        np.testing.assert_array_equal(models[patient].full_covariances[1], np.diag([3.0, 4.0]))


def test_without_weights_of_patients_those_of_the_mixture_are_taken():
    for sharing, expected in (("sample_specific", [1.0]), ("global", [0.5, 0.5])):
        stored = ggml_layout(sharing)
        del stored["distribution_weights"]
        np.testing.assert_array_equal(cohortgmm.read_gmm(holder(gmm_X=stored))["a"].weights, expected)


def test_what_read_gmm_cannot_find(tmp_path):
    cohort = holder(one=ggml_layout(), two=ggml_layout(), other={"text": "x"}, number=3)
    for key, text in (
        (None, "no gmm_key given; keys with mixtures: one, two"),
        ("three", "no mixtures under uns['three']; keys with mixtures: one, two"),
        ("other", "no mixtures under uns['other']; keys with mixtures: one, two"),
    ):
        with pytest.raises(DataError) as caught:
            cohortgmm.read_gmm(cohort, key)
        assert str(caught.value) == text
    make_cohort().write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"^no gmm_key given; keys with mixtures: none$"):
        cohortgmm.read_gmm(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"y\.h5ad: no such file"):
        cohortgmm.read_gmm(str(tmp_path / "y.h5ad"))


def test_mixtures_that_do_not_fit_the_patients():
    stored = ggml_layout()
    stored["weight_inference"]["distribution_ids"] = ["a", "b", "c"]
    with pytest.raises(DataError) as caught:
        cohortgmm.read_gmm(holder(gmm_X=stored))
    assert str(caught.value) == "uns['gmm_X'] has means of shape (2, 2, 2) for 3 patients"


def test_only_the_mixtures_of_a_file_are_read(tmp_path):
    cohort = fit(make_cohort())
    cohort.uns["other"] = {"model": 1}
    cohort.write_h5ad(tmp_path / "c.h5ad")
    with h5py.File(tmp_path / "c.h5ad", "r+") as file:
        file["uns"].create_group("strange").attrs["encoding-type"] = "from the future"
        file["uns"]["lost"] = h5py.ExternalLink("gone.h5", "x")
    models = cohortgmm.read_gmm(tmp_path / "c.h5ad", KEY)
    np.testing.assert_array_equal(models["P2"].means, cohortgmm.read_gmm(cohort, KEY)["P2"].means)
    for data in (cohort, tmp_path / "c.h5ad"):
        with pytest.raises(DataError, match=r"^uns\['other'\] holds no mixtures: "):
            cohortgmm.read_gmm(data, "other")
