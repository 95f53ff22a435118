"""``fit_gmm`` on AnnData and on mappings: what it writes, what it does not depend on, what it refuses."""

import numpy as np
import pandas as pd
import pytest
from projects import make_cohort
from scipy import sparse
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import cohortgmm
from cohortgmm.cohort.cells import choose_train_cells
from cohortgmm.errors import ConfigError, DataError, SingularCovarianceError

KEY = "gmm_X_pca"


def fit(cohort, **options):
    options = {"patient_col": "patient", "use_rep": "X_pca", "k_comps": [1, 2], "verbose": False} | options
    return cohortgmm.fit_gmm(cohort, **options)


def as_mapping(cohort):
    ids = cohort.obs["patient"].astype(str)
    return {patient: cohort.obsm["X_pca"][(ids == patient).to_numpy()] for patient in sorted(set(ids))}


def same(one, other):
    """Whether two mixtures are the same bit by bit."""
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("weights", "means", "covariances"))


# What is written


def test_anndata_is_changed_in_place():
    cohort = make_cohort()
    before = make_cohort()
    assert fit(cohort) is cohort
    assert set(cohort.uns) == {KEY}
    assert list(cohort.obs.columns) == [*before.obs.columns, f"{KEY}_comp"]
    assert set(cohort.obsm) == {"X_pca", f"{KEY}_resp"}
    np.testing.assert_array_equal(cohort.obsm["X_pca"], before.obsm["X_pca"])
    resp, components = cohort.obsm[f"{KEY}_resp"], cohort.obs[f"{KEY}_comp"].to_numpy()
    assert resp.shape == (180, 2)
    np.testing.assert_allclose(resp.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(components, resp.argmax(axis=1))
    # Even and odd cells of a patient are its two groups, 6 apart.
    for patient in range(3):
        own = components[60 * patient : 60 * (patient + 1)]
        assert len(set(own[::2])) == len(set(own[1::2])) == 1
        assert own[0] != own[1]


def test_the_key_can_be_chosen_and_is_replaced():
    cohort = make_cohort()
    fit(cohort, gmm_key="mine", k_comps=3)
    fit(cohort, gmm_key="mine", k_comps=2)
    assert set(cohort.uns) == {"mine"}
    assert cohort.uns["mine"]["n_components"] == 2
    assert cohort.obsm["mine_resp"].shape == (180, 2)
    assert list(cohort.obs.columns).count("mine_comp") == 1


def test_a_mapping_gives_mixtures_by_patient():
    cohort = make_cohort(("b", "a"))
    models = fit(as_mapping(cohort), patient_col=None, use_rep=None, k_comps=2)
    assert list(models) == ["a", "b"]
    stored = cohortgmm.read_gmm(fit(cohort, k_comps=2), KEY)
    for patient, model in models.items():
        assert model.n_components == 2
        assert model.means.shape == (2, 3)
        np.testing.assert_array_equal(np.sort(model.means[:, 0].round(-1)), [0, 10])
        assert same(model, stored[patient])


def test_ids_of_a_mapping_become_text():
    assert list(fit({7: np.eye(3).repeat(9, 0)}, k_comps=1)) == ["7"]


def test_auto_is_specific_in_anndata_and_shared_in_a_mapping():
    cohort = make_cohort()
    fit(cohort, component_sharing="auto")
    assert cohort.uns[KEY]["component_sharing"] == "sample_specific"
    mixtures = fit(as_mapping(cohort), component_sharing="auto")
    assert list(mixtures) == ["P1", "P2", "P3"]
    assert np.array_equal(mixtures["P1"].means, mixtures["P3"].means)
    explicit = fit(as_mapping(cohort), component_sharing="global")
    assert all(same(mixtures[patient], explicit[patient]) for patient in mixtures)


@pytest.mark.parametrize("refit", ["none", "full"])
def test_shared_components_have_the_mean_responsibilities_as_weights(refit):
    cohort = make_cohort()
    cohort = cohort[(cohort.obs["patient"] != "P2") | (np.arange(180) % 6 != 0)].copy()  # P2 lost a third of group 0
    fit(cohort, component_sharing="global", refit=refit)
    models = cohortgmm.read_gmm(cohort, KEY)
    ids = cohort.obs["patient"].to_numpy()
    for patient, model in models.items():
        x = cohort.obsm["X_pca"][ids == patient].astype(float)
        stored = cohort.uns[KEY]["model"]
        joint = np.stack(
            [
                multivariate_normal(m, s).logpdf(x) + np.log(w)
                for m, s, w in zip(stored["mu"], stored["var"], stored["pi"][0], strict=True)
            ],
            axis=1,
        )
        resp = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        np.testing.assert_allclose(model.weights, resp.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(cohort.obsm[f"{KEY}_resp"][ids == patient], resp, rtol=1e-6, atol=1e-12)
    assert sorted(models["P2"].weights) == pytest.approx([0.4, 0.6], abs=0.02)
    assert sorted(models["P1"].weights) == pytest.approx([0.5, 0.5], abs=0.02)
    models = cohortgmm.read_gmm(fit(cohort, component_sharing="global", k_comps=2), KEY)
    shared = fit(as_mapping(cohort), component_sharing="global", k_comps=2)
    assert all(np.allclose(shared[patient].weights, models[patient].weights, rtol=1e-12) for patient in models)


# What the result does not depend on


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_the_number_of_jobs_changes_no_bit(sharing):
    results = [fit(make_cohort(), component_sharing=sharing, n_jobs=n_jobs) for n_jobs in (1, 2, -1)]
    for other in results[1:]:
        for name in ("mu", "var", "pi"):
            np.testing.assert_array_equal(other.uns[KEY]["model"][name], results[0].uns[KEY]["model"][name])
        np.testing.assert_array_equal(other.obsm[f"{KEY}_resp"], results[0].obsm[f"{KEY}_resp"])
        np.testing.assert_array_equal(other.obs[f"{KEY}_comp"], results[0].obs[f"{KEY}_comp"])


def test_a_patient_does_not_depend_on_the_others():
    few, more = make_cohort(("P2", "P1")), make_cohort(("P0", "P1", "P10", "P2"))
    few, more = (cohortgmm.read_gmm(fit(cohort, k_comps=[2, 3])) for cohort in (few, more))
    assert list(few) == ["P1", "P2"]
    assert list(more) == ["P0", "P1", "P10", "P2"]
    assert all(same(few[patient], more[patient]) for patient in few)
    assert not same(more["P1"], more["P2"])


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_the_order_of_the_cells_changes_no_bit(sharing):
    cohort = make_cohort()
    order = np.random.default_rng(0).permutation(cohort.n_obs)
    moved = fit(cohort[order].copy(), component_sharing=sharing, refit="full")
    fit(cohort, component_sharing=sharing, refit="full")
    for name in ("mu", "var", "pi"):
        np.testing.assert_array_equal(moved.uns[KEY]["model"][name], cohort.uns[KEY]["model"][name])
    np.testing.assert_array_equal(moved.obsm[f"{KEY}_resp"], cohort.obsm[f"{KEY}_resp"][order])
    np.testing.assert_array_equal(moved.obs[f"{KEY}_comp"], cohort.obs[f"{KEY}_comp"].iloc[order])


def test_cells_without_names_keep_their_order():
    x = np.random.default_rng(0).normal(size=(40, 2))
    (model,) = fit({"P1": x}, k_comps=[1, 99]).values()
    mask = choose_train_cells([str(i) for i in range(40)], 0.5, seed=0, patient="P1")
    np.testing.assert_allclose(model.means[0], x[mask].mean(axis=0), rtol=1e-12)
    (other,) = fit({"P1": x[::-1]}, k_comps=[1, 99]).values()
    assert not np.allclose(other.means, model.means)


def test_the_seed_decides():
    runs = {seed: cohortgmm.read_gmm(fit(make_cohort(), random_state=seed)) for seed in (0, 1)}
    again = cohortgmm.read_gmm(fit(make_cohort(), random_state=np.int64(1)))
    assert all(same(again[patient], runs[1][patient]) for patient in again)
    assert not any(same(runs[0][patient], runs[1][patient]) for patient in again)


def test_sparse_x_is_as_dense_x():
    models = []
    for make in (np.asarray, sparse.csr_matrix, sparse.csc_matrix):
        cohort = make_cohort()
        values = np.where(np.abs(cohort.obsm["X_pca"]) < 0.5, 0, cohort.obsm["X_pca"])
        cohort = cohortgmm.fit_gmm(
            type(cohort)(make(values), obs=cohort.obs), patient_col="patient", k_comps=[1, 2], verbose=False
        )
        assert set(cohort.uns) == {"gmm_X"}
        assert "use_rep" not in cohort.uns["gmm_X"]
        assert cohort.obsm["gmm_X_resp"].shape == (180, 2)
        models.append(cohortgmm.read_gmm(cohort))
    for other in models[1:]:
        assert all(same(other[patient], models[0][patient]) for patient in models[0])


def test_sparse_arrays_of_a_mapping_are_as_dense_ones():
    dense = as_mapping(make_cohort())
    models = [fit({p: make(x) for p, x in dense.items()}, k_comps=2) for make in (np.asarray, sparse.csr_matrix)]
    assert all(same(models[0][patient], models[1][patient]) for patient in dense)


# Which cells are fitted


def moments(x):
    return x.mean(axis=0), np.cov(x.T, bias=True)


@pytest.mark.parametrize(
    ("options", "on_all"),
    [
        ({"k_comps": 1}, True),
        ({"k_comps": [1]}, True),
        ({"k_comps": 1, "train_size": 0.3, "refit": "full"}, True),
        ({"k_comps": [1, 40]}, False),  # 40 is left out: 30 training cells
        ({"k_comps": [1, 40], "refit": "full"}, True),
    ],
)
def test_which_cells_the_mixture_is_of(options, on_all):
    x = make_cohort(["P1"]).obsm["X_pca"].astype(float)
    mask = choose_train_cells([str(i) for i in range(60)], 0.5, seed=0, patient="P1")
    assert mask.sum() == 30
    (model,) = fit({"P1": x}, **options).values()
    mean, covariance = moments(x if on_all else x[mask])
    np.testing.assert_allclose(model.means[0], mean, rtol=1e-10)
    np.testing.assert_allclose(model.covariances[0], covariance, rtol=1e-8)


def test_fitted_cells_are_recorded():
    for options, n_fit, scope in (
        ({}, 30, "selection_cells"),
        ({"refit": "full"}, 60, "all_cells"),
        ({"k_comps": 2}, 60, "all_cells"),
        ({"train_size": 0.8}, 48, "selection_cells"),
    ):
        uns = fit(make_cohort(), **options).uns[KEY]
        assert uns["diagnostics"]["n_fit"].tolist() == [n_fit] * 3
        assert uns["backend_metadata"]["fit_indices_count"] == 3 * n_fit
        assert uns["weight_inference"]["weights_fit_scope"] == scope


# What is said


@pytest.mark.usefixtures("stops_early")
def test_verbose_says_a_line_per_patient_on_stderr(capsys):
    fit(make_cohort(("b", "a")), verbose=True, k_selection_metric="bic")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.rsplit(", ", 1)[0] for line in lines] == [
        "[fit_gmm] a: k=2 by bic of 2 candidates",
        "[fit_gmm] b: k=2 by bic of 2 candidates",
    ]
    fit(make_cohort(["a"]), verbose=True, k_comps=2, max_iter=1, tol=0)
    assert capsys.readouterr().err == "[fit_gmm] a: k=2 by aic of 1 candidates, not converged\n"


def test_quiet_says_nothing(capfd):
    fit(make_cohort())
    fit(as_mapping(make_cohort()))
    assert capfd.readouterr() == ("", "")


# What is refused


def test_wrong_arguments_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        fit(make_cohort(), k_comps=0, tol=-1, covariance_type="tied")
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()] == [
        "fit_gmm",
        "k_comps",
        "covariance_type",
        "tol",
    ]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"patient_col": None}, ConfigError, "patient_col is required with AnnData"),
        (
            {"patient_col": "patients"},
            DataError,
            "patient_col: obs column 'patients' is not in the data; did you mean 'patient'? "
            "known: cell_type, condition, patient",
        ),
        (
            {"use_rep": "X_pc"},
            DataError,
            "use_rep: obsm key 'X_pc' is not in the data; did you mean 'X_pca'? known: X_pca",
        ),
        ({"n_jobs": 0}, ConfigError, "n_jobs must be -1 or an integer of at least 1, got 0"),
        ({"n_jobs": 1.5}, ConfigError, "n_jobs must be -1 or an integer of at least 1, got 1.5"),
        ({"random_state": -1}, ConfigError, "random_state must be an integer of at least 0, got -1"),
        ({"random_state": None}, ConfigError, "random_state must be an integer of at least 0, got None"),
        ({"gmm_key": "a/b"}, ConfigError, "fit_gmm: gmm_key: string should match pattern '^[^/]+$', got 'a/b'"),
    ],
)
def test_arguments_that_cannot_be_used(options, error, text):
    cohort = make_cohort()
    with pytest.raises(error) as caught:
        fit(cohort, **options)
    assert str(caught.value) == text
    assert not cohort.uns
    assert set(cohort.obsm) == {"X_pca"}


