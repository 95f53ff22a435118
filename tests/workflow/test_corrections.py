"""Noise, gaps, selection, background and references in the real pipeline: results, reruns, errors."""

import re
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from corrected import ALL, GATE, make_corrected
from projects import REPOSITORY, TARGETS, Project, made_once, new_project

import cohortgmm
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.result import MixtureFit

# Short EM runs, as results are compared.
pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning"),
]

PATIENTS = ("P1", "P2", "P3")
KEY = "gmm_X_pca"
SEEN = "import numpy as np\n\n\ndef seen(x):\n    return np.where(x[:, 0] < 2, 0.5, 1.0)\n"
#: Gates times a function of a file beside the configuration.
CORRECTIONS = ALL | {"completeness": {"gates": [{"inside": GATE}], "function": "seen.py:seen"}}
#: What follows from other fits.
AFTER = {f"{stage}/{patient}" for stage in ("select", "refit") for patient in PATIENTS} | {"select_cohort", "merge"}
FIGURES = [
    *(f"results/qc/{name}" for name in ("diagnostics.tsv", "overview.svg", "patients/P1.svg")),
    *(f"results/qc/corrections/{patient}.svg" for patient in PATIENTS),
]
FITS = {f"fit/{patient}/k{k}" for patient in PATIENTS for k in (1, 2)}


@pytest.fixture(scope="module")
def corrected_run(tmp_path_factory):
    """A folder with a project with all corrections that has been run to the figures."""

    def make(root):
        project = new_project(root / "project", REPOSITORY, make_corrected(PATIENTS))
        (project.directory / "seen.py").write_text(SEEN)
        project.configure(gmm=CORRECTIONS | {"refit": "full"})
        project.run(*TARGETS, *FIGURES)

    return made_once(tmp_path_factory, "corrected", make)


@pytest.fixture
def corrected(corrected_run, tmp_path) -> Project:
    """The finished project, of the test's own."""
    shutil.copytree(corrected_run / "project", tmp_path / "project")
    return Project(tmp_path / "project", REPOSITORY)


def seen(x):
    return (x[:, 0] >= GATE["PC1"][0]) * np.where(x[:, 0] < 2, 0.5, 1.0)


