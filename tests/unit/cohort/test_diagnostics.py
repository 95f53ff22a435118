"""Tables of the quality of the mixtures, recomputed; annotation of cells; draws."""

import math
import sys
import types
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from corrected import ALL
from hostile import TEXTS
from projects import make_cohort
from scipy import sparse

from cohortgmm.cohort import annotation as annotation_module
from cohortgmm.cohort import diagnostics
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.fitting import fit_candidate
from cohortgmm.cohort.patient_result import PatientResult, n_fit_cells
from cohortgmm.cohort.tables import read_rows, write_table
from cohortgmm.config import read_gmm_options
from cohortgmm.config.gmm import GmmConfig
from cohortgmm.errors import DataError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit


@pytest.fixture
def fitted(make_part):
    """Cells, results, scores and selection of two patients with two groups of cells each."""
    parts = [make_part("P1", 40), make_part("NA", 30)]
    options = fit_options(GmmConfig())
    rows, results = [], []
    for part in parts:
        for k in (1, 2):
            row, fit = fit_candidate(part, k, options, seed=0)
            rows.append(row)
        results.append(PatientResult(part.patient, fit, len(part.x), n_fit_cells(part.train, "none")))
    scores = pd.DataFrame(rows)
    return parts, results, scores, pd.DataFrame({"patient": ["P1", "NA"], "k": [2, 2]})


def test_one_row_per_mixture(fitted):
    _, results, scores, selection = fitted
    table = diagnostics.diagnostics_table(results, scores, selection, {"P1": "sick"})
    assert table["patient"].tolist() == ["P1", "NA"]
    assert table["label"].tolist() == ["sick", ""]
    assert table["n_cells"].tolist() == [40, 30]
    assert table["n_fit"].tolist() == [20, 15]
    assert table["k"].tolist() == [2, 2]
    row, fit = table.iloc[0], results[0].fit
    chosen = scores[(scores["patient"] == "P1") & (scores["k"] == 2)].iloc[0]
    for name in ("train_nll", "heldout_nll", "nll_gap"):
        assert row[name] == chosen[name]
    assert row["log_likelihood_per_cell"] == fit.log_likelihood == -chosen["train_nll"]
    spectra = np.linalg.eigvalsh(fit.model.covariances)
    assert row["max_condition"] == pytest.approx((spectra[:, -1] / spectra[:, 0]).max(), rel=1e-12)
    assert row["min_weight"] + row["max_weight"] == pytest.approx(1)
    assert row["min_weight"] <= row["max_weight"]
    assert (row["n_floored"], row["converged"], row["n_iter"]) == (0, True, fit.n_iter)
    hidden = [row[name] for name in ("completeness", "n_unobserved", "n_empty", "background")]
    assert hidden == [1, 0, 0, 0]
    results = [replace(one, n_fit=n_fit_cells(np.ones(one.n_cells, bool), "full")) for one in results]
    full = diagnostics.diagnostics_table(results, scores, selection, {})
    assert full["n_fit"].tolist() == [40, 30]


def test_incomplete_data_have_columns_of_their_own(make_corrected_part, results_of, tmp_path):
    part = make_corrected_part(empty=(4,))
    gmm = read_gmm_options({key: ALL[key] for key in ("noise", "missing", "background", "max_iter", "n_init")})
    row, fit = fit_candidate(part, 2, fit_options(gmm), seed=0)
    fit = replace(fit, completeness=0.8, n_unobserved=10.0)
    selection = pd.DataFrame({"patient": ["P1"], "k": [2]})
    table = diagnostics.diagnostics_table(results_of({"P1": fit}), pd.DataFrame([row]), selection, {})
    diagnostics.write_frame(table, tmp_path / "d.tsv")
    row = diagnostics.read_frame(tmp_path / "d.tsv").iloc[0]
    assert (row["completeness"], row["n_unobserved"], row["n_empty"]) == (0.8, 10.0, 1)
    assert row["background"] == pytest.approx(fit.model.background.amp, rel=1e-14)  # pandas may round the last digit
    assert row["background"] > 0.001
    assert row["min_weight"] + row["max_weight"] + row["background"] == pytest.approx(1, abs=1e-12)
    weights = diagnostics.weights_table(results_of({"P1": fit}))["weight"]
    assert weights.sum() + row["background"] == pytest.approx(1, abs=1e-12)


