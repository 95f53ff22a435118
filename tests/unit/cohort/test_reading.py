"""What is read of an .h5ad, and the one line that says why it cannot be used."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort
from scipy import sparse

from cohortgmm.cohort import h5ad, patients, reading
from cohortgmm.cohort.labels import patient_labels
from cohortgmm.errors import DataError


def refusal(function, *arguments):
    with pytest.raises(DataError) as caught:
        function(*arguments)
    return str(caught.value)


def enter(path):
    with h5ad.open_h5ad(path):
        pass


def test_files_that_are_no_h5ad(tmp_path):
    assert refusal(enter, tmp_path / "no.h5ad") == f"{tmp_path}/no.h5ad: no such file"
    assert refusal(enter, tmp_path) == f"{tmp_path}: a folder, not an .h5ad file"
    (tmp_path / "text.h5ad").write_text("patient\tcell\n")
    assert refusal(enter, tmp_path / "text.h5ad").startswith(f"{tmp_path}/text.h5ad: not an .h5ad file (")
    assert "\n" not in refusal(enter, tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["matrix"] = np.zeros(3)
    assert refusal(enter, tmp_path / "other.h5") == (
        f"{tmp_path}/other.h5: an HDF5 file, but not an AnnData one (it has no obs and var)"
    )


def test_a_file_cut_short_is_refused(tmp_path):
    make_cohort().write_h5ad(tmp_path / "whole.h5ad")
    content = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "half.h5ad").write_bytes(content[: len(content) // 2])
    said = refusal(enter, tmp_path / "half.h5ad")
    assert "half.h5ad: not an .h5ad file (" in said
    assert said.endswith(": it is truncated, copy it or write it again")


def test_the_parts_of_a_file(tmp_path):
    cohort = make_cohort()
    cohort.write_h5ad(tmp_path / "x.h5ad")
    with h5ad.open_h5ad(tmp_path / "x.h5ad") as file:
        obs = h5ad.read_obs(file)
        embedding, counts = reading.read_embedding(file, "X_pca"), reading.read_embedding(file, None)
    np.testing.assert_array_equal(embedding.matrix, cohort.obsm["X_pca"])
    np.testing.assert_array_equal(counts.matrix, np.zeros((180, 1)))
    assert embedding.noise is None
    assert counts.noise is None
    assert obs["patient"].tolist() == cohort.obs["patient"].tolist()
    assert obs.index.tolist() == cohort.obs_names.tolist()


def test_a_table_in_the_layout_of_old_files_is_refused(tmp_path):
    """anndata < 0.7 wrote obs as one array of records."""
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["obs"] = np.array([(b"c0", 0), (b"c1", 1)], dtype=[("index", "S2"), ("patient", "i1")])
        file["var"] = np.array([(b"g0",)], dtype=[("index", "S2")])
        file["uns/patient_categories"] = np.array([b"P1", b"P2"])
    with h5ad.open_h5ad(tmp_path / "old.h5ad") as file:
        assert refusal(h5ad.read_obs, file) == (
            f"{tmp_path}/old.h5ad: obs is in the layout of anndata before 0.7: "
            "read the file with anndata and write it again"
        )


def test_an_embedding_that_is_not_there(tmp_path):
    cohort = make_cohort()
    ad.AnnData(obs=cohort.obs, obsm={"X_scVI": cohort.obsm["X_pca"]}, shape=(180, 0)).write_h5ad(tmp_path / "x.h5ad")
    with h5ad.open_h5ad(tmp_path / "x.h5ad") as file:
        assert refusal(reading.read_embedding, file, "X_scvi") == (
            "use_rep: obsm key 'X_scvi' is not in the data; did you mean 'X_scVI'? known: X_scVI"
        )
        assert refusal(reading.read_embedding, file, None) == "use_rep is null, but the file has no X"


def test_unknown_names():
    assert str(h5ad.unknown_name("obs column", "x", [])) == "obs column 'x' is not in the data; known: none"
    assert str(h5ad.unknown_name("a", "zz", ["b", 3])) == "a 'zz' is not in the data; known: 3, b"
    many = str(h5ad.unknown_name("a", "zz", [f"c{i:02d}" for i in range(20)]))
    assert many.endswith("known: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, c10, c11, ...")


def test_repeated_cell_names():
    obs = pd.DataFrame(index=["a", "b", "a", "c", "b", "b"])
    assert refusal(patients.check_cell_names, obs) == (
        "3 cell names occur more than once, the first is 'a': call adata.obs_names_make_unique()"
    )
    patients.check_cell_names(pd.DataFrame(index=["a", "b"]))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["b", "a", "b"], ["b", "a", "b"]),
        ([2, 10, 2], ["2", "10", "2"]),
        ([1.0, 2.5, 1.0], ["1.0", "2.5", "1.0"]),
        ([True, False, True], ["True", "False", "True"]),
        (pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]), ["b", "a", "b"]),  # z has no cells
        (pd.Categorical([7, 5, 7], categories=[5, 6, 7]), ["7", "5", "7"]),
        (pd.array(["NA", "nan", "None"], dtype="string"), ["NA", "nan", "None"]),
    ],
    ids=["text", "integers", "floats", "booleans", "categories", "categories of integers", "strings"],
)
def test_patients_are_text(make_obs, values, texts):
    ids = patients.patient_ids(make_obs(values), "patient")
    assert ids.dtype == object
    assert ids.tolist() == texts
    assert all(type(patient) is str for patient in ids)


@pytest.mark.parametrize(
    "values",
    [["a", None, "b", None], [1.0, np.nan, 2.0, np.nan], pd.Categorical(["a", None, "b", None])],
    ids=["text", "floats", "categories"],
)
def test_cells_without_a_patient(make_obs, values):
    assert refusal(patients.patient_ids, make_obs(values), "patient") == (
        "patient_col 'patient': 2 cells have no patient, the first is 'c1'"
    )


def test_values_that_read_the_same(make_obs):
    obs = make_obs(pd.Series([1, "1", 2], dtype=object).to_numpy())
    assert refusal(patients.patient_ids, obs, "patient") == (
        "patient_col 'patient': two different values have the same text, '1' (int and str); convert the column to text"
    )


def test_a_column_that_is_not_there(make_obs):
    assert refusal(patients.patient_ids, make_obs(["a"], "donor_id"), "donor") == (
        "patient_col: obs column 'donor' is not in the data; did you mean 'donor_id'? known: donor_id"
    )
    assert refusal(patient_labels, make_obs(["a"]), np.array(["a"]), "group").startswith(
        "label_col: obs column 'group' is not in the data; known: patient"
    )


def test_labels_of_patients(make_obs):
    ids = np.array(list("aaabbccdd"), dtype=object)
    obs = make_obs(["x", "y", "y", "x", "x", "y", "x", None, None], "group")
    labels = patient_labels(obs, ids, "group")
    assert labels.values == {"a": "y", "b": "x", "c": "x", "d": ""}  # the commonest; of a tie the first by name
    assert labels.mixed == ["a", "c"]
    labels = patient_labels(obs.astype("category"), ids, "group")
    assert (labels.values["a"], labels.mixed) == ("y", ["a", "c"])
    labels = patient_labels(make_obs([1, 1, 1, 2, 2, 3, 3, 4, 4], "group"), ids, "group")
    assert labels.values == {"a": "1", "b": "2", "c": "3", "d": "4"}


def test_matrices():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
    np.testing.assert_array_equal(reading.as_matrix(table, "m"), [[1, 3], [2, 4]])
    csr = reading.as_matrix(sparse.csc_matrix(np.eye(3)), "m")
    assert csr.format == "csr"
    rows = np.array([2, 0])
    np.testing.assert_array_equal(reading.rows_of(csr, rows), [[0, 0, 1], [1, 0, 0]])
    assert isinstance(reading.rows_of(csr, rows), np.ndarray)
    np.testing.assert_array_equal(reading.rows_of(np.eye(3), rows), [[0, 0, 1], [1, 0, 0]])
    for bad, shown in (
        (np.zeros(3), "float64 of shape (3,)"),
        (np.zeros((3, 0)), "float64 of shape (3, 0)"),
    ):
        assert refusal(reading.as_matrix, bad, "X") == f"X must be a numeric matrix (cells, features), got {shown}"


# Names of features


@pytest.mark.parametrize(
    ("use_rep", "names"),
    [
        ("X_pca", ("PC1", "PC2")),
        ("X_pca_harmony", ("PC1", "PC2")),
        ("X_scVI", ("scVI 1", "scVI 2")),
        ("latent", ("latent 1", "latent 2")),
    ],
)
def test_names_of_features(use_rep, names):
    embedding = reading.named_embedding(np.zeros((3, 2)), use_rep)
    assert embedding.feature_names == names
    table = pd.DataFrame(np.arange(6).reshape(3, 2), columns=["CD3", 4])
    named = reading.named_embedding(table, use_rep)
    assert named.feature_names == ("CD3", "4")
    np.testing.assert_array_equal(named.matrix, table.to_numpy())


def test_features_of_a_file_have_the_names_that_it_gives(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    table = pd.DataFrame(x, columns=["CD3", "CD4"], index=["c0", "c1", "c2"])
    cohort = ad.AnnData(x, obs=pd.DataFrame(index=table.index), var=pd.DataFrame(index=["g1", "MT-2"]))
    cohort.obsm["X_cytof"], cohort.obsm["X_pca"] = table, x
    cohort.write_h5ad(tmp_path / "x.h5ad")
    with h5ad.open_h5ad(tmp_path / "x.h5ad") as file:
        for use_rep, names in ((None, ("g1", "MT-2")), ("X_cytof", ("CD3", "CD4")), ("X_pca", ("PC1", "PC2"))):
            embedding = reading.read_embedding(file, use_rep)
            assert embedding.feature_names == names
            np.testing.assert_array_equal(embedding.matrix, x)


# Measurement noise

N, D = 4, 3
VARIANCES = np.arange(1.0, 13.0).reshape(N, D)
ROOTS = np.random.default_rng(0).normal(size=(N, D, D))
COVARIANCES = ROOTS @ ROOTS.transpose(0, 2, 1)


def as_noise(values, shape=(N, D)):
    return reading.as_noise(values, "obsm['v']", shape)


def test_forms_of_noise():
    np.testing.assert_array_equal(as_noise(VARIANCES), VARIANCES)
    np.testing.assert_array_equal(as_noise(pd.DataFrame(VARIANCES)), VARIANCES)
    np.testing.assert_array_equal(as_noise(VARIANCES.tolist()), VARIANCES)
    np.testing.assert_array_equal(as_noise(COVARIANCES), COVARIANCES)
    flat = COVARIANCES + np.triu(np.arange(9).reshape(3, 3), 1)  # not symmetric: rows come first
    for values in (flat.reshape(N, D * D), pd.DataFrame(flat.reshape(N, D * D))):
        np.testing.assert_array_equal(as_noise(values), flat)
    one = as_noise(np.ones((N, 1)), (N, 1))
    assert one.shape == (N, 1)
    assert as_noise(np.ones((N, 1, 1)), (N, 1)).shape == (N, 1, 1)
    assert as_noise(VARIANCES.astype(np.float32)).dtype == np.float32
    for make in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix):
        result = as_noise(make(VARIANCES))
        assert result.format == "csr"
        np.testing.assert_array_equal(result.toarray(), VARIANCES)


def test_flattened_covariances_may_be_sparse():
    flat = sparse.csr_matrix(COVARIANCES.reshape(N, D * D))
    np.testing.assert_array_equal(np.asarray(as_noise(flat)).reshape(N, D, D), COVARIANCES)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.ones((N, D + 1)), "float64 of shape (4, 4)"),
        (np.ones((N - 1, D)), "float64 of shape (3, 3)"),
        (np.ones((N, D, D + 1)), "float64 of shape (4, 3, 4)"),
        (np.ones(D), "float64 of shape (3,)"),
        (np.ones((D, D)), "float64 of shape (3, 3)"),  # what is shared is not asked for here
        (sparse.csr_matrix(np.ones((N, D + 1))), "float64 of shape (4, 4)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_noise_of_another_shape_or_type(values, shown):
    assert refusal(as_noise, values) == (
        f"noise: obsm['v'] must be variances of shape (4, 3), or covariances of shape (4, 3, 3) or (4, 9), got {shown}"
    )


@pytest.mark.parametrize("values", [np.full((N, D), "x"), np.ones((N, D), dtype=complex)], ids=["text", "complex"])
def test_noise_of_other_than_real_numbers(values):
    assert refusal(as_noise, values) == f"noise: obsm['v'] must hold real numbers, got {values.dtype}"


def test_noise_of_a_file(tmp_path):
    cohort = ad.AnnData(np.ones((N, D)), obsm={"X_pca": np.ones((N, D)), "variances": VARIANCES})
    cohort.obsm["covariances"] = COVARIANCES
    cohort.obsm["flat"] = COVARIANCES.reshape(N, D * D)
    cohort.obsm["table"] = pd.DataFrame(VARIANCES, columns=["a", "b", "c"], index=cohort.obs_names)
    cohort.layers["dense"], cohort.layers["sparse"] = VARIANCES, sparse.csc_matrix(VARIANCES)
    cohort.write_h5ad(tmp_path / "x.h5ad")
    with h5ad.open_h5ad(tmp_path / "x.h5ad") as file:

        def read(obsm=None, layer=None, shape=(N, D)):
            noise = reading.read_noise(file, {"obsm": obsm, "layer": layer}, shape)
            return noise.toarray() if hasattr(noise, "toarray") else noise

        for noise in (read("variances"), read("table"), read(layer="dense"), read(layer="sparse")):
            np.testing.assert_array_equal(noise, VARIANCES)
        for noise in (read("covariances"), read("flat")):
            np.testing.assert_array_equal(noise, COVARIANCES)
        assert refusal(read, "variance") == (
            "noise.obsm: key of obsm 'variance' is not in the data; did you mean 'variances'? "
            "known: X_pca, covariances, flat, table, variances"
        )
        assert refusal(read, None, "Dense") == (
            "noise.layer: key of layers 'Dense' is not in the data; did you mean 'dense'? known: dense, sparse"
        )
        assert refusal(read, None, "dense", (N, 2)) == (
            "noise: layers['dense'] must be variances of shape (4, 2), or covariances of shape (4, 2, 2) or (4, 4), "
            "got float64 of shape (4, 3)"
        )
    ad.AnnData(np.ones((N, D))).write_h5ad(tmp_path / "y.h5ad")
    with h5ad.open_h5ad(tmp_path / "y.h5ad") as file:
        said = refusal(reading.read_noise, file, {"obsm": None, "layer": "v"}, (N, D))
    assert said == "noise.layer: key of layers 'v' is not in the data; known: none"


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
def test_the_cells_of_a_patient_come_with_their_noise(make):
    embedding = reading.Embedding(make(VARIANCES + 50), ("a", "b", "c"), make(VARIANCES))
    positions, train = np.array([3, 1]), np.array([True, False])
    part = embedding.cells("P1", positions, train)
    np.testing.assert_array_equal(part.x, VARIANCES[[3, 1]] + 50)
    np.testing.assert_array_equal(part.noise, VARIANCES[[3, 1]])
    assert part.feature_names == ("a", "b", "c")
    assert part.cell_names is None
    assert part.train is train
    both = embedding.cells("all", positions, train, np.array([0, 1]), ("P1", "P2"))
    assert both.owner.tolist() == [0, 1]
    assert both.patients == ("P1", "P2")
    covariances = reading.Embedding(VARIANCES, ("a", "b", "c"), COVARIANCES)
    np.testing.assert_array_equal(covariances.cells("P1", positions, train).noise, COVARIANCES[[3, 1]])
    assert reading.Embedding(VARIANCES, ("a", "b", "c")).cells("P1", positions, train).noise is None


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.where(np.arange(12).reshape(4, 3) == 10, -1e-9, VARIANCES), "variances must be at least 0, not NaN"),
        (np.where(np.arange(12).reshape(4, 3) == 10, np.nan, VARIANCES), "variances must be at least 0, not NaN"),
        (
            np.where(np.arange(4)[:, None, None] == 3, -COVARIANCES, COVARIANCES),
            "variances must be at least 0, the matrix finite, symmetric and positive semidefinite",
        ),
        (
            np.where(np.arange(4)[:, None, None] == 3, COVARIANCES + np.triu(np.ones((3, 3)), 1), COVARIANCES),
            "variances must be at least 0, the matrix finite, symmetric and positive semidefinite",
        ),
        (
            np.where(np.arange(36).reshape(4, 3, 3) == 28, np.inf, COVARIANCES),
            "variances must be at least 0, the matrix finite, symmetric and positive semidefinite",
        ),
    ],
    ids=["negative", "nan", "negative matrix", "skew", "infinite matrix"],
)
def test_noise_that_is_none_names_the_patient_and_its_cell(values, fault):
    names = np.array(["c0", "c1", "c2", "c3"], dtype=object)
    embedding = reading.Embedding(VARIANCES, ("a", "b", "c"), values, names)
    assert refusal(embedding.cells, "P2", np.array([0, 3]), np.ones(2, bool)) == (
        f"patient 'P2': the noise of cell 'c3' is no covariance: {fault}"
    )
    embedding.cells("P1", np.array([0, 1]), np.ones(2, bool))
    assert len(embedding.cells("P3", np.empty(0, int), np.empty(0, bool)).noise) == 0


def test_infinite_variances_are_missing_features():
    noise = np.where(VARIANCES == 5, np.inf, VARIANCES)
    part = reading.Embedding(VARIANCES, ("a", "b", "c"), noise).cells("P1", np.arange(4), np.ones(4, bool))
    assert np.isinf(part.noise).sum() == 1


def test_as_many_cells_as_features_have_variances_too():
    embedding = reading.Embedding(VARIANCES, ("a", "b", "c"), VARIANCES)
    part = embedding.cells("P1", np.arange(3), np.ones(3, bool))
    np.testing.assert_array_equal(part.noise, VARIANCES[:3])