def assert_same(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same(value, theirs[key])
    else:
        np.testing.assert_array_equal(ours, theirs)


def test_pipeline_and_api_correct_alike_bit_by_bit(corrected):
    written = ad.read_h5ad(corrected.directory / "results" / "cohort_gmm.h5ad")
    direct = make_corrected(PATIENTS)

    options = CORRECTIONS | {"completeness": seen, "k_comps": [1, 2], "refit": "full"}
    cohortgmm.fit_gmm(direct, patient_col="patient", use_rep="X_pca", verbose=False, n_jobs=2, **options)
    ours, theirs = written.uns[KEY], direct.uns[KEY]
    for name in ours.keys() - {"provenance"}:
        assert_same(ours[name], theirs[name])
    for name in (f"{KEY}_comp", f"{KEY}_background"):
        np.testing.assert_array_equal(written.obs[name], direct.obs[name])
    np.testing.assert_array_equal(written.obsm[f"{KEY}_resp"], direct.obsm[f"{KEY}_resp"])
    # The corrections did something.
    assert ((ours["diagnostics"]["completeness"] > 0.3) & (ours["diagnostics"]["completeness"] < 0.9)).all()
    assert ours["background"]["amp"].max() > 0.01
    fits = {patient: MixtureFit.load(corrected.directory / f"results/models/{patient}.npz") for patient in PATIENTS}
    for patient, model in cohortgmm.read_gmm(written).items():
        np.testing.assert_array_equal(model.means, fits[patient].model.means)
        assert model.background.amp == fits[patient].model.background.amp


def test_tables_and_figures_of_the_corrections(corrected):
    results = corrected.directory / "results"
    for patient in PATIENTS:
        assert (results / "qc" / "corrections" / f"{patient}.svg").read_text().startswith("<?xml")
        assert (results / "qc" / "corrections" / f"{patient}.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(results / "qc" / "diagnostics.tsv", sep="\t").set_index("patient")
    for patient in PATIENTS:
        fit = MixtureFit.load(results / "models" / f"{patient}.npz")
        row = table.loc[patient]
        assert row["completeness"] == pytest.approx(fit.completeness, rel=1e-12)
        assert row["n_unobserved"] == pytest.approx(fit.n_unobserved, rel=1e-12)
        assert row["background"] == pytest.approx(fit.model.background.amp, rel=1e-12)
        assert row["n_empty"] == 0
    assert (results / "qc" / "patients" / "P1.png").read_bytes().startswith(b"\x89PNG")
    assert corrected.call(*FIGURES, "--report", "results/report.html").returncode == 0
    page = (corrected.directory / "results" / "report.html").read_text()
    assert all(word in page for word in ("Corrections", *PATIENTS))


def test_what_reruns_after_an_edit(corrected):
    """The user's file is an input of the fits; other keys are none of theirs."""
    assert not corrected.run()
    corrected.configure(qc={"max_cells": 150})
    (corrected.directory / "seen.py").touch()
    assert not corrected.run()
    before = corrected.results()
    (corrected.directory / "seen.py").write_text(SEEN.replace("0.5", "0.6"))
    planned = corrected.call("--dry-run").stdout
    assert all(re.search(rf"^{rule} +{n}$", planned, re.MULTILINE) for rule, n in (("fit", 6), ("qc_correction", 3)))
    assert not re.search(r"^(split|check_input|preprocess) ", planned, re.MULTILINE)
    assert set(corrected.run()) == FITS | AFTER
    after = corrected.results()
    assert {name for name in before if before[name] != after[name]} >= {f"{p}.npz" for p in PATIENTS} | {"scores.tsv"}
    assert before["patients.tsv"] == after["patients.tsv"]


def test_corrections_that_the_cells_do_not_depend_on_leave_the_split(corrected):
    corrected.configure(gmm={"background": {"lower": -4, "upper": 10, "amp": 0.1}})
    assert set(corrected.run("results/models/P1.npz")) == {"fit/P1/k1", "fit/P1/k2", "select/P1", "refit/P1"}
    corrected.configure(gmm={"noise": None})
    assert "split" in set(corrected.run("results/fits/P1/k1.npz"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "import numpy as np\ndef seen(x):\n    return (x[:, 0] > 4).astype(float)\n",
            "completeness is 0 for {n} observed cells ({first}",
        ),
        (
            "def seen(x):\n    raise RuntimeError('no\\n table')\n",
            "cells 'P2:000' to 'P2:079': the completeness function failed on 80 places: RuntimeError: no table",
        ),
        ("TABLE = open('/no/such/table')\n", "seen.py:seen: cannot be imported: FileNotFoundError: [Errno 2] No such"),
        ("def sene(x):\n    return 1\n", "seen.py:seen: seen.py has no seen"),
    ],
    ids=["zero", "raises", "import", "missing"],
)
def test_a_completeness_function_that_cannot_be_used_is_one_line(corrected, text, line):
    cells = np.load(corrected.directory / "results" / "patients" / "P2.npz")
    denied = cells["cell_names"][cells["x"][:, 0] <= 4].astype(str)
    (corrected.directory / "seen.py").write_text(text)
    result = corrected.call("results/fits/P2/k1.npz")
    assert result.returncode != 0
    assert "Traceback" not in result.stdout + result.stderr
    said = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("error: patient 'P2', k=1: " + line.format(n=len(denied), first=repr(str(denied[0]))))
    assert "1 failed:" in result.stderr
    assert "[results/logs/fit/P2/k1.log]" in result.stderr
    # The other results are as they were.
    assert (corrected.directory / "results" / "models" / "P2.npz").exists()


def test_patients_are_mapped_onto_a_reference(corrected):
    """Means and covariances stay bit by bit; another reference reruns the fits and nothing before them."""
    atlas = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [5.0, 5.0]], [np.eye(2), [[1.5, 0.3], [0.3, 1.0]]])
    atlas.save(corrected.directory / "atlas.npz")
    corrected.configure(
        gmm={"k_comps": None, "reference": "atlas.npz", "completeness": None, "background": None, "refit": "none"}
    )
    jobs = set(corrected.run())
    assert {job for job in jobs if job.startswith("fit")} == {f"fit/{patient}/k2" for patient in PATIENTS}
    assert "split" in jobs  # k is given: all cells are fitted
    written = ad.read_h5ad(corrected.directory / "results" / "cohort_gmm.h5ad")
    models = cohortgmm.read_gmm(written)
    for model in models.values():
        np.testing.assert_array_equal(model.means, atlas.means)
        np.testing.assert_array_equal(model.covariances, atlas.covariances)
        assert model.background is None
    assert f"{KEY}_background" not in written.obs
    direct = make_corrected(PATIENTS)
    options = {key: ALL[key] for key in ("noise", "missing", "max_iter", "tol", "n_init")}
    cohortgmm.fit_gmm(direct, patient_col="patient", use_rep="X_pca", verbose=False, reference=atlas, **options)
    np.testing.assert_array_equal(written.uns[KEY]["model"]["pi"], direct.uns[KEY]["model"]["pi"])
    assert not corrected.run()
    GaussianMixture(atlas.weights, atlas.means + 0.5, atlas.covariances).save(corrected.directory / "atlas.npz")
    assert set(corrected.run()) == {f"fit/{patient}/k2" for patient in PATIENTS} | AFTER
    moved = cohortgmm.read_gmm(corrected.directory / "results" / "cohort_gmm.h5ad")
    np.testing.assert_array_equal(moved["P1"].means, atlas.means + 0.5)
    # Nothing is wrong with the cells of a mapping by itself: there is no figure of corrections.
    corrected.configure(gmm={"noise": None, "missing": False})
    assert "corrections" not in corrected.call("--dry-run").stdout


