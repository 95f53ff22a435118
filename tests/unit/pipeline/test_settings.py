"""What the Snakefile asks of the configuration: its files, its keys, the results folder, the jobs' environment."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.errors import CohortgmmError, ConfigError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.pipeline import settings as helpers
from cohortgmm.pipeline.job import ATTEMPT_VARIABLE, LEVEL_VARIABLE

CONFIG = {"input": "data/cohort.h5ad", "patient_col": "patient"}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory, which is the current one, and a workflow's folder."""
    for name in ("work", "flow"):
        (tmp_path / name / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return types.SimpleNamespace(work=tmp_path / "work", flow=tmp_path / "flow")


def test_files_are_found_in_the_working_directory_first(places):
    (places.flow / "data" / "cohort.h5ad").touch()
    (places.flow / "sheet.tsv").touch()
    found = helpers.load_config(CONFIG | {"patients": "sheet.tsv"}, "c.yaml", places.flow)
    assert found.input == str(places.flow / "data" / "cohort.h5ad")
    assert found.patients == str(places.flow / "sheet.tsv")
    (places.work / "data" / "cohort.h5ad").touch()
    found = helpers.load_config(CONFIG | {"patients": "sheet.tsv"}, "c.yaml", places.flow)
    assert found.input == "data/cohort.h5ad"
    assert found.patients == str(places.flow / "sheet.tsv")


def test_an_absolute_path_is_taken_as_it_is(places):
    (places.work / "x.h5ad").touch()
    config = CONFIG | {"input": str(places.work / "x.h5ad")}
    assert helpers.load_config(config, "c.yaml", places.flow).input == str(places.work / "x.h5ad")
    assert helpers.load_config(config, "c.yaml", places.flow).patients is None


def test_all_missing_files_are_named_at_once(places):
    (places.work / "data" / "cohort.h5ad").mkdir()  # a folder is no file
    with pytest.raises(ConfigError) as caught:
        helpers.load_config(CONFIG | {"patients": "sheet.tsv"}, "c.yaml", places.flow)
    assert str(caught.value).splitlines() == [
        "c.yaml: input: data/cohort.h5ad is a folder, not a file",
        f"c.yaml: patients: no such file: sheet.tsv (looked in {places.work})",
    ]


def test_a_bad_key_comes_before_a_missing_file(places):
    with pytest.raises(ConfigError, match=r"^c\.yaml: inptu: unknown key; did you mean input\?$"):
        helpers.load_config(CONFIG | {"inptu": 1}, "c.yaml", places.flow)


# Files of the corrections

CORRECTED = {
    "noise": {"obsm": "v", "at": "noise.py:noise"},
    "completeness": {"function": "data/seen.py:seen"},
    "reference": "atlas.npz",
}
ATLAS = GaussianMixture([0.25, 0.75], [[0.0], [5.0]], [[[1.0]], [[2.0]]])


@pytest.fixture
def corrected(places):
    """Every file that the corrections name, the function in the workflow's folder; gives back the places."""
    (places.work / "data" / "cohort.h5ad").touch()
    (places.work / "noise.py").touch()
    (places.flow / "data" / "seen.py").touch()
    ATLAS.save(places.work / "atlas.npz")
    return places


def test_files_of_corrections_are_found_like_the_input(corrected):
    found = helpers.load_config(CONFIG | {"gmm": CORRECTED}, "c.yaml", corrected.flow)
    seen = str(corrected.flow / "data" / "seen.py")
    assert found.gmm.noise.at == "noise.py:noise"
    assert found.gmm.noise.obsm == "v"
    assert found.gmm.completeness.function == f"{seen}:seen"
    assert found.gmm.reference == "atlas.npz"
    assert sorted(found.gmm.files.values()) == sorted(["atlas.npz", "noise.py", seen])
    assert found.input == "data/cohort.h5ad"
    (corrected.work / "data" / "seen.py").touch()
    found = helpers.load_config(CONFIG | {"gmm": CORRECTED}, "c.yaml", corrected.flow)
    assert found.gmm.completeness.function == "data/seen.py:seen"
    absolute = {"completeness": {"function": f"{seen}:seen"}}
    assert helpers.load_config(CONFIG | {"gmm": absolute}, "c.yaml", corrected.flow).gmm.files == {
        "gmm.completeness.function": seen
    }


def test_functions_of_modules_are_no_files(corrected):
    gmm = {"completeness": {"function": "no_such.module:seen"}}
    found = helpers.load_config(CONFIG | {"gmm": gmm}, "c.yaml", corrected.flow)
    assert found.gmm.files == {}
    assert found.gmm.completeness.function == "no_such.module:seen"


def test_missing_files_of_corrections_are_named_with_the_others(places):
    with pytest.raises(ConfigError) as caught:
        helpers.load_config(CONFIG | {"gmm": CORRECTED}, "c.yaml", places.flow)
    assert str(caught.value).splitlines() == [
        f"c.yaml: {key}: no such file: {name} (looked in {places.work})"
        for key, name in (
            ("input", "data/cohort.h5ad"),
            ("gmm.reference", "atlas.npz"),
            ("gmm.noise.at", "noise.py"),
            ("gmm.completeness.function", "data/seen.py"),
        )
    ]


def test_k_is_that_of_the_reference(corrected):
    found = helpers.load_config(CONFIG | {"gmm": {"reference": "atlas.npz"}}, "c.yaml", corrected.flow)
    assert (found.gmm.k_comps, found.gmm.candidates, found.gmm.effective_train_size) == (2, (2,), 1.0)
    assert found.split_options()["smallest_k"] == 2
    assert found.split_options()["train_size"] == 1.0
    for gmm, line in (
        ({"k_comps": [2, 3]}, "gmm.k_comps: the reference has 2 components: leave k_comps out"),
        ({"covariance_type": "diag"}, "gmm.covariance_type is diag, that of the reference full"),
    ):
        with pytest.raises(ConfigError) as caught:
            helpers.load_config(CONFIG | {"gmm": gmm | {"reference": "atlas.npz"}}, "c.yaml", corrected.flow)
        assert str(caught.value) == f"c.yaml: {line}"


def test_a_reference_that_holds_no_mixture_is_named(corrected):
    (corrected.work / "atlas.npz").write_text("weights\tmeans\n")
    with pytest.raises(CohortgmmError, match=r"^atlas\.npz holds no mixture: not a readable \.npz file"):
        helpers.load_config(CONFIG | {"gmm": {"reference": "atlas.npz"}}, "c.yaml", corrected.flow)


def test_other_jobs_know_nothing_of_the_corrections_files(corrected):
    """What a job's parameters hold of them is the path, which the file's content does not change."""
    before = helpers.load_config(CONFIG | {"gmm": CORRECTED}, "c.yaml", corrected.flow)
    (corrected.flow / "data" / "seen.py").write_text("def seen(x):\n    return 1\n")
    GaussianMixture(ATLAS.weights, 2 * ATLAS.means, ATLAS.covariances).save(corrected.work / "atlas.npz")
    after = helpers.load_config(CONFIG | {"gmm": CORRECTED}, "c.yaml", corrected.flow)
    assert fit_options(after.gmm) == fit_options(before.gmm)
    assert after.split_options() == before.split_options()


def test_a_results_folder_that_can_be_used(tmp_path, monkeypatch):
    helpers.check_results_folder(tmp_path)
    helpers.check_results_folder(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    helpers.check_results_folder("results")
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_cannot_be_used(tmp_path, monkeypatch):
    file = tmp_path / "results"
    file.write_text("")
    with pytest.raises(CohortgmmError) as caught:
        helpers.check_results_folder(file)
    assert str(caught.value) == f"results cannot be written: {file} is not a folder; choose another with --directory"
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(CohortgmmError, match=f"results cannot be written: {tmp_path} is not writable"):
            helpers.check_writable(folder)


def test_results_that_are_a_link(tmp_path, monkeypatch):
    """To another disk: taken. To nowhere, or to a file: told in one line."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "results"
    link.symlink_to(tmp_path / "disk")
    helpers.check_writable(link)
    link.unlink()
    link.symlink_to("/nowhere/disk")
    for check in (helpers.check_results_folder, helpers.check_writable):
        with pytest.raises(CohortgmmError) as caught:
            check(link)
        assert str(caught.value) == (
            f"results cannot be written: {link} is a link to /nowhere/disk, which does not exist: make that folder, or "
            "remove the link"
        )
    link.unlink()
    (tmp_path / "file").touch()
    link.symlink_to(tmp_path / "file")
    with pytest.raises(CohortgmmError, match="is not a folder; choose another with --directory"):
        helpers.check_results_folder(link)


def test_a_dry_run_does_not_ask_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    helpers.check_results_folder(tmp_path)
    with pytest.raises(CohortgmmError, match="is not writable"):
        helpers.check_writable(tmp_path)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("results/models/P1.npz", "results/models/P1.npz"),
        ("results/fits/P1/k1.json", "results/fits/P1/k1.json"),
        ("results/scores.tsv", "results/scores.tsv"),
        ("other.npz", "other.npz"),
        ("results", "results/."),
    ],
)
def test_a_target_among_the_configurations_is_told(tmp_path, monkeypatch, target, shown):
    monkeypatch.chdir(tmp_path)
    for path in (target, tmp_path / target):
        with pytest.raises(ConfigError) as caught:
            helpers.check_targets([tmp_path / "my config.yaml", path])
        assert str(caught.value).startswith(
            f"{shown if target != 'other.npz' else path} was taken for a configuration: "
        )
        assert str(caught.value).endswith(
            f"snakemake --configfile '{tmp_path}/my config.yaml' -- {shown if target != 'other.npz' else path}"
        )
    helpers.check_targets([])
    helpers.check_targets(["a.yaml", tmp_path / "b.yml", "c.json"])


@pytest.mark.parametrize(
    ("arguments", "attempt"), [(["snakemake", "--cores", "1", "--attempt", "3", "-n"], "3"), (["snakemake"], "1")]
)
def test_jobs_know_which_attempt_they_are(monkeypatch, arguments, attempt):
    for name in ("PYTHONPATH", LEVEL_VARIABLE, ATTEMPT_VARIABLE):
        monkeypatch.setenv(name, "before")
    monkeypatch.setattr("sys.argv", arguments)
    helpers.prepare_jobs("/source", verbose=False)
    assert os.environ[ATTEMPT_VARIABLE] == attempt
    assert os.environ[LEVEL_VARIABLE] == "WARNING"
    assert os.environ["PYTHONPATH"] == f"/source{os.pathsep}before"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\ngmm: {}\nseed: 2\n", "the key seed is given twice, in lines 1 and 3: remove one of them"),
        ("seed: 1\n'seed': 2\n", "the key seed is given twice, in lines 1 and 2: remove one of them"),
        ("gmm:\n  tol: 1\n  noise: {obsm: a, obsm: b}\n", "the key gmm.noise.obsm is given twice, in line 3: remove"),
        (
            "gmm: {completeness: {gates: [{inside: {PC1: [0, 1],\n PC2: [0, 1],\n PC1: [2, 3]}}]}}",
            "the key gmm.completeness.gates.0.inside.PC1 is given twice, in lines 1 and 3: remove one of them",
        ),
        ('{"seed": 1,\n\t"seed": 2}', "the key seed is given twice in the same place: remove one of them"),
    ],
)
def test_a_key_that_is_given_twice(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        helpers.check_config_files([tmp_path / "c.yaml"])
    assert str(caught.value).startswith(f"{tmp_path}/c.yaml: {said}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- a\n",
        "a: [1\n",
        "\ta: 1",
        "x: &x {a: 1}\ny:\n  <<: *x\n  a: 2\n",
        "x: &x\n  y: *x\n",
        "1: a\n'1': b\n",
        "a: {c: 1}\nb: {c: 1}\n",
    ],
)
def test_configurations_without_repeated_keys(tmp_path, text):
    """A file that is not a configuration is reported by its reader."""
    (tmp_path / "c.yaml").write_text(text)
    helpers.check_config_files([tmp_path / "c.yaml", tmp_path / "not there"])


@pytest.mark.parametrize(
    ("anndata", "pandas", "refused"),
    [
        ("0.12.6", "3.0.0", True),
        ("0.11.4", "3.1.1", True),
        ("0.12.7", "3.0.0", False),
        ("0.13.4", "3.1.1", False),
        ("0.13.0rc1", "4.0", False),
        ("0.11.4", "2.3.3", False),
        ("0.12.6", "2.2.0", False),
        ("0.11.4", None, False),
        (None, "3.1.1", False),
    ],
)
def test_packages_that_cannot_write_together_are_refused(anndata, pandas, refused, monkeypatch, tmp_path):
    def version(name):
        found = {"anndata": anndata, "pandas": pandas}[name]
        if found is None:
            raise helpers.PackageNotFoundError(name)
        return found

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(helpers, "version", version)
    if not refused:
        helpers.check_surroundings(tmp_path)
        return
    with pytest.raises(ConfigError, match=rf"^anndata {anndata} cannot write the texts of pandas {pandas}: install"):
        helpers.check_surroundings(tmp_path)


def test_settings_of_matplotlib_that_are_no_text_are_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matplotlibrc").write_text("axes.titlesize: 3  # größer\n", encoding="utf-8")
    helpers.check_surroundings(tmp_path)
    (tmp_path / "matplotlibrc").write_text("axes.titlesize: 3  # größer\n", encoding="latin-1")
    with pytest.raises(ConfigError, match=r"matplotlibrc: matplotlib reads it, but it is not UTF-8"):
        helpers.check_surroundings(tmp_path)


def test_jobs_load_matplotlib_whatever_the_user_has_set(monkeypatch, tmp_path):
    environment = dict(os.environ)
    try:
        (tmp_path / "rc").write_bytes(bytes(range(128, 256)))
        os.environ |= {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(tmp_path / "rc")}
        helpers.prepare_jobs(sys.path[0], verbose=False)
        program = "import matplotlib.figure, matplotlib; print(matplotlib.rcParams['backend'])"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stdout.split() == ["agg"]
    finally:
        os.environ.clear()
        os.environ.update(environment)


@pytest.mark.parametrize("name", ["a {x}", "{", "}"])
def test_a_folder_of_the_workflow_with_braces_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^the workflow's folder has braces in its name.*rename") as error:
        helpers.check_surroundings(tmp_path / name)
    assert "\n" not in str(error.value)
    helpers.check_surroundings(tmp_path / "a <b> %s é $x")


def test_a_job_does_not_look_again_whether_an_input_is_a_result(places):
    (places.work / "results").mkdir()
    (places.work / "results" / "c.h5ad").touch()
    config = CONFIG | {"input": "results/c.h5ad"}
    with pytest.raises(ConfigError, match=r"^c\.yaml: input: results/c\.h5ad "):
        helpers.load_config(config, "c.yaml", places.flow)
    assert helpers.load_config(config, "c.yaml", places.flow, refuse_results=False).input == "results/c.h5ad"