X = np.random.default_rng(0).normal(size=(30, 2))

GAP = np.where(np.arange(60).reshape(30, 2) == 7, np.nan, X)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "the mapping of patients is empty"),
        ({"a": X, "b": X[:, :1]}, "the patients' arrays differ in their number of features: {'a': 2, 'b': 1}"),
        ({"a": X, "b": X[:0]}, "the array of patient 'b' has no cells"),
        ({1: X, "1": X + 5}, "two patients of the mapping have the same text: '1'; make them all text"),
        ({"a": X[0]}, "the array of patient 'a' must be a numeric matrix (cells, features), got float64 of shape (2,)"),
        (
            {"a": X.astype(str)},
            "the array of patient 'a' must hold real numbers, got <U32",
        ),
        (
            {"b": X, "a": GAP},
            "the data has 1 NaN or infinite values in 1 cells, the first in patient 'a': "
            "remove these cells or recompute the embedding, or set missing if NaN are missing features",
        ),
        ([X], "data must be AnnData or a mapping of patient to array, got list"),
        (X, "data must be AnnData or a mapping of patient to array, got ndarray"),
    ],
)
def test_data_that_cannot_be_used(data, text):
    with pytest.raises(DataError) as caught:
        cohortgmm.fit_gmm(data, k_comps=1, verbose=False)
    assert str(caught.value) == text