def test_cell_types_follow_the_noise_of_the_cells(results_of):
    """A cell that is nearer to the narrow component, but too noisy for it."""
    model = GaussianMixture([0.5, 0.5], [[0.0], [3.0]], [[[0.01]], [[1.0]]])
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(2, bool))
    x = np.array([[0.9], [0.9], [np.nan]])
    cell_types = pd.Categorical(["A", "B", "C"])
    for noise, components in ((None, [1, 1, 0]), (np.array([[0.0], [4.0], [1.0]]), [1, 0, 0])):
        part = PatientCells("P1", x, np.ones(3, bool), noise=noise)
        table = diagnostics.composition_table(
            results_of({"P1": fit}), [part], {"P1": np.arange(3)}, cell_types
        ).set_index("cell_type")["component"]
        assert table[["A", "B", "C"]].tolist() == components


def test_debris_is_of_no_component(results_of):
    box = Background([-10.0], [20.0], 0.2)
    model = GaussianMixture([0.4, 0.4], [[0.0], [9.0]], [[[1.0]], [[1.0]]], box)
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(2, bool))
    edge = np.sqrt(2 * np.log(0.4 / np.sqrt(2 * np.pi) / (0.2 / 30)))  # as probably of the first component as debris
    x = np.array([[0.5], [edge - 1e-6], [edge + 1e-6], [4.5], [15.0], [8.0], [np.nan]])
    part = PatientCells("P1", x, np.ones(7, bool))
    assert diagnostics.members_of(part, model).tolist() == [0, 0, -1, -1, -1, 1, 0]
    table = diagnostics.composition_table(
        results_of({"P1": fit}), [part], {"P1": np.arange(7)}, pd.Categorical(list("AABABBA"))
    )
    assert table[["component", "cell_type", "n_cells"]].to_numpy().tolist() == [[0, "A", 3], [1, "B", 1]]


def test_weights_by_component(fitted):
    _, results, _, _ = fitted
    table = diagnostics.weights_table(results)
    assert table["patient"].tolist() == ["P1", "P1", "NA", "NA"]
    assert table["component"].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(table["weight"], np.concatenate([one.fit.model.weights for one in results]))


def test_cell_types_by_component(fitted):
    parts, results, _, _ = fitted
    types = pd.Categorical(np.where(np.arange(70) % 2, "T", "B"))  # the two groups of cells
    types[0] = None
    positions = {"P1": np.arange(40), "NA": np.arange(40, 70)}
    table = diagnostics.composition_table(results, parts, positions, types)
    assert list(table.columns) == diagnostics.COMPOSITION_COLUMNS
    assert table["n_cells"].sum() == 70
    counts = table.set_index(["patient", "cell_type"])["n_cells"]
    assert counts.to_dict() == {
        ("P1", "B"): 19,
        ("P1", "unknown"): 1,
        ("P1", "T"): 20,
        ("NA", "B"): 15,
        ("NA", "T"): 15,
    }
    component = table.set_index(["patient", "cell_type"])["component"]
    assert component["P1", "B"] == component["P1", "unknown"] != component["P1", "T"]
    empty = diagnostics.composition_table(results, parts, positions, None)
    assert list(empty.columns) == diagnostics.COMPOSITION_COLUMNS
    assert len(empty) == 0


def test_what_was_not_fitted_is_missing(tmp_path):
    """Scores of skipped candidates are written as nan, a runner-up that is not there as nothing."""
    rows = [{"patient": "P1", "aic": 1.5, "runner_up_k": ""}, {"patient": "P2", "aic": math.nan, "runner_up_k": 2}]
    write_table(tmp_path / "t.tsv", ["patient", "aic", "runner_up_k"], rows)
    frame = diagnostics.read_frame(tmp_path / "t.tsv")
    np.testing.assert_array_equal(frame["aic"], [1.5, np.nan])
    np.testing.assert_array_equal(frame["runner_up_k"], [np.nan, 2])
    write_table(tmp_path / "t.tsv", ["patient", "runner_up_k"], [{"patient": "P1", "runner_up_k": ""}])
    np.testing.assert_array_equal(diagnostics.read_frame(tmp_path / "t.tsv")["runner_up_k"], [np.nan])