def test_a_shared_mixture_is_corrected_too(corrected):
    corrected.configure(gmm={"component_sharing": "global", "k_comps": 2})
    jobs = set(corrected.run(*TARGETS, "results/qc/corrections/_cohort.svg"))
    assert {job for job in jobs if job.startswith(("fit", "qc_correction"))} == {
        "fit/_cohort/k2",
        "qc_correction/_cohort",
    }
    written = ad.read_h5ad(corrected.directory / "results" / "cohort_gmm.h5ad")
    assert written.uns[KEY]["background"]["amp"].shape == (3,)
    assert 0.3 < written.uns[KEY]["diagnostics"]["completeness"][0] < 0.9
    resp = written.obsm[f"{KEY}_resp"]
    np.testing.assert_allclose(written.obs[f"{KEY}_background"], 1 - resp.sum(axis=1), atol=1e-12)
    direct = make_corrected(PATIENTS)
    options = CORRECTIONS | {"completeness": seen, "k_comps": 2, "refit": "full", "component_sharing": "global"}
    cohortgmm.fit_gmm(direct, patient_col="patient", use_rep="X_pca", verbose=False, **options)
    for name in written.uns[KEY].keys() - {"provenance"}:
        assert_same(written.uns[KEY][name], direct.uns[KEY][name])
    weights = written.uns[KEY]["distribution_weights"]
    assert len(np.unique(weights[:, 0])) == 3  # each patient's own


def test_files_and_keys_that_are_wrong_run_nothing(corrected):
    (corrected.directory / "seen.py").unlink()
    corrected.configure(gmm={"reference": "atlas.npz"})
    result = corrected.call(*TARGETS)
    assert result.returncode != 0
    for key, name in (("gmm.reference", "atlas.npz"), ("gmm.completeness.function", "seen.py")):
        assert f"config.yaml: {key}: no such file: {name} (looked in {corrected.directory})" in result.stderr
    corrected.configure(gmm={"reference": None, "noise": {"obsm": "X_var", "att": 1}, "frozen": {"mean": "all"}})
    result = corrected.call(*TARGETS)
    assert result.returncode != 0
    assert "gmm.noise.att: unknown key; did you mean at?" in result.stderr
    assert "gmm: frozen needs a mixture in reference, which is not given" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
