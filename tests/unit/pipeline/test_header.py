"""The header of the input is compared with the configuration, in the words of the jobs."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from projects import make_cohort
from scipy import sparse

import cohortgmm
from cohortgmm.cohort.counts import raw_counts
from cohortgmm.cohort.filters import gene_symbols
from cohortgmm.cohort.h5ad import open_h5ad
from cohortgmm.cohort.patients import check_input
from cohortgmm.cohort.reading import as_noise, read_embedding, read_noise
from cohortgmm.config import read_config
from cohortgmm.errors import CohortgmmError, ConfigError, DataError
from cohortgmm.pipeline import header
from cohortgmm.pipeline.header import check_header
from cohortgmm.pipeline.stored import contents


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """A cohort with elements of every kind, in the working directory."""
    monkeypatch.chdir(tmp_path)
    adata = make_cohort()
    n = adata.n_obs
    adata.obsm["sparse"] = sparse.csr_matrix(np.eye(n, 4))
    adata.obsm["table"] = pd.DataFrame(np.ones((n, 2)), index=adata.obs_names, columns=["a", "b"])
    adata.obsm["v"] = np.ones((n, 3))
    adata.obsm["full"] = np.ones((n, 9))
    adata.layers["counts"] = np.ones((n, 1))
    adata.var["symbol"] = ["A"]
    adata.write_h5ad(tmp_path / "cohort.h5ad")
    return tmp_path / "cohort.h5ad"


def config(**changes):
    values = {"input": "cohort.h5ad", "patient_col": "patient", "preprocess": {"enabled": False}}
    return read_config(values | changes)


def refusal(**changes):
    with pytest.raises(DataError) as caught:
        check_header(config(**changes))
    return str(caught.value)


COUNTS = {"enabled": True}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_col": "condition", "celltype_col": "cell_type"},
        {"use_rep": "sparse"},
        {"use_rep": "table"},
        {"use_rep": None},
        {"gmm": {"noise": {"obsm": "v"}}},
        {"gmm": {"noise": {"obsm": "full"}}},
        {"use_rep": None, "gmm": {"noise": {"layer": "counts"}}},
        {"preprocess": COUNTS},
        {"preprocess": COUNTS | {"hvg_batch_col": "condition"}},
        {"preprocess": COUNTS | {"harmony_col": "condition"}, "use_rep": "X_pca_harmony"},
    ],
)
def test_what_is_there_is_taken_without_a_second_look(cohort, monkeypatch, changes):
    contents("cohort.h5ad")
    monkeypatch.setattr(header.sys, "executable", "/nowhere/python")  # a second process would fail
    assert not header.seems_wrong("cohort.h5ad", header.wanted_of(config(**changes)))
    check_header(config(**changes))


def said_by(function, *arguments):
    with pytest.raises(CohortgmmError) as caught:
        function(*arguments)
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize(
    ("changes", "key", "column"),
    [
        ({"patient_col": "patients"}, "patient_col", "patients"),
        ({"label_col": "Condition"}, "label_col", "Condition"),
        ({"celltype_col": "type"}, "celltype_col", "type"),
        ({"preprocess": COUNTS | {"hvg_batch_col": "batch"}}, "preprocess.hvg_batch_col", "batch"),
        (
            {"preprocess": COUNTS | {"harmony_col": "site"}, "use_rep": "X_pca_harmony"},
            "preprocess.harmony_col",
            "site",
        ),
    ],
)
def test_columns_are_refused_as_the_jobs_do(cohort, changes, key, column):
    said = refusal(**changes)
    assert said.startswith(f"{key}: obs column {column!r} is not in the data; ")
    assert said.endswith("known: cell_type, condition, patient")


def test_keys_are_refused_as_the_jobs_do(cohort):
    with open_h5ad("cohort.h5ad") as file:
        assert refusal(use_rep="X_pc") == said_by(read_embedding, file, "X_pc")
        for noise in ({"obsm": "w", "layer": None}, {"obsm": None, "layer": "w"}):
            assert refusal(gmm={"noise": noise}) == said_by(read_noise, file, noise, (180, 3))


def test_noise_of_another_shape_is_refused_as_the_jobs_do(cohort):
    said = said_by(as_noise, np.ones((180, 2), dtype=np.float32), "obsm['table']", (180, 3))
    assert refusal(gmm={"noise": {"obsm": "table"}}) == said


def test_rows_that_do_not_fit_are_refused_as_the_jobs_do(cohort):
    with h5py.File(cohort, "r+") as file:
        values = file["obsm/X_pca"][:-1]
        del file["obsm/X_pca"]
        file["obsm/X_pca"] = values
    with open_h5ad("cohort.h5ad") as file:
        assert refusal() == said_by(read_embedding, file, "X_pca")
    check_header(config(use_rep="table"))


@pytest.mark.parametrize("place", ["layer:spliced", "raw"])
def test_places_of_counts_are_refused_as_the_jobs_do(cohort, place):
    said = said_by(raw_counts, ad.read_h5ad(cohort), place)
    told = refusal(preprocess=COUNTS | {"counts": place})
    assert told.split(";")[0] == said.split(";")[0]
    check_header(config(preprocess=COUNTS | {"counts": "layer:counts", "symbols": "symbol"}))


def test_symbols_are_refused_as_the_jobs_do(cohort):
    told = refusal(preprocess=COUNTS | {"symbols": "gene_name"})
    assert told == said_by(gene_symbols, ad.read_h5ad(cohort).var, "gene_name")


def test_all_problems_are_told_at_once(cohort):
    lines = refusal(patient_col="donor", label_col="group", use_rep="X_pc", gmm={"noise": {"obsm": "w"}}).splitlines()
    assert [line.split(":")[0] for line in lines] == ["patient_col", "label_col", "use_rep", "noise.obsm"]


def test_without_counts(cohort):
    adata = ad.read_h5ad(cohort)
    adata.X = None
    adata.write_h5ad(cohort)
    assert refusal(preprocess=COUNTS) == "preprocessing needs raw counts in X; the input has 180 cells and no X"
    assert refusal(use_rep=None) == "use_rep is null, but the file has no X"
    check_header(config())


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("patient\tcell\n"),
        lambda path: path.write_bytes(b""),
        lambda path: h5py.File(path, "w").close(),
        lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    ],
)
def test_a_file_of_another_kind_is_refused_as_the_jobs_do(cohort, write):
    cohort.unlink()
    write(cohort)
    assert refusal() == said_by(check_input, "cohort.h5ad", {})


def test_what_the_header_does_not_tell_is_left_to_the_jobs(cohort):
    """Here a table without the list of its columns, which anndata may read all the same."""
    with h5py.File(cohort, "r+") as file:
        del file["var"].attrs["column-order"]
    check_header(config())


def test_the_look_is_taken_once_for_each_version_of_the_file(cohort, monkeypatch):
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: calls.append(args) or run(*args, **options))
    for _ in range(3):
        check_header(config())
    assert len(calls) == 1
    make_cohort(("P1",)).write_h5ad(cohort)
    check_header(config())
    assert len(calls) == 2


def test_what_is_in_the_file(cohort):
    found = contents(cohort)
    assert found["columns"] == {"obs": ["patient", "condition", "cell_type"], "var": ["symbol"]}
    assert found["shapes"] == {
        "X": [180, 1],
        "obsm/X_pca": [180, 3],
        "obsm/full": [180, 9],
        "obsm/sparse": [180, 4],
        "obsm/table": [180, 2],
        "obsm/v": [180, 3],
        "layers/counts": [180, 1],
    }


def test_neither_the_look_nor_snakemake_itself_loads_anything_heavy():
    """The main process none of them, the look h5py with numpy only."""
    for code, forbidden in (
        (
            "import cohortgmm.pipeline.header, cohortgmm.pipeline.settings",
            {"h5py", "numpy", "anndata", "pandas", "scipy"},
        ),
        (
            "import runpy, sys; sys.argv = ['stored', sys.argv[1]]; "
            "runpy.run_module('cohortgmm.pipeline.stored', run_name='__main__')",
            {"anndata", "pandas", "scipy"},
        ),
    ):
        path = Path(__file__).parents[3] / "resources" / "demo" / "liu2021_covid_pbmc.h5ad"
        command = [sys.executable, "-c", f"{code}; import sys; print(); print(*sys.modules)", str(path)]
        source = str(Path(__file__).parents[3] / "src")
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=source)
        assert not forbidden & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda adata: adata.uns.update(key={"params": 1}), "has an entry uns['key'] that holds no mixtures"),
        (lambda adata: adata.obs.insert(0, "key_comp", 1), "has obs['key_comp'] without mixtures in uns['key']"),
        (lambda adata: adata.obs.insert(0, "key_background", 1), "has obs['key_background'] without mixtures"),
        (lambda adata: adata.obsm.update(key_resp=np.ones((180, 2))), "has obsm['key_resp'] without mixtures"),
    ],
)
def test_a_key_that_holds_something_else(cohort, change, said):
    adata = ad.read_h5ad(cohort)
    change(adata)
    adata.write_h5ad(cohort)
    message = refusal(gmm={"gmm_key": "key"})
    assert message.startswith("gmm_key 'key': cohort.h5ad ")
    assert said in message
    check_header(config(gmm={"gmm_key": "other"}))


def test_a_key_that_holds_mixtures_is_free(cohort):
    adata = cohortgmm.fit_gmm(
        ad.read_h5ad(cohort), patient_col="patient", use_rep="X_pca", k_comps=1, gmm_key="key", verbose=False
    )
    adata.write_h5ad(cohort)
    check_header(config(gmm={"gmm_key": "key"}))
    assert sorted(contents(cohort)["uns"]["key"]["model"]) == ["mu", "pi", "var"]


@pytest.mark.parametrize("key", ["pca", "hvg", "log1p"])
def test_a_key_of_the_preprocessing_is_refused_with_it(key):
    values = {"input": "x", "patient_col": "p", "gmm": {"gmm_key": key}}
    with pytest.raises(ConfigError, match=f"gmm.gmm_key is '{key}', where the preprocessing keeps its own results"):
        read_config(values)
    assert read_config(values | {"preprocess": {"enabled": False}}).gmm_key == key


@pytest.mark.parametrize("enabled", [True, False])
def test_a_umap_that_does_not_fit_is_refused_before_anything_is_fitted(cohort, enabled):
    with h5py.File(cohort, "r+") as file:
        file["obsm/X_umap"] = np.ones((2, 180))
    changes = {"preprocess": {"enabled": enabled}}
    assert refusal(**changes).startswith("cohort.h5ad: obsm['X_umap'] has 2 rows for 180 cells, it looks transposed")
    check_header(config(qc={"umap": False}, **changes))
    with h5py.File(cohort, "r+") as file:
        del file["obsm/X_umap"]
        file["obsm/X_umap"] = np.ones((180, 1))
    assert "obsm['X_umap'] must have at least two columns" in refusal(**changes)
    with h5py.File(cohort, "r+") as file:
        del file["obsm/X_umap"]
        file["obsm/X_umap"] = np.ones((180, 3))
    check_header(config(**changes))


def test_the_column_of_joined_patients_is_refused_where_it_is_somebodys(cohort):
    adata = ad.read_h5ad(cohort)
    adata.obs["gmm_X_pca_patient"] = "theirs"
    adata.write_h5ad(cohort)
    check_header(config())
    assert "obs['gmm_X_pca_patient'] without mixtures" in refusal(patient_col=["patient", "condition"])
