"""Names of rows, columns, keys and patients in a notebook: what they decide, and what of a user's they never replace."""

import numpy as np
import pandas as pd
import pytest
from projects import make_cohort

import cohortgmm
from cohortgmm.config import read_config
from cohortgmm.errors import CohortgmmError, ConfigError, DataError

OPTIONS = {"use_rep": "X_pca", "k_comps": [1, 2], "verbose": False}
COLUMNS = ["PC1", "PC2", "PC3"]


def fit(cohort, **options):
    return cohortgmm.fit_gmm(cohort, **({"patient_col": "patient"} | OPTIONS | options))


def fit_mapping(tables, **options):
    given = {"component_sharing": "sample_specific", "k_comps": [1, 2], "verbose": False} | options
    return cohortgmm.fit_gmm(tables, **given)


def refusal(function, *arguments, **options):
    with pytest.raises(CohortgmmError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cohort():
    return make_cohort()


@pytest.fixture
def tables(cohort):
    table = pd.DataFrame(cohort.obsm["X_pca"], index=cohort.obs_names, columns=COLUMNS)
    return {patient: table[(cohort.obs["patient"] == patient).to_numpy()] for patient in ("P1", "P2", "P3")}


def test_tables_with_named_rows_are_anndata(cohort, tables):
    """Their order decides nothing, and the mixtures are those of an AnnData with the same cells."""
    expected = cohortgmm.read_gmm(fit(cohort))
    rng = np.random.default_rng(0)
    mixed = {patient: table.iloc[rng.permutation(len(table))] for patient, table in tables.items()}
    mixed["P3"] = tables["P3"].to_numpy()  # without names: nobody else's mixture changes
    models = fit_mapping(mixed)
    for patient in ("P1", "P2"):
        np.testing.assert_array_equal(models[patient].means, expected[patient].means)
    np.testing.assert_array_equal(models["P3"].means, fit_mapping({"P3": tables["P3"].to_numpy()})["P3"].means)
    numbered = tables["P1"].reset_index(drop=True)
    np.testing.assert_array_equal(
        fit_mapping({"P1": numbered})["P1"].means, fit_mapping({"P1": numbered.to_numpy()})["P1"].means
    )
    twice = tables["P1"].set_axis(["a"] * len(tables["P1"]))
    assert "the table of patient 'P1': " in refusal(fit_mapping, {"P1": twice})


def test_noise_in_another_order_is_refused(cohort, tables):
    noise = {patient: table.abs() + 0.1 for patient, table in tables.items()}
    by_position = {patient: table.reset_index(drop=True) for patient, table in noise.items()}
    models, same = fit_mapping(tables, noise=noise), fit_mapping(tables, noise=by_position)
    np.testing.assert_array_equal(models["P1"].means, same["P1"].means)
    for other in (lambda table: table.iloc[::-1], lambda table: table[COLUMNS[::-1]]):
        moved = {patient: other(table) for patient, table in noise.items()}
        assert "noise of patient 'P1': its " in refusal(fit_mapping, tables, noise=moved)
        x, values = tables["P1"], other(noise["P1"])
        for function in (cohortgmm.fit_mixture, cohortgmm.cross_validate):
            assert refusal(function, x, 1, noise=values).startswith("noise: its ")
        assert refusal(models["P1"].log_prob, x, values).startswith("noise: its ")
        assert refusal(models["P1"].responsibilities, x, values).startswith("noise: its ")
    whole = pd.DataFrame(np.abs(cohort.obsm["X_pca"]) + 0.1, index=cohort.obs_names, columns=COLUMNS)
    assert "the cells of obs in the same order" in refusal(fit, cohort, noise=whole.iloc[::-1])
    cohort.obsm["noise"] = whole[COLUMNS[::-1]]
    assert "noise: obsm['noise']: its columns are not the features" in refusal(fit, cohort, noise="noise")
    assert "its rows are not the features" in refusal(fit, cohort, noise=pd.Series([1.0, 2, 3], COLUMNS[::-1]))
    cohort.obsm["noise"] = whole.add_suffix("_variance")[[f"{name}_variance" for name in COLUMNS]]
    fit(cohort, noise="noise")


@pytest.mark.parametrize("key", [None, float("nan"), pd.NaT, pd.NA])
def test_a_key_that_names_no_patient(key, tables):
    assert "names no patient" in refusal(fit_mapping, {key: tables["P1"]})


def test_names_that_read_the_same_as_text(cohort):
    cohort.obs.index = pd.Index([1, "1", *map(str, range(2, len(cohort)))], dtype=object)
    assert "1 cell names occur more than once, the first is '1'" in refusal(fit, cohort)
    cohort.obs.index = pd.Index([np.nan, *range(1, len(cohort))])
    assert "1 cells have no name" in refusal(fit, cohort)


def test_what_is_not_ours_is_not_replaced(cohort):
    cohort.obs["day"] = "a"
    cohort.obs["gmm_X_pca_patient"] = "mine"
    assert "has obs['gmm_X_pca_patient'] without mixtures" in refusal(fit, cohort, patient_col=["patient", "day"])
    fit(cohort)  # which writes no such column
    assert set(cohort.obs["gmm_X_pca_patient"]) == {"mine"}


def test_a_result_does_not_overwrite_what_it_is_made_from(cohort):
    fit(cohort, k_comps=2)
    message = "the result overwrites the column 'gmm_X_pca_comp' of patient_col: give another gmm_key"
    assert refusal(fit, cohort, patient_col="gmm_X_pca_comp") == message
    message = "the result overwrites obsm['gmm_X_pca_resp'] of {}: give another gmm_key"
    assert refusal(fit, cohort, use_rep="gmm_X_pca_resp", gmm_key="gmm_X_pca") == message.format("use_rep")
    cohort.obsm["two"] = cohort.obsm["X_pca"][:, :2]
    given = {"use_rep": "two", "gmm_key": "gmm_X_pca"}
    for noise in ("gmm_X_pca_resp", {"obsm": "gmm_X_pca_resp"}):
        assert refusal(fit, cohort, noise=noise, **given) == message.format("noise")


@pytest.mark.parametrize("key", ["patient_col", "label_col", "celltype_col"])
def test_a_run_does_not_overwrite_what_it_is_made_from(key):
    given = {"input": "c.h5ad", "patient_col": "patient", "use_rep": "X_pca", "preprocess": {"enabled": False}}
    with pytest.raises(ConfigError, match=f"{key}: the result overwrites the column 'gmm_X_pca_comp'"):
        read_config(given | {key: "gmm_X_pca_comp"})


def test_patients_that_are_left_out_may_have_any_values(cohort):
    cohort.obs["patient"] = cohort.obs["patient"].astype(str)
    cohort.obs.iloc[0, cohort.obs.columns.get_loc("patient")] = "few"
    cohort.obsm["X_pca"][0] = np.inf
    fit(cohort, on_small_patient="drop")
    assert cohort.obs["gmm_X_pca_comp"].iloc[0] == -1


@pytest.mark.parametrize(
    "options",
    [
        {"patient_col": {"patient"}},
        {"patient_col": [["patient"]]},
        {"patient_col": ["patient", ["day"]]},
        {"use_rep": ["X_pca"]},
        {"noise": {"obsm": ["X_pca"]}},
        {"on_small_patient": np.array(["drop", "error"])},
        {"init": np.zeros((2, 3))},
        {"gmm_key": "a\0b"},
    ],
    ids=str,
)
def test_arguments_of_another_type(options, cohort):
    refusal(fit, cohort, **options)


def test_columns_in_an_array(cohort):
    for columns in (np.array(["patient"]), pd.Index(["patient"]), pd.Series(["patient"])):
        fit(cohort, patient_col=columns, k_comps=1)
    cohort.obs.index = pd.MultiIndex.from_arrays([range(len(cohort)), ["a"] * len(cohort)])
    assert "a MultiIndex" in refusal(fit, cohort)


@pytest.mark.parametrize("data", [pd.DataFrame({"a": [1]}), pd.Series([1]), None, {"a": 1}, b"x"], ids=str)
def test_data_of_another_type(data):
    assert "data must be AnnData" in refusal(cohortgmm.read_gmm, data)
    if not isinstance(data, dict):
        assert "data must be AnnData" in refusal(cohortgmm.fit_gmm, data, patient_col="a")


def test_ids_of_stored_mixtures(cohort):
    fit(cohort, k_comps=1)
    ids = cohort.uns["gmm_X_pca"]["weight_inference"]
    expected = list(cohortgmm.read_gmm(cohort))
    ids["distribution_ids"] = np.array([name.encode() for name in expected])
    assert list(cohortgmm.read_gmm(cohort)) == expected
    ids["distribution_ids"] = np.array([expected[0]] * len(expected))
    assert "names the patient 'P1' more than once" in refusal(cohortgmm.read_gmm, cohort)
    ids["distribution_ids"] = "P1"
    with pytest.raises(DataError, match="distribution_ids must be a list"):
        cohortgmm.read_gmm(cohort)


def test_components_at_the_floor_give_the_bits_of_the_pipeline(cohort):
    """Which reads every mixture from its file; EM keeps other factors of covariances that it has raised to the floor."""
    cohort.obs["unit"] = [f"u{i % 12}" for i in range(len(cohort))]
    cohort.obs_names = [f"c{i:03d}" for i in range(len(cohort))]
    fit(cohort, patient_col="unit", k_comps=[3, 4], refit="none", eps=0.5)
    assert cohort.uns["gmm_X_pca"]["diagnostics"]["n_floored"].any()
    for patient, model in cohortgmm.read_gmm(cohort).items():
        own = (cohort.obs["unit"] == patient).to_numpy()
        resp = cohort.obsm["gmm_X_pca_resp"][own][:, : model.n_components]
        read = cohortgmm.GaussianMixture(model.weights, model.means, model.covariances)
        np.testing.assert_array_equal(resp, read.responsibilities(cohort.obsm["X_pca"][own]))
