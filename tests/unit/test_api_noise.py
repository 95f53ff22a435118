"""Arguments of `fit_gmm`: noise that may mean two things, and numbers of other types or out of range."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cohortgmm
from cohortgmm import Noise
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.split import split_file
from cohortgmm.errors import CohortgmmError, ConfigError, DataError

D = 4
RNG = np.random.default_rng(0)
VARIANCES = RNG.uniform(0.1, 0.9, size=(D, D))
COVARIANCE = np.cov(RNG.normal(size=(D, 60)))
COHORT = {"small": RNG.normal(size=(D, D)), "large": RNG.normal(size=(40, D))}
SHORT = {"k_comps": 1, "n_init": 1, "max_iter": 3, "verbose": False}
TWO_READINGS = (
    "may be the variances of each cell or one covariance for all: say which, cohortgmm.Noise.per_cell(values) or "
    "cohortgmm.Noise.shared(values)"
)


def covariances(cohort, **options):
    models = cohortgmm.fit_gmm(cohort, component_sharing="sample_specific", **SHORT, **options)
    return {patient: model.covariances for patient, model in models.items()}


def same(left, right):
    return all(np.allclose(left[patient], right[patient], rtol=1e-9, atol=1e-12) for patient in left)


def as_matrices(variances):
    return variances[:, :, None] * np.eye(variances.shape[1])


@pytest.mark.usefixtures("stops_early")
def test_a_patient_of_as_many_cells_as_features_needs_a_word():
    of_large = np.full((40, D), 0.1)
    with pytest.raises(DataError) as caught:
        covariances(COHORT, noise={"small": VARIANCES, "large": of_large})
    assert str(caught.value) == (
        f"noise: the array of patient 'small' of shape (4, 4) for 4 cells of 4 features {TWO_READINGS}"
    )
    expected = covariances(COHORT, noise={"small": as_matrices(VARIANCES), "large": as_matrices(of_large)})
    assert same(covariances(COHORT, noise={"small": Noise.per_cell(VARIANCES), "large": of_large}), expected)
    one = np.repeat(COVARIANCE[None], 40, axis=0)
    expected = covariances(COHORT, noise={"small": one[:D], "large": one})
    for noise in (
        {"small": Noise.shared(COVARIANCE), "large": COVARIANCE},
        {"small": Noise.shared(COVARIANCE), "large": one},
        Noise.shared(COVARIANCE),
        COVARIANCE,  # for 44 cells it is no variances
    ):
        assert same(covariances(COHORT, noise=noise), expected)


@pytest.mark.usefixtures("stops_early")
def test_one_array_for_a_mapping_of_as_many_cells_as_features_needs_a_word():
    two = {"a": COHORT["small"][:2], "b": COHORT["small"][2:]}
    for cohort in ({"small": COHORT["small"]}, two):
        with pytest.raises(DataError) as caught:
            covariances(cohort, noise=COVARIANCE)
        assert str(caught.value) == f"noise: the array of shape (4, 4) for 4 cells of 4 features {TWO_READINGS}"
        each = {patient: np.repeat(COVARIANCE[None], len(x), axis=0) for patient, x in cohort.items()}
        assert same(covariances(cohort, noise=Noise.shared(COVARIANCE)), covariances(cohort, noise=each))
    with pytest.raises(
        ConfigError, match=r"^noise must be a mapping of patient to array, like the cells, or one for all"
    ):
        covariances(two, noise=Noise.per_cell(VARIANCES))


def small_cohort():
    """A cohort of as many cells as features."""
    names = [f"c{i}" for i in range(D)]
    cohort = ad.AnnData(COHORT["small"].copy(), obs=pd.DataFrame({"patient": ["a"] * D}, index=names))
    cohort.layers["variances"] = cohort.obsm["variances"] = VARIANCES
    cohort.obsm["flat"] = np.repeat(COVARIANCE.reshape(1, -1), D, axis=0)
    cohort.obsm["X_pca"] = COHORT["small"].copy()
    return cohort


def covariance(noise, use_rep=None):
    cohort = cohortgmm.fit_gmm(small_cohort(), patient_col="patient", use_rep=use_rep, noise=noise, **SHORT)
    return cohortgmm.read_gmm(cohort)["a"].covariances


def test_an_array_for_anndata_of_as_many_cells_as_features_needs_a_word():
    for noise in (VARIANCES, COVARIANCE, pd.DataFrame(VARIANCES)):
        with pytest.raises(DataError) as caught:
            covariance(noise)
        assert str(caught.value) == f"noise: the array of shape (4, 4) for 4 cells of 4 features {TWO_READINGS}"


@pytest.mark.usefixtures("stops_early")
@pytest.mark.parametrize("use_rep", [None, "X_pca"])
def test_a_key_is_of_each_cell_whatever_the_number_of_cells(use_rep):
    per_cell = covariance(as_matrices(VARIANCES), use_rep)
    for noise in ({"layer": "variances"}, {"obsm": "variances"}, "variances", Noise.per_cell(VARIANCES)):
        np.testing.assert_allclose(covariance(noise, use_rep), per_cell, rtol=1e-9)
    one = covariance(np.repeat(COVARIANCE[None], D, axis=0), use_rep)
    for noise in ({"obsm": "flat"}, Noise.shared(COVARIANCE)):
        np.testing.assert_allclose(covariance(noise, use_rep), one, rtol=1e-9)
    assert not np.allclose(per_cell, one)


@pytest.mark.parametrize("noise", [{"obsm": "variances", "layer": None}, {"obsm": None, "layer": "variances"}])
def test_the_pipeline_reads_noise_of_each_cell_whatever_the_number_of_cells(tmp_path, noise):
    cohort = small_cohort()
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    kept = PatientCells("a", COHORT["small"], np.ones(D, dtype=bool), noise=cohort.obsm["variances"])
    kept.save(tmp_path / "a.npz")
    read = PatientCells.load(tmp_path / "a.npz").noise_of()
    assert (read.is_shared, read.is_diagonal) == (False, True)
    assert np.array_equal(read.variances(), VARIANCES)
    split_file(
        tmp_path / "cohort.h5ad",
        tmp_path / "patients",
        tmp_path / "patients.tsv",
        tmp_path / "positions.npz",
        patient_col="patient",
        label_col=None,
        use_rep="X_pca" if noise["obsm"] else None,
        component_sharing="sample_specific",
        noise=noise,
        train_size=1.0,
        seed=0,
    )
    (file,) = (tmp_path / "patients").glob("*.npz")
    assert np.array_equal(np.sort(PatientCells.load(file).noise, axis=0), np.sort(VARIANCES, axis=0))


def test_one_for_all_is_shared_also_for_a_patient_of_as_many_cells_as_features():
    broadcast = PatientCells("a", COHORT["small"], np.ones(D, dtype=bool), noise=np.broadcast_to(COVARIANCE, (D, D, D)))
    noise = broadcast.noise_of()
    assert noise.is_shared
    assert np.array_equal(noise.covariances(), COVARIANCE)


# ---- numbers -------------------------------------------------------------------------------------------------------

BIG = {patient: np.random.default_rng(seed).normal(size=(40, 2)) for seed, patient in enumerate("ab")}


@pytest.mark.parametrize("seed", [0, 2**32, 2**40, np.int64(3), np.uint64(2**63)])
def test_seeds_of_any_size_are_taken(seed):
    assert set(cohortgmm.fit_gmm(BIG, random_state=seed, **SHORT)) == {"a", "b"}


@pytest.mark.parametrize("seed", [-1, 1.5, True, None, "1", np.random.default_rng(0), [1]], ids=str)
def test_other_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match=r"^random_state must be an integer of at least 0, got "):
        cohortgmm.fit_gmm(BIG, random_state=seed, **SHORT)


@pytest.mark.parametrize(
    ("name", "values"), [("n_jobs", [0, -2, True, 1.0, "2", None]), ("min_cells", [-1, True, 1.0, "2"])]
)
def test_counts_are_whole_numbers(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"^{name} "):
            cohortgmm.fit_gmm(BIG, **SHORT, **{name: value})


@pytest.mark.parametrize(
    "k_comps", [np.array([1, 2]), np.array([1, 2], dtype="u1"), pd.Series([1, 2]), {1, 2}, range(1, 3)]
)
def test_candidates_of_other_kinds_of_lists(k_comps):
    models = cohortgmm.fit_gmm(BIG, **SHORT | {"k_comps": k_comps})
    expected = cohortgmm.fit_gmm(BIG, **SHORT | {"k_comps": [1, 2]})
    for patient, model in models.items():
        assert np.array_equal(model.means, expected[patient].means)


@pytest.mark.parametrize(
    "k_comps", [np.array([1.0]), np.array([[1, 2]]), np.array(["1"]), [True], np.array([]), "2", 2.0]
)
def test_candidates_that_are_no_whole_numbers_are_refused(k_comps):
    with pytest.raises(ConfigError, match=r"^fit_gmm: k_comps: "):
        cohortgmm.fit_gmm(BIG, **SHORT | {"k_comps": k_comps})


@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e99, 1e120, 1e160, 1e200])
@pytest.mark.parametrize("sharing", ["global", "sample_specific"])
def test_extreme_values_give_a_finite_mixture_or_one_line(size, sharing):
    options = {"component_sharing": sharing, "k_comps": [1, 2], "k_selection_metric": "heldout_nll", "verbose": False}
    cohort = {patient: x.copy() for patient, x in BIG.items()}
    cohort["b"][3, 1] = size
    if size <= 1e100:
        models = cohortgmm.fit_gmm(cohort, **options)
        assert all(np.isfinite(array).all() for model in models.values() for array in model.arrays().values())
        return
    with pytest.raises(CohortgmmError, match=r"1 values beyond 1e\+100, the first in cell \d+: squares would overflow"):
        cohortgmm.fit_gmm(cohort, **options)


def test_a_fit_is_taken_for_its_mixture_as_reference():
    fit = cohortgmm.fit_mixture(np.concatenate(list(BIG.values())), 2)
    left, right = (cohortgmm.fit_gmm(BIG, reference=known, max_iter=5, verbose=False) for known in (fit, fit.model))
    assert np.array_equal(left["a"].weights, right["a"].weights)


@pytest.mark.parametrize("reference", [5, {"a": 1}, [1], np.ones(2)])
def test_other_references_are_refused(reference):
    with pytest.raises(ConfigError, match=r"^reference must be a cohortgmm\.GaussianMixture or the path of one, got "):
        cohortgmm.fit_gmm(BIG, reference=reference)


def test_a_reference_of_a_file_that_is_no_mixture_is_one_line(tmp_path):
    np.savez(tmp_path / "atlas.npz", weights=np.ones(1), means=np.zeros((1, 2)), covariances=np.zeros((1, 2, 2)))
    with pytest.raises(DataError) as caught:
        cohortgmm.fit_gmm(BIG, reference=tmp_path / "atlas.npz")
    assert str(caught.value) == (
        f"{tmp_path / 'atlas.npz'}: the covariance of component 0 is not positive definite, its smallest eigenvalue is 0: "
        "add a small variance to its diagonal, or remove the component"
    )


@pytest.mark.parametrize("frozen", [5, {"amp": [[1], [1, 2]]}, {"amp": None}, {"amp": [1.5]}])
def test_frozen_of_other_types_is_refused(frozen):
    fit = cohortgmm.fit_mixture(BIG["a"], 2)
    with pytest.raises(ConfigError, match=r"^fit_gmm: "):
        cohortgmm.fit_gmm(BIG, reference=fit, frozen=frozen)


@pytest.mark.parametrize("lower", [[[1], [1, 2]], 1j, "x", [None, 1], [np.nan, 1.0]])
def test_corners_of_other_types_are_refused(lower):
    with pytest.raises(ConfigError, match=r"^fit_gmm: "):
        cohortgmm.fit_gmm(BIG, background={"lower": lower, "upper": [9, 9]}, **SHORT)
