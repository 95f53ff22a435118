"""Copies of models out of the results: all or nothing, and of this configuration."""

import os

import pytest
import yaml
from recorded import CONFIG, write_run

from cohortgmm.config import read_config
from cohortgmm.errors import CohortgmmError
from cohortgmm.pipeline.keep import keep, keep_message
from cohortgmm.pipeline.lock import lock_results
from cohortgmm.pipeline.settings import load_config

KEPT = ["models/P1.npz", "models/P2.npz", "patients.tsv", "selection.tsv", "scores.tsv", "config.yaml"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of two patients; the working directory is its own."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "cohort.h5ad").write_text("cohort")
    (work / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    write_run(work, read_config(CONFIG))
    return work


def kept(run, target, config=CONFIG):
    return keep("results", target, read_config(config), run / "config.yaml", run / "flow")


def refusal(run, target, config=CONFIG):
    with pytest.raises(CohortgmmError) as caught:
        kept(run, target, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_is_copied_as_it_is(run):
    target = run.parent / "new" / "kept"
    assert kept(run, target) == KEPT
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == sorted(KEPT)
    for name in KEPT[:-1]:
        assert (target / name).read_bytes() == (run / "results" / name).read_bytes()
    assert (target / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert os.listdir(target.parent) == ["kept"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_kept_can_be_named_by_a_configuration(run):
    kept(run, run.parent / "kept")
    for key, name in (("input", "models/P1.npz"), ("patients", "patients.tsv")):
        found = load_config(CONFIG | {key: str(run.parent / "kept" / name)}, "c.yaml", run)
        assert getattr(found, key) == str(run.parent / "kept" / name)


def test_the_message_names_what_to_put_into_a_configuration(run, tmp_path):
    lines = keep_message(tmp_path / "a: b", KEPT).splitlines()
    assert lines[0] == f"copied to {tmp_path}/a: b: 2 models, patients.tsv, selection.tsv, scores.tsv, config.yaml"
    assert yaml.safe_load("\n".join(lines[2:])) == {"gmm": {"reference": f"{tmp_path}/a: b/models/P1.npz"}}


def test_an_empty_folder_may_be_there(run):
    (run.parent / "empty").mkdir()
    assert kept(run, run.parent / "empty") == KEPT


def test_folders_that_cannot_be_used_are_told(run):
    (run.parent / "full").mkdir()
    (run.parent / "full" / "x").touch()
    (run.parent / "file").touch()
    (run.parent / "link").symlink_to(run / "results")
    (run.parent / "nowhere").symlink_to("/nowhere/at/all")
    before = sorted(run.parent.rglob("*"))
    assert refusal(run, run.parent / "full") == (
        f"{run.parent}/full is there and is not empty: choose another name, or empty it first"
    )
    for name in ("file", "nowhere"):
        assert refusal(run, run.parent / name) == (
            f"{run.parent}/{name} is there and is no folder: choose another name"
        )
    for target in (
        run / "results" / "kept",
        run.parent / "link" / "kept",
        run / "results",
        run / "." / "results" / "a",
    ):
        assert "is in the results, which the next run removes: choose a folder outside of them" in refusal(run, target)
    assert refusal(run, run.parent / "file" / "kept").startswith(f"cannot write {run.parent}/file/kept: ")
    assert sorted(run.parent.rglob("*")) == before


def test_what_is_not_there_is_told_with_what_to_run(run):
    target = run.parent / "kept"
    command = f"run snakemake --directory {run} --configfile {run}/config.yaml --cores all"
    (run / "results" / "selection.tsv").unlink()
    assert refusal(run, target) == f"results/selection.tsv does not exist: {command}"
    (run / "results" / "models" / "P1.npz").unlink()
    assert refusal(run, target) == (
        f"1 of 2 final mixtures are missing: {command}, or name the configuration that made them with --configfile"
    )
    (run / "results" / "patients.tsv").unlink()
    assert "results/patients.tsv does not exist" in refusal(run, target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gmm": {"k_comps": [1, 2], "tol": 0.01}}, "2 of 2 final mixtures are of another configuration"),
        ({"label_col": "group"}, "the configuration has changed since the run (label_col)"),
        ({"gmm": {"k_comps": [1, 2], "gmm_key": "other"}}, "the configuration has changed since the run"),
    ],
)
def test_results_of_another_configuration_are_refused(run, changes, said):
    assert refusal(run, run.parent / "kept", CONFIG | changes).startswith(f"{said}: run snakemake ")


def test_a_choice_by_another_criterion_is_refused_also_without_the_merged_file(run):
    (run / "results" / "cohort_gmm.h5ad").unlink()
    path = run / "results" / "selection.tsv"
    path.write_text(path.read_text().replace("\taic\t", "\tbic\t"))
    assert refusal(run, run.parent / "kept").startswith("k was chosen by bic, not by aic: run snakemake ")


def test_damaged_tables_are_not_kept(run):
    (run / "results" / "scores.tsv").write_text("")
    assert refusal(run, run.parent / "kept") == (
        "results/scores.tsv holds no scores: it is empty; remove it and run again"
    )


def test_while_a_run_is_at_work_nothing_is_kept(run):
    held = lock_results("results")
    try:
        assert refusal(run, run.parent / "kept").startswith("a run is at work on results (process ")
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_a_copy_that_fails_leaves_nothing(run, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cohortgmm.pipeline.keep.shutil.copyfile", full)
    assert refusal(run, run.parent / "kept") == f"cannot write {run.parent}/kept: No space left on device"
    assert os.listdir(run.parent) == ["work"]