def test_a_cohort_with_gaps_or_repeated_names_is_refused():
    cohort = make_cohort()
    cohort.obsm["X_pca"][[61, 130], 1] = np.nan
    with pytest.raises(DataError, match=r"obsm\['X_pca'\] has 2 NaN .* in 2 cells, the first in patient 'P2'"):
        fit(cohort)
    cohort = make_cohort()
    cohort.obs.index = pd.Index(["c0", *[f"c{i}" for i in range(179)]])
    with pytest.raises(DataError, match=r"1 cell names occur more than once, the first is 'c0'"):
        fit(cohort)


def test_a_patient_too_small_is_named():
    data = {"large": X, "small": X[:3]}
    with pytest.raises(DataError) as caught:
        cohortgmm.fit_gmm(data, component_sharing="sample_specific", k_comps=[2, 3], verbose=False)
    assert str(caught.value).startswith(
        "1 of 2 patients have too few cells: 'small' (2 training cells, the smallest k (2) needs 4)."
    )


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_fit_that_fails_names_patient_and_k(n_jobs):
    data = {"P1": X, "P2": np.ones_like(X)}
    with pytest.raises(SingularCovarianceError) as caught:
        fit(data, component_sharing="sample_specific", singularity_handling="strict", k_comps=[1, 2], n_jobs=n_jobs)
    assert str(caught.value).startswith("patient 'P2', k=1: component 0 of 1 has a singular covariance")
    assert caught.value.component == 0