def test_a_table_keeps_texts_and_numbers(tmp_path):
    frame = pd.DataFrame(
        {
            "patient": ["NA", "007", "_cohort"],
            "label": ["", "nan", "1"],
            "score": [0.1 + 0.2, np.nan, -3.0],
            "k": [1, 2, 3],
            "converged": [True, False, True],
        }
    )
    diagnostics.write_frame(frame, tmp_path / "t.tsv")
    again = diagnostics.read_frame(tmp_path / "t.tsv")
    assert again["patient"].tolist() == ["NA", "007", "_cohort"]
    assert again["label"].tolist() == ["", "nan", "1"]
    np.testing.assert_allclose(again["score"], frame["score"], rtol=1e-15)
    assert again["converged"].tolist() == [True, False, True]
    assert again["k"].dtype.kind == "i"


# Annotation of cells


def annotate(path, **options):
    options = {"use_rep": "X_pca", "celltype_col": None, "umap": False, "max_cells": 100, "seed": 0} | options
    return annotation_module.read_annotation(path, **options)


def test_cell_types_of_a_file(tmp_path):
    cohort = make_cohort(("P1",), n_cells=4)
    cohort.obs["n"] = [2, 1, 2, 2]
    cohort.obs["cell_type"] = pd.Categorical(["T", None, "B", "T"])
    cohort.obsm["X_umap"] = np.arange(12.0).reshape(4, 3)
    cohort.write_h5ad(tmp_path / "x.h5ad")
    nothing = annotate(tmp_path / "x.h5ad")
    assert nothing.umap is None
    assert nothing.cell_types is None
    annotation = annotate(tmp_path / "x.h5ad", celltype_col="cell_type", umap=True)
    annotation.save(tmp_path / "cells.npz")
    for read in (annotation, annotation_module.CellAnnotation.load(tmp_path / "cells.npz")):
        assert read.cell_types.categories.tolist() == ["T", "B"]
        assert read.cell_types.codes.tolist() == [0, -1, 1, 0]
        np.testing.assert_array_equal(read.umap, [[0, 1], [3, 4], [6, 7], [9, 10]])  # what is there is not computed
    assert annotate(tmp_path / "x.h5ad", celltype_col="n").cell_types.tolist() == ["2", "1", "2", "2"]
    nothing.save(tmp_path / "nothing.npz")
    assert annotation_module.CellAnnotation.load(tmp_path / "nothing.npz").umap is None
    with pytest.raises(DataError, match=r"celltype_col: obs column 'celltype' is not .* did you mean 'cell_type'\?"):
        annotate(tmp_path / "x.h5ad", celltype_col="celltype")


def test_too_few_cells_for_a_umap(tmp_path):
    make_cohort(("P1",), n_cells=3).write_h5ad(tmp_path / "x.h5ad")
    umap = annotate(tmp_path / "x.h5ad", umap=True).umap
    assert umap.shape == (3, 2)
    assert np.isnan(umap).all()


@pytest.fixture
def stub_scanpy(monkeypatch):
    """In the place of scanpy: a UMAP that is the first feature and a number for every cell it was given."""
    given = []

    def umap(adata, random_state):
        given.append(adata.obsm["X"])
        adata.obsm["X_umap"] = np.column_stack([adata.obsm["X"][:, 0], np.arange(adata.n_obs)])

    pp = types.SimpleNamespace(neighbors=lambda adata, **options: None)
    monkeypatch.setitem(sys.modules, "scanpy", types.SimpleNamespace(pp=pp, tl=types.SimpleNamespace(umap=umap)))
    return given


