"""Corrections in `fit_gmm`: noise, gaps, selection, background, and references."""

import tracemalloc

import numpy as np
import pytest
from corrected import ALL, BOX, make_corrected
from projects import make_cohort
from scipy import sparse

import cohortgmm
from cohortgmm.errors import CohortgmmError, ConfigError, DataError

KEY = "gmm_X_pca"


def fit(cohort, **options):
    options = {"patient_col": "patient", "use_rep": "X_pca", "k_comps": [1, 2], "verbose": False} | options
    return cohortgmm.fit_gmm(cohort, **options)


def same(one, other):
    """Whether two mixtures are the same bit by bit."""
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("weights", "means", "covariances"))


X = np.random.default_rng(0).normal(size=(30, 2))


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


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
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


@pytest.mark.usefixtures("stops_early")
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


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_the_number_of_jobs_changes_no_bit_of_a_correction(sharing):
    results = [fit(make_corrected(), component_sharing=sharing, n_jobs=n, **ALL | FEW) for n in (1, 2, -1)]
    for other in results[1:]:
        assert_same_results(results[0], other)


@pytest.mark.usefixtures("stops_early")
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


@pytest.mark.usefixtures("stops_early")
def test_gates_and_their_function_are_the_same():
    by_gate = fit(make_corrected(), missing=True, completeness=ALL["completeness"], **FEW)
    by_function = fit(make_corrected(), missing=True, completeness=gate, **FEW)
    assert_same_results(by_gate, by_function)
    assert (by_gate.uns[KEY]["diagnostics"]["completeness"] < 0.99).all()


@pytest.mark.usefixtures("stops_early")
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
            "fit_gmm: split_merge must be 0: it moves components of reference",
        ),
        ({"frozen": {"mean": "all"}}, "fit_gmm: frozen needs a mixture in reference, which is not given"),
        ({"init": "none"}, "fit_gmm: init needs a mixture in reference, which is not given"),
        ({"noise_at": gate}, "noise_at needs noise, which is not given"),
        ({"noise": "v", "noise_at": gate}, "fit_gmm: noise.at needs completeness, which is not given"),
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


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("make", [np.array, tuple], ids=["array", "tuple"])
def test_corners_of_a_notebook_may_be_arrays(make):
    cohort = fit(make_corrected(), missing=True, background={"lower": make([-4.0, -5.0]), "upper": 10}, **FEW)
    np.testing.assert_array_equal(cohort.uns[KEY]["background"]["lower"], [[-4, -5]] * 3)