def test_the_mixture_of_all_is_called_all_patients(capsys):
    fit(as_mapping(make_cohort()), component_sharing="global", verbose=True)
    assert capsys.readouterr().err.startswith("[fit_gmm] all patients: k=2 by aic of 2 candidates, ")
    data = {"P1": np.ones_like(X), "P2": np.ones_like(X)}
    with pytest.raises(SingularCovarianceError, match=r"^all patients, k=1: component 0 of 1"):
        fit(data, component_sharing="global", singularity_handling="strict")
    fit({"_cohort": X}, component_sharing="sample_specific", k_comps=1, verbose=True)
    assert capsys.readouterr().err.startswith("[fit_gmm] _cohort: k=1")


def test_the_default_range_follows_the_size_of_the_patient():
    uns = fit(make_cohort(n_cells=100), k_comps=None).uns[KEY]  # 50 training cells carry up to 5
    assert uns["selection"]["k_comps"].tolist() == list(range(1, 11))
    assert uns["selection"]["scores"]["k"].tolist() == [1, 2, 3, 4, 5]


def test_small_patients_are_left_out_where_asked():
    cohort = make_cohort()
    cohort = cohort[(cohort.obs["patient"] != "P2") | (np.arange(cohort.n_obs) % 60 < 5)].copy()
    with pytest.raises(DataError, match=r"1 of 3 patients have too few cells: 'P2' \(5 cells, min_cells is 20\)"):
        fit(cohort, min_cells=20)
    fit(cohort, min_cells=20, on_small_patient="drop")
    assert list(cohortgmm.read_gmm(cohort)) == ["P1", "P3"]
    assert (cohort.obs[f"{KEY}_comp"][cohort.obs["patient"] == "P2"] == -1).all()
    with pytest.raises(ConfigError, match="on_small_patient must be 'error' or 'drop', got 'skip'"):
        fit(cohort, on_small_patient="skip")
