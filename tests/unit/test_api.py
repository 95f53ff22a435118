"""``fit_gmm`` on AnnData and on mappings: what it writes, what it does not depend on, what it refuses."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from corrected import ALL, BOX, make_corrected
from projects import make_cohort
from scipy import sparse
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import cohortgmm
from cohortgmm.cohort.cells import choose_train_cells
from cohortgmm.errors import CohortgmmError, ConfigError, DataError, SingularCovarianceError

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
        ({1: X, "1": X + 5}, "two patients of the mapping read the same as text: '1'; make them all text"),
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


# Noise, gaps, selection, background

FEW = {"max_iter": 15, "tol": 1e-4, "n_init": 1, "k_comps": 2}


def gate(x):
    return (x[:, 0] >= -1).astype(float)


def corrected_mapping(cohort):
    """Cells and their noise by patient."""
    ids = cohort.obs["patient"].to_numpy()
    return ({p: cohort.obsm[key][ids == p] for p in np.unique(ids)} for key in ("X_pca", "X_pca_var"))


def assert_same_results(one, other, key=KEY):
    ours, theirs = one.uns[key], other.uns[key]
    for name in ("mu", "var", "pi"):
        np.testing.assert_array_equal(ours["model"][name], theirs["model"][name])
    assert ("background" in ours) == ("background" in theirs)
    if "background" in ours:
        np.testing.assert_array_equal(ours["background"]["amp"], theirs["background"]["amp"])
        np.testing.assert_array_equal(one.obs[f"{key}_background"], other.obs[f"{key}_background"])
    np.testing.assert_array_equal(ours["diagnostics"]["n_unobserved"], theirs["diagnostics"]["n_unobserved"])
    np.testing.assert_array_equal(one.obsm[f"{key}_resp"], other.obsm[f"{key}_resp"])


def test_noise_may_be_a_key_or_an_array():
    results = []
    for noise in ("X_pca_var", {"obsm": "X_pca_var"}, make_corrected().obsm["X_pca_var"]):
        results.append(fit(make_corrected(), noise=noise, missing=True, **FEW))
    for other in results[1:]:
        assert_same_results(results[0], other)
    assert results[0].uns[KEY]["noise"] == results[1].uns[KEY]["noise"] == {"obsm": "X_pca_var"}
    assert results[2].uns[KEY]["noise"] == {"obsm": "an array"}
    plain = fit(make_corrected(), missing=True, **FEW)
    # With the noise taken off, components are narrower.
    traces = [np.trace(result.uns[KEY]["model"]["var"], axis1=2, axis2=3) for result in (results[0], plain)]
    assert (traces[0].mean(axis=1) < traces[1].mean(axis=1) - 0.2).all()


@pytest.mark.parametrize(
    "noise", [np.array([0.3, 0.6]), np.array([[0.3, 0.1], [0.1, 0.6]])], ids=["variances", "covariance"]
)
@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_noise_may_be_one_for_all(noise, sharing):
    options = {"missing": True, "component_sharing": sharing, **FEW}
    cohort = make_corrected()
    everyone = np.tile(noise, (len(cohort), *(1,) * noise.ndim))
    whole = cohortgmm.read_gmm(fit(make_corrected(), noise=everyone, **options))
    models = {"anndata": cohortgmm.read_gmm(fit(cohort, noise=noise, **options))}
    arrays, _ = corrected_mapping(make_corrected())
    models["mapping"] = fit(arrays, noise=noise, **options)
    models["by patient"] = fit(arrays, noise=dict.fromkeys(arrays, noise), **options)
    full = {"P1": noise, "P2": np.tile(noise, (80, *(1,) * noise.ndim)), "P3": noise}
    models["some in full"] = fit(arrays, noise=full, **options)
    for given in models.values():
        for patient, model in given.items():
            np.testing.assert_allclose(model.means, whole[patient].means, rtol=1e-6)
            np.testing.assert_allclose(model.covariances, whole[patient].covariances, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(model.weights, whole[patient].weights, rtol=1e-6)
    without = fit(arrays, **options)
    assert not np.allclose(without["P1"].covariances, whole["P1"].covariances, rtol=0.05)


def test_noise_for_all_takes_no_memory_for_the_cells():
    d, n = 60, 3000
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    tracemalloc.start()
    fit(
        {"a": x[:1500], "b": x[1500:]},
        noise=0.1 * np.eye(d),
        k_comps=1,
        component_sharing="sample_specific",
        max_iter=2,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * n * d * d * 8


def test_noise_may_be_a_layer_or_covariances():
    cohort = make_corrected()
    x, noise = np.nan_to_num(cohort.obsm["X_pca"]), cohort.obsm["X_pca_var"]
    whole = noise[:, :, None] * np.eye(2, dtype=np.float32)
    forms = {"dense": noise, "csr": sparse.csr_matrix(noise), "csc": sparse.csc_matrix(noise)}
    models = []
    for make in (np.asarray, sparse.csr_matrix):
        own = type(cohort)(make(x), obs=cohort.obs, layers=dict(forms))
        for layer in forms:
            cohortgmm.fit_gmm(own, patient_col="patient", noise={"layer": layer}, verbose=False, **FEW)
            models.append(cohortgmm.read_gmm(own))
            assert own.uns["gmm_X"]["noise"] == {"layer": layer}
    for other in models[1:]:
        assert all(same(models[0][patient], other[patient]) for patient in other)
    for covariances in (whole, whole.reshape(-1, 4)):
        cohortgmm.fit_gmm(own, patient_col="patient", noise=covariances, verbose=False, **FEW)
        for patient, model in cohortgmm.read_gmm(own).items():
            np.testing.assert_allclose(model.means, models[0][patient].means, rtol=1e-7)
            np.testing.assert_allclose(model.covariances, models[0][patient].covariances, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_a_mapping_is_corrected_like_anndata(sharing):
    cohort = make_corrected()
    arrays, noise = corrected_mapping(cohort)
    options = ALL | {"component_sharing": sharing, "k_comps": 2}
    stored = cohortgmm.read_gmm(fit(cohort, **options))
    corrections = {
        "noise": noise,
        "completeness": gate,
        "background": cohortgmm.Background([BOX[0]] * 2, [BOX[1]] * 2, 0.05),
    }
    models = fit(arrays, **options | corrections)
    sparse_noise = {patient: sparse.csr_matrix(values) for patient, values in reversed(noise.items())}
    again = fit(arrays, **options | corrections | {"noise": sparse_noise})
    for patient, model in models.items():
        assert same(model, again[patient])
        np.testing.assert_array_equal(model.means, stored[patient].means)
        np.testing.assert_array_equal(model.covariances, stored[patient].covariances)
        np.testing.assert_array_equal(model.background.lower, stored[patient].background.lower)
        assert model.weights.sum() + model.background.amp == pytest.approx(1, abs=1e-12)
        if sharing == "sample_specific":
            np.testing.assert_allclose(model.weights, stored[patient].weights, rtol=1e-12)
            assert model.background.amp == stored[patient].background.amp
        else:  # a share of the components there, of all cells here
            np.testing.assert_allclose(model.weights, stored[patient].weights, rtol=1e-12)
            assert model.background.amp == pytest.approx(stored[patient].background.amp, abs=1e-12)
    assert len({model.background.amp for model in models.values()}) == 3


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_the_number_of_jobs_changes_no_bit_of_a_correction(sharing):
    results = [fit(make_corrected(), component_sharing=sharing, n_jobs=n, **ALL | FEW) for n in (1, 2, -1)]
    for other in results[1:]:
        assert_same_results(results[0], other)


def test_a_corrected_patient_does_not_depend_on_the_others():
    few, more = (fit(make_corrected(names), **ALL | FEW) for names in (("P2",), ("P0", "P2", "P1")))
    few, more = cohortgmm.read_gmm(few), cohortgmm.read_gmm(more)
    assert same(few["P2"], more["P2"])
    assert few["P2"].background.amp == more["P2"].background.amp
    assert not same(more["P1"], more["P2"])


#: Two patients of the same two components, and their shares of debris.
COMPONENTS = cohortgmm.GaussianMixture([0.5, 0.5], [[0.0, 0.0], [3.5, 1.0]], [np.eye(2), 0.7 * np.eye(2)])
TRUE_WEIGHTS = {"A": (0.8, 0.2), "B": (0.2, 0.8)}
TRUE_DEBRIS = {"A": 0.05, "B": 0.25}


def hidden_patients(corrections, n=1500):
    """n cells of each patient, and the arguments that say what was done to them."""
    cells, options = {}, {}
    box = cohortgmm.Background([-10.0, -10.0], [14.0, 12.0], 0.1)
    if "completeness" in corrections:
        options["completeness"] = lambda x: (x[:, 0] > 1.0).astype(float)
    if "background" in corrections:
        options["background"] = box
    if "noise" in corrections:
        options["noise"] = {patient: np.full((n, 2), 3.0) for patient in TRUE_WEIGHTS}
    for i, (patient, weights) in enumerate(TRUE_WEIGHTS.items()):
        rng = np.random.default_rng(i)
        x = cohortgmm.GaussianMixture(weights, COMPONENTS.means, COMPONENTS.covariances).sample(20 * n, rng)[0]
        if "background" in corrections:
            debris = rng.random(len(x)) < TRUE_DEBRIS[patient]
            x[debris] = box.sample(debris.sum(), rng)
        if "noise" in corrections:
            x += np.sqrt(3.0) * rng.normal(size=x.shape)
        if "completeness" in corrections:
            x = x[x[:, 0] > 1.0]
        cells[patient] = x[:n]
        if "missing" in corrections:
            options["missing"] = True
            cells[patient][rng.random((n, 2)) < [0.6, 0.3]] = np.nan
    return cells, options


@pytest.mark.parametrize(
    "corrections",
    [("completeness",), ("noise",), ("missing",), ("background",), ("noise", "completeness", "background")],
    ids="+".join,
)
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_patients_of_shared_components_have_the_weights_that_their_cells_were_drawn_with(corrections, covariance_type):
    cells, options = hidden_patients(corrections)
    known = cohortgmm.GaussianMixture(
        COMPONENTS.weights,
        COMPONENTS.means,
        COMPONENTS.covariances if covariance_type == "full" else COMPONENTS.covariances.diagonal(axis1=1, axis2=2),
    )
    options |= {"covariance_type": covariance_type, "component_sharing": "global", "k_comps": 2, "reference": known}
    models = fit(cells, **options, frozen=None if "noise" in corrections else {"mean": [0]})
    for patient, truth in TRUE_WEIGHTS.items():
        np.testing.assert_allclose(models[patient].without_background().weights, truth, atol=0.05)
        if "background" in corrections:
            assert models[patient].background.amp == pytest.approx(TRUE_DEBRIS[patient], abs=0.05)


def test_a_patient_of_shared_components_may_have_few_cells_or_lack_features():
    cells, options = hidden_patients(("noise", "completeness", "background"), n=400)
    lacking = cells["A"].copy()
    lacking[:, 1] = np.nan
    more = {"lacking": lacking, "few": cells["B"][:4]}
    options["noise"] |= {patient: np.full(x.shape, 3.0) for patient, x in more.items()}
    options["noise"]["lacking"][:, 1] = np.inf  # so that no cell of its own says what noise unseen cells have
    options |= {"missing": True, "component_sharing": "global", "k_comps": 2, "reference": COMPONENTS}
    models = fit(cells | more, **options)
    np.testing.assert_allclose(models["lacking"].component_weights, models["A"].component_weights, atol=0.1)
    for model in models.values():
        assert model.weights.sum() + model.background.amp == pytest.approx(1, abs=1e-9)


def test_a_weight_that_cannot_be_fitted_names_the_patient():
    def picky(x):
        if len(x) == 4:
            raise ValueError("four places")
        return np.ones(len(x))

    cells = {"a": np.random.default_rng(0).normal(size=(30, 2)), "b": np.zeros((4, 2))}
    with pytest.raises(DataError, match=r"^all patients, k=1: weights of patient 'b': .*failed on 4 places"):
        fit(cells, completeness=picky, component_sharing="global", k_comps=1)


def test_gates_and_their_function_are_the_same():
    by_gate = fit(make_corrected(), missing=True, completeness=ALL["completeness"], **FEW)
    by_function = fit(make_corrected(), missing=True, completeness=gate, **FEW)
    assert_same_results(by_gate, by_function)
    assert (by_gate.uns[KEY]["diagnostics"]["completeness"] < 0.99).all()


def test_names_of_genes_in_gates():
    cohort = make_corrected()
    cohort = type(cohort)(np.nan_to_num(cohort.obsm["X_pca"]), obs=cohort.obs)
    cohort.var_names = ["CD3", "CD4"]
    own = {"patient_col": "patient", "verbose": False, **FEW}
    cohortgmm.fit_gmm(cohort, completeness={"gates": [{"inside": {"CD3": [-1, None]}}]}, **own)
    assert (cohort.uns["gmm_X"]["diagnostics"]["completeness"] < 0.99).all()
    with pytest.raises(ConfigError) as caught:
        cohortgmm.fit_gmm(cohort, completeness={"gates": [{"inside": {"PC1": [-1, None]}}]}, **own)
    assert str(caught.value) == "patient 'P1', k=2: gmm.completeness: no feature 'PC1'; known: CD3, CD4"


def test_the_box_is_the_patients_own_unless_it_is_given():
    cohort = fit(make_corrected(), missing=True, background={}, **FEW)
    background = cohort.uns[KEY]["background"]
    arrays, _ = corrected_mapping(cohort)
    for i, x in enumerate(arrays.values()):
        np.testing.assert_array_equal(background["lower"][i], np.nanmin(x, axis=0).astype(float))
        np.testing.assert_array_equal(background["upper"][i], np.nanmax(x, axis=0).astype(float))
    shared = fit(make_corrected(), missing=True, background={}, component_sharing="global", **FEW).uns[KEY][
        "background"
    ]
    np.testing.assert_array_equal(shared["lower"], [background["lower"].min(axis=0)])
    np.testing.assert_array_equal(shared["upper"], [background["upper"].max(axis=0)])
    given = fit(make_corrected(), missing=True, background={"lower": -9, "upper": [19, 29]}, **FEW).uns[KEY][
        "background"
    ]
    np.testing.assert_array_equal(given["upper"], [[19, 29]] * 3)


def test_a_fit_without_a_background_takes_its_column_away():
    cohort = fit(make_corrected(), missing=True, background={}, **FEW)
    assert list(cohort.obs.columns)[-2:] == [f"{KEY}_comp", f"{KEY}_background"]
    fit(cohort, missing=True, background={}, gmm_key="other", **FEW)
    fit(cohort, missing=True, **FEW)
    assert f"{KEY}_background" not in cohort.obs
    assert "other_background" in cohort.obs
    assert "background" not in cohort.uns[KEY]


def test_cells_without_features_are_assigned_like_the_mixture():
    cohort = make_corrected()
    cohort.obsm["X_pca"][7] = np.nan
    fit(cohort, missing=True, noise="X_pca_var", background=ALL["background"], **FEW)
    assert cohort.uns[KEY]["diagnostics"]["n_empty"].tolist() == [1, 0, 0]
    model = cohortgmm.read_gmm(cohort)["P1"]
    np.testing.assert_allclose(cohort.obsm[f"{KEY}_resp"][7], model.weights, rtol=1e-12)
    assert cohort.obs[f"{KEY}_background"].iloc[7] == pytest.approx(model.background.amp, rel=1e-12)


@pytest.mark.parametrize("as_file", [False, True], ids=["mixture", "file"])
def test_patients_are_mapped_onto_the_reference(tmp_path, as_file):
    atlas = cohortgmm.read_gmm(fit(make_cohort(["atlas"]), k_comps=2))["atlas"]
    atlas.save(tmp_path / "atlas.npz")
    cohort = fit(make_cohort(), reference=tmp_path / "atlas.npz" if as_file else atlas, k_comps=None)
    uns = cohort.uns[KEY]
    for i in range(3):
        np.testing.assert_array_equal(uns["model"]["mu"][i], atlas.means)
        np.testing.assert_array_equal(uns["model"]["var"][i], atlas.covariances)
    assert (uns["n_components"], "selection" in uns) == (2, False)
    assert uns["diagnostics"]["n_fit"].tolist() == [60] * 3  # with k given by the reference all cells are fitted
    np.testing.assert_allclose(uns["model"]["pi"], 0.5, atol=0.01)
    assert uns["fit_params"]["max_iter"] == 2000
    for other in ([2], 2):
        assert_same_results(cohort, fit(make_cohort(), reference=atlas, k_comps=other))
    free = fit(make_cohort(), reference=atlas, k_comps=None, frozen={"mean": [0]}).uns[KEY]["model"]
    for i in range(3):
        np.testing.assert_array_equal(free["mu"][i, 0], atlas.means[0])
        assert not np.array_equal(free["mu"][i, 1], atlas.means[1])
        assert not np.array_equal(free["var"][i, 0], atlas.covariances[0])
    shared = fit(make_cohort(), reference=atlas, k_comps=None, component_sharing="global")
    np.testing.assert_array_equal(shared.uns[KEY]["model"]["mu"], atlas.means)


TWO = cohortgmm.GaussianMixture([0.5, 0.5], [[0.0] * 3, [6.0] * 3], [np.eye(3)] * 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reference": TWO, "k_comps": 3}, "fit_gmm: gmm.k_comps: the reference has 2 components: leave k_comps out"),
        (
            {"reference": TWO, "k_comps": [1, 2]},
            "fit_gmm: gmm.k_comps: the reference has 2 components: leave k_comps out",
        ),
        (
            {"reference": TWO, "k_comps": None, "covariance_type": "diag"},
            "fit_gmm: gmm.covariance_type is diag, that of the reference full",
        ),
        (
            {"reference": TWO, "k_comps": None, "split_merge": 1},
            "fit_gmm: split_merge moves components, which reference is to keep",
        ),
        ({"frozen": {"mean": "all"}}, "fit_gmm: frozen is about the mixture in reference, which is not given"),
        ({"init": "none"}, "fit_gmm: init is about the mixture in reference, which is not given"),
        ({"noise_at": gate}, "noise_at is about cells with noise, which is not given"),
        ({"noise": "v", "noise_at": gate}, "fit_gmm: noise.at is for completeness, which is not given"),
        ({"noise": {}}, "fit_gmm: noise: needs one of obsm and layer"),
        ({"noise": {"obms": "v"}}, "fit_gmm: noise.obms: unknown key; did you mean obsm?"),
        ({"noise": "vv"}, "noise: obsm key 'vv' is not in the data; did you mean 'v'? known: X_pca, v"),
        ({"noise": {"layer": "w"}}, "noise: layer key 'w' is not in the data; known: none"),
        (
            {"noise": np.ones((180, 2))},
            "noise: the array must be variances of shape (180, 3), or covariances of shape (180, 3, 3) or (180, 9), "
            "or one for all of shape (3,) or (3, 3), got float64 of shape (180, 2)",
        ),
        (
            {"noise": -np.ones((180, 3))},
            "patient 'P1': the noise of cell 'P1:000' is no covariance: variances must be at least 0, not NaN",
        ),
        ({"completeness": {}}, "fit_gmm: completeness: needs gates or a function"),
        ({"background": {"amp": 2}}, "fit_gmm: background.amp: input should be less than or equal to 1, got 2"),
        ({"background": {"lower": [0.0]}}, "patient 'P1', k=1: gmm.background.lower has 1 numbers for 3 features"),
        (
            {"background": {"lower": 50, "upper": 60}},
            "patient 'P1', k=1: the background's box holds none of the cells: check its lower and upper",
        ),
        (
            {"completeness": lambda x: np.ones(3)},
            "patient 'P1', k=1: cells 'P1:000' to 'P1:059': the completeness function returned shape (3,) for 60 places",
        ),
        ({"cutoff": 0}, "fit_gmm: cutoff: input should be greater than 0, got 0"),
    ],
)
def test_corrections_that_cannot_be_made(options, text):
    cohort = make_cohort()
    cohort.obsm["v"] = np.ones((180, 3))
    with pytest.raises(CohortgmmError) as caught:
        fit(cohort, **options)
    assert str(caught.value) == text
    assert not cohort.uns
    assert list(cohort.obs.columns) == list(make_cohort().obs.columns)


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        ("v", "noise must be a mapping of patient to array, like the cells, or one for all, got str"),
        (np.ones((60, 2)), "noise must be a mapping of patient to array, like the cells, or one for all, got ndarray"),
        ({"a": np.ones((30, 2))}, "noise has no array for 1 patients, the first is 'b'"),
        (
            {"a": np.ones((30, 2)), "b": np.ones((31, 2))},
            "noise: the array of patient 'b' must be variances of shape (30, 2), or covariances of shape (30, 2, 2) or "
            "(30, 4), or one for all of shape (2,) or (2, 2), got float64 of shape (31, 2)",
        ),
        (
            {"a": np.ones((30, 2)), "b": np.tile(np.eye(2), (30, 1, 1))},
            "noise must be variances for all patients, or covariances for all",
        ),
    ],
    ids=["key", "array", "absent", "shape", "mixed"],
)
def test_noise_of_a_mapping_that_does_not_fit(noise, text):
    with pytest.raises(CohortgmmError) as caught:
        cohortgmm.fit_gmm({"a": X, "b": X + 1}, noise=noise, verbose=False)
    assert str(caught.value) == text


def test_infinite_values_are_never_missing_features():
    cohort = make_corrected()
    cohort.obsm["X_pca"][170, 1] = -np.inf
    with pytest.raises(DataError) as caught:
        fit(cohort, missing=True)
    assert str(caught.value) == (
        "obsm['X_pca'] has 1 infinite values in 1 cells, the first in patient 'P3': "
        "remove these cells or recompute the embedding"
    )
    with pytest.raises(DataError, match=r"^the data has 1 infinite values in 1 cells, the first in patient 'a'"):
        fit({"b": X, "a": np.vstack([X, [np.nan, np.inf]])}, missing=True)


# Where the message is not the one line that it should be


@pytest.mark.parametrize("completeness", ["gates.py:seen", 0.5], ids=["text", "number"])
def test_completeness_that_is_neither_function_nor_gates(completeness):
    with pytest.raises(CohortgmmError):
        fit(make_cohort(), completeness=completeness)


def test_a_reference_that_is_not_there(tmp_path):
    with pytest.raises(CohortgmmError, match=r"no\.npz"):
        fit(make_cohort(), reference=tmp_path / "no.npz", k_comps=None)


@pytest.mark.parametrize("key", ["at", "layr"])
def test_a_key_of_noise_that_means_nothing(key):
    cohort = make_cohort()
    cohort.obsm["v"] = np.ones((180, 3))
    with pytest.raises(ConfigError, match=key):
        fit(cohort, noise={"obsm": "v", key: "noise.py:noise"}, **FEW)


@pytest.mark.parametrize("make", [np.array, tuple], ids=["array", "tuple"])
def test_corners_of_a_notebook_may_be_arrays(make):
    cohort = fit(make_corrected(), missing=True, background={"lower": make([-4.0, -5.0]), "upper": 10}, **FEW)
    np.testing.assert_array_equal(cohort.uns[KEY]["background"]["lower"], [[-4, -5]] * 3)
