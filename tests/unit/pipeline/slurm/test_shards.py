"""A run that is divided among few SLURM jobs: who does what, the scripts, and how they are submitted."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from projects import REPOSITORY, make_cohort
from snakemake.cli import get_argument_parser

from cohortgmm.cohort.tables import PATIENT_COLUMNS, write_table
from cohortgmm.config import read_config
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline import requests
from cohortgmm.pipeline.lock import Shard
from cohortgmm.pipeline.slurm import shards
from cohortgmm.pipeline.slurm.shards import (
    largest_request,
    run_shard,
    shard_of_patients,
    shard_targets,
)
from cohortgmm.storage.names import COHORT

# Who does what


@st.composite
def cohorts(draw):
    sizes = draw(st.lists(st.integers(0, 5000), max_size=40))
    return {f"P{i}": size for i, size in enumerate(sizes)}, draw(st.integers(1, 12))


@given(cohorts(), st.randoms(use_true_random=False))
@example(({}, 3), None)
@example(({"P0": 7, "P1": 7, "P2": 7}, 3), None)
@example(({"P0": 7}, 5), None)
def test_shards_are_disjoint_and_are_all_patients_in_about_equal_parts(cohort, random):
    sizes, count = cohort
    parts = [shard_of_patients(sizes.items(), Shard(i, count)) for i in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
    shuffled = list(sizes.items())
    if random is not None:
        random.shuffle(shuffled)
    assert [shard_of_patients(iter(shuffled), Shard(i, count)) for i in range(1, count + 1)] == parts


def test_patients_of_equal_size_are_dealt_evenly():
    parts = [shard_of_patients([(f"P{i:02d}", 100) for i in range(20)], Shard(i, 6)) for i in range(1, 7)]
    assert sorted(map(len, parts)) == [3, 3, 3, 3, 4, 4]


def test_a_large_patient_has_a_shard_for_itself():
    sizes = [("a", 10), ("b", 10), ("c", 10), ("large", 1000)]
    assert [shard_of_patients(sizes, Shard(i, 2)) for i in (1, 2)] == [["large"], ["a", "b", "c"]]


@pytest.fixture
def table(tmp_path):
    rows = [
        {"patient": "a/b", "file": "a=2Fb", "n_cells": 900, "status": "ok"},
        {"patient": "c", "file": "c", "n_cells": 5000, "status": "dropped"},
        {"patient": "d", "file": "d", "n_cells": 500, "status": "ok"},
        {"patient": "e", "file": "e", "n_cells": 300, "status": "ok"},
    ]
    write_table(tmp_path / "patients.tsv", PATIENT_COLUMNS, rows)
    return tmp_path / "patients.tsv"


def test_targets_are_the_mixtures_of_the_kept_patients(table):
    assert shard_targets(Shard(1, 1), "sample_specific", table) == [
        f"results/models/{name}.npz" for name in ("a=2Fb", "d", "e")
    ]
    assert shard_targets(Shard(1, 2), "sample_specific", table) == ["results/models/a=2Fb.npz"]
    assert shard_targets(Shard(2, 2), "sample_specific", str(table)) == ["results/models/d.npz", "results/models/e.npz"]
    assert shard_targets(Shard(4, 4), "sample_specific", table) == []


def test_the_mixture_that_patients_share_is_made_by_the_first_shard(table):
    assert shard_targets(Shard(1, 3), "global", table) == [f"results/models/{COHORT}.npz"]
    assert shard_targets(Shard(2, 3), "global", table) == shard_targets(Shard(3, 3), "global", table) == []


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_a_shard_needs_the_division_of_the_cohort(tmp_path, sharing):
    with pytest.raises(CohortgmmError) as caught:
        shard_targets(Shard(1, 2), sharing, tmp_path / "patients.tsv")
    path = tmp_path / "patients.tsv"
    assert str(caught.value) == f"{path} does not exist: run snakemake {path} first, as `submit` does"


def test_rules_of_single_patients_are_those_that_write_below_their_names():
    """Between the division of the cohort and the tables of all patients: every rule whose output has the wildcard."""
    found = set()
    for name in ("fit", "select", "refit"):
        text = (REPOSITORY / "workflow" / "rules" / f"{name}.smk").read_text()
        for rule, block in re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, flags=re.MULTILINE | re.DOTALL):
            if "{patient}" in block.split("    output:")[1].split("    log:")[0]:
                found.add(rule)
    assert found == set(shards.PATIENT_RULES)


# Memory


def cohort_file(folder, *, annotated=0, d=3, genes=1):
    """A cohort of 2,000 cells with a coordinate of 4 bytes in `d` features, counts of `genes`, and annotations."""
    cohort = make_cohort(n_cells=1000, patients=("P1", "P2"), n_features=d)
    counts = np.zeros((2000, genes), dtype=np.float32)
    cohort = ad.AnnData(counts, obs=cohort.obs, obsm=dict(cohort.obsm))
    for i in range(annotated):
        cohort.obs[f"score {i}"] = np.arange(2000.0)
    path = folder / "cohort.h5ad"
    cohort.write_h5ad(path)
    return path


def cohort_config(path, **changes):
    given = {"input": str(path), "patient_col": "patient", "preprocess": {"enabled": False}}
    return read_config(given | changes)


def parts_in_rules(use_rep):
    """What every rule reads of AnnData files, as the workflow says."""
    texts = [path.read_text() for path in (REPOSITORY / "workflow" / "rules").glob("*.smk")]
    (embedding,) = re.findall(r"^EMBEDDING = (.*)$", "\n".join(texts), flags=re.MULTILINE)
    names = {"EMBEDDING": eval(embedding, {"CONFIG": SimpleNamespace(use_rep=use_rep), "requests": requests})}
    found = re.findall(r'mem_mb=requests\.(?:split_)?memory\("(\w+)", (.*)\),$', "\n".join(texts), flags=re.MULTILINE)
    return {rule: eval(parts, names) for rule, parts in found}


@pytest.mark.parametrize("use_rep", ["X_pca", None])
@pytest.mark.parametrize("rule", ["check_input", "split", "qc_cells"])
def test_the_largest_request_is_what_the_workflow_asks_for(tmp_path, monkeypatch, rule, use_rep):
    """Of any rule, where it needs much more than the others."""
    path = cohort_file(tmp_path, annotated=50, d=100, genes=200)
    monkeypatch.setitem(requests.REQUESTS, rule, requests.Request(5_000, 7_000))
    asks = requests.split_memory if rule == "split" else requests.memory
    asked = asks(rule, parts_in_rules(use_rep)[rule])(None, [str(path)], 1)
    assert largest_request(cohort_config(path, use_rep=use_rep)) == (rule, pytest.approx(asked, abs=1))


def test_the_merge_asks_for_no_more_than_the_allocation_has(tmp_path, monkeypatch):
    """The bound, from the cohort alone, is what the merge asks for where all cells are of one patient."""
    path, names = cohort_file(tmp_path, annotated=50, d=100), ("cells", "positions", "model")
    files = {name: tmp_path / f"{name}.npz" for name in names}
    for name, size in zip(names, (2000 * 4 * 100, 8 * 2000, 100), strict=True):
        files[name].write_bytes(bytes(size))

    class Input(list):
        positions, models = str(files["positions"]), [str(files["model"])]

    monkeypatch.setitem(requests.REQUESTS, "merge", requests.Request(5_000))
    config = cohort_config(path, gmm={"k_comps": [2, 20]})
    asked = requests.merge_memory("merge", config.gmm)
    read = Input([str(path), *map(str, files.values())])
    rule, most = largest_request(config)
    assert rule == "merge"
    assert asked(None, read, 1) <= most <= asked(None, read, 1) + 10


def test_all_rules_that_read_parts_of_the_cohort_are_looked_at():
    assert set(parts_in_rules("X_pca")) == {"check_input", "split", "qc_cells"}


def test_the_preprocessing_counts_where_it_is_done(tmp_path, monkeypatch):
    """With all that the input holds; where the embedding is in the input nobody reads the counts."""
    path = cohort_file(tmp_path, genes=500)
    monkeypatch.setitem(requests.REQUESTS, "preprocess", requests.Request(5_000, 7_000))
    expected = int(requests.SNAKEMAKE_MB + 5_000 + 7_000 * requests.megabytes(path))
    assert expected > 7_000 * 2000 * 500 * 4 / 1e6
    assert largest_request(cohort_config(path, preprocess={"enabled": True})) == ("preprocess", expected)
    assert largest_request(cohort_config(path))[0] != "preprocess"


def test_one_mixture_of_all_patients_is_fitted_to_the_whole_cohort(tmp_path, monkeypatch):
    path = cohort_file(tmp_path, d=30)
    monkeypatch.setitem(requests.REQUESTS, "fit", requests.Request(5_000, 7_000))
    expected = int(requests.SNAKEMAKE_MB + 5_000 + 7_000 * 2000 * 30 * 4 / 1e6)
    assert largest_request(cohort_config(path, gmm={"component_sharing": "global"})) == ("fit", expected)
    assert largest_request(cohort_config(path))[0] != "fit"


@pytest.mark.parametrize("content", [None, b"", b"no HDF5"])
def test_an_input_that_cannot_be_measured_is_left_to_the_run(tmp_path, content):
    path = tmp_path / "cohort.h5ad"
    if content is not None:
        path.write_bytes(content)
    assert largest_request(cohort_config(path)) == ("qc_cells", requests.memory("qc_cells")(None, [], 1))


# What a shard runs


def test_a_shard_runs_snakemake_on_its_patients_only(python, tmp_path, capfd):
    """As Snakemake understands it, with options before it that take several values."""
    options = ["--configfile", "a b.yaml", "--executor", "local", "--cores", "4", "--resources", "mem_mb=8000"]
    targets = ["results/models/a=2Fb.npz", "results/models/d.npz"]
    assert run_shard(Shard(2, 3), targets, options, tmp_path / "my flow") == 0
    arguments, _, shard = capfd.readouterr().out.split("\1")
    assert shard == "2/3"
    module, name, *arguments = arguments.split("\0")[:-1]
    assert (module, name) == ("-m", "snakemake")
    read = get_argument_parser().parse_args(arguments)
    assert sorted(read.targets) == targets
    assert set(read.allowed_rules) == {"fit", "select", "refit"}
    assert list(read.configfile) == [Path("a b.yaml")]
    assert str(read.snakefile) == str(tmp_path / "my flow" / "Snakefile")
    assert (read.executor, read.cores) == ("local", 4)


def test_a_shard_ends_as_its_snakemake_does(python, tmp_path):
    python.write_text("#!/bin/sh\nexit 7\n")
    assert run_shard(Shard(2, 3), ["results/models/d.npz"], [], tmp_path) == 7
    assert shards.SHARD_VARIABLE not in os.environ


def test_a_shard_without_patients_runs_nothing(python, tmp_path, capfd):
    python.write_text("#!/bin/sh\nexit 7\n")
    assert run_shard(Shard(5, 5), [], [], tmp_path) == 0
    assert capfd.readouterr() == ("", "shard 5/5 has no patients\n")
