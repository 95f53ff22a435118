"""A cohort whose every name some formatting would change goes through the pipeline and its report unharmed."""

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hostile import IDS
from projects import REPOSITORY, Project, new_project

import cohortgmm
from cohortgmm.cohort.tables import read_rows

pytestmark = pytest.mark.pipeline

#: Together they hold every character that is special to Snakemake, Python, Jinja, RST, HTML, shells and tables.
PATIENTS = [
    "{patient} {{x}}", "%(a)s %s 100%", "$x$ \\$", "</script><b>&amp;", "<!--", "`x` *y* |z|_", "{{ 1/0 }} {% for %}",
    "a\nb\tc", "a\rb", "  ", "\x07\x1b[31m", "😀 \u202egnp", "None", "-1", '"', "~/$(touch x)",
]  # fmt: skip
COLUMNS = {"patient": "patient {x} `*|$% <b>", "label": "label {input}", "cell type": "type\n{0}"}
FEATURES = ["{f} $x$", "*<b>%s"]
REP, KEY, INPUT = "X {rep} `%s`", "gmm {key} %s", "in {x} {{y}} %s $z <b>&`*|_.h5ad"
N = 24


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The pipeline's results, with a report."""
    n = N * len(PATIENTS)
    index = [f"{i} {{x}}" for i in range(n)]
    obs = pd.DataFrame(
        {
            COLUMNS["patient"]: np.repeat(np.array(PATIENTS, dtype=object), N),
            COLUMNS["label"]: np.repeat(np.array(IDS[: len(PATIENTS)], dtype=object), N),
            COLUMNS["cell type"]: np.array(IDS, dtype=object)[np.arange(n) % len(IDS)],
        },
        index=index,
    )
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(n, 2)), columns=FEATURES, index=index)
    cohort = ad.AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs, obsm={REP: x})
    folder = tmp_path_factory.mktemp("texts") / "dir {x} <y> %s $HOME `a` *b* 'q' é"
    project = new_project(folder, REPOSITORY, cohort)
    (folder / "cohort.h5ad").rename(folder / INPUT)
    project.configure(
        input=INPUT,
        patient_col=COLUMNS["patient"],
        label_col=COLUMNS["label"],
        celltype_col=COLUMNS["cell type"],
        use_rep=REP,
        gmm={"k_comps": [1, 2], "gmm_key": KEY, "refit": "full"},
    )
    for arguments in ((), ("--report", "results/report {x}.html")):
        result = project.call(*arguments, timeout=900)
        assert result.returncode == 0, result.stdout + result.stderr
    return project


def test_tables_name_every_patient(project):
    results = project.directory / "results"
    labels = dict(zip(PATIENTS, IDS, strict=False))
    assert {row["patient"]: row["label"] for row in read_rows(results / "patients.tsv")} == labels
    for name in ("scores.tsv", "selection.tsv", "qc/diagnostics.tsv", "qc/composition.tsv"):
        assert {row["patient"] for row in read_rows(results / name)} == set(PATIENTS)
    assert {row["cell_type"] for row in read_rows(results / "qc" / "composition.tsv")} == set(IDS)


def test_the_result_has_every_patient_and_the_names_of_the_input(project):
    file = project.directory / "results" / "cohort_gmm.h5ad"
    assert set(cohortgmm.read_gmm(file, KEY)) == set(PATIENTS)
    adata = ad.read_h5ad(file)
    assert {*COLUMNS.values(), f"{KEY}_comp"} <= set(adata.obs)
    assert list(adata.obsm[REP]) == FEATURES
    assert adata.uns[KEY]["use_rep"] == REP
    assert adata.uns[KEY]["provenance"]["source"] == INPUT
    assert json.loads(adata.uns[KEY]["provenance"]["config"])["input"] == INPUT


def test_the_report_names_every_patient_and_the_input(project):
    page = (project.directory / "results" / "report {x}.html").read_text(encoding="utf-8")
    results, description = (
        json.loads(re.search(rf'<script id="{name}">\s*var \w+ = (.*?);\s*</script>', page, re.DOTALL)[1])
        for name in ("results", "workflow-desc")
    )
    labels = [result["labels"] or {} for result in results.values()]
    assert {label["patient"] for label in labels if "patient" in label} == set(PATIENTS)
    shown = INPUT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"fitted to the cells of {shown} by" in " ".join(description.split())


def test_nothing_is_run_again(project):
    result = project.call("--dry-run")
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout + result.stderr