def test_only_complete_cells_have_a_place_on_the_umap(tmp_path, stub_scanpy):
    cohort = make_cohort(("P1",), n_cells=40)
    x = cohort.obsm["X_pca"]
    x[[3, 7], 1] = np.nan
    cohort.write_h5ad(tmp_path / "x.h5ad")
    umap = annotate(tmp_path / "x.h5ad", umap=True).umap
    complete = np.setdiff1d(np.arange(40), [3, 7])
    assert np.isnan(umap[[3, 7]]).all()
    np.testing.assert_array_equal(umap[complete], np.column_stack([x[complete, 0], np.arange(38)]))
    np.testing.assert_array_equal(stub_scanpy[0], x[complete])
    drawn = annotate(tmp_path / "x.h5ad", umap=True, max_cells=10).umap
    places = np.flatnonzero(np.isfinite(drawn[:, 0]))
    assert len(places) == 10
    assert not {3, 7} & set(places)
    np.testing.assert_array_equal(drawn[places, 0], x[places, 0])
    x[4:] = np.nan
    cohort.write_h5ad(tmp_path / "x.h5ad")
    assert np.isnan(annotate(tmp_path / "x.h5ad", umap=True).umap).all()  # three are too few


@pytest.mark.release  # Compiling PyNNDescent takes half a minute, and only other versions of it change the result.
def test_the_umap_of_more_cells_than_are_compared_pair_by_pair(tmp_path):
    # Scanpy searches neighbours approximately from 8,192 cells on: another library, that may not suit this scanpy.
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 4200)
    x = (20.0 * groups[:, None] + rng.normal(size=(len(groups), 4))).astype(np.float32)
    ad.AnnData(shape=(len(x), 0), obsm={"X_pca": x}).write_h5ad(tmp_path / "x.h5ad")
    umap = annotate(tmp_path / "x.h5ad", umap=True, max_cells=len(x)).umap
    centres = np.array([umap[groups == group].mean(axis=0) for group in (0, 1)])
    nearest = np.linalg.norm(umap[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, groups)


def test_gaps_in_a_sparse_matrix_have_no_place_on_the_umap(tmp_path, stub_scanpy):
    cohort = make_cohort(("P1",), n_cells=40)
    x = cohort.obsm["X_pca"]
    x[3, 1] = np.nan
    ad.AnnData(sparse.csr_matrix(x), obs=cohort.obs).write_h5ad(tmp_path / "x.h5ad")
    assert np.isnan(annotate(tmp_path / "x.h5ad", use_rep=None, umap=True).umap[3]).all()
    assert np.isfinite(stub_scanpy[0]).all()


def test_draws_of_cells():
    assert annotation_module.draw_cells(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = annotation_module.draw_cells(1000, 100, 0)
    assert len(drawn) == len(set(drawn)) == 100
    assert (np.diff(drawn) > 0).all()
    assert drawn.max() < 1000
    np.testing.assert_array_equal(annotation_module.draw_cells(1000, 100, 0), drawn)
    assert not np.array_equal(annotation_module.draw_cells(1000, 100, 1), drawn)


@pytest.mark.parametrize("kind", ["object", "category"])
def test_every_text_of_a_table_comes_back_as_it_was(kind, tmp_path):
    frame = pd.DataFrame({"patient": pd.Series(TEXTS, dtype=kind), "n_cells": 3, "weight": 0.5, "converged": True})
    diagnostics.write_frame(frame, tmp_path / "table.tsv")
    found = diagnostics.read_frame(tmp_path / "table.tsv")
    assert found["patient"].tolist() == TEXTS
    assert found[["n_cells", "weight", "converged"]].to_numpy().tolist() == [[3, 0.5, True]] * len(TEXTS)
    assert [row["patient"] for row in read_rows(tmp_path / "table.tsv")] == TEXTS


def test_every_text_that_the_standard_library_writes_is_read(tmp_path):
    write_table(tmp_path / "table.tsv", ["patient", "label"], [{"patient": text, "label": text} for text in TEXTS])
    assert diagnostics.read_frame(tmp_path / "table.tsv")["patient"].tolist() == TEXTS
    assert [row["label"] for row in read_rows(tmp_path / "table.tsv")] == TEXTS
