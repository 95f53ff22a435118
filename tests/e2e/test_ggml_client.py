"""The consumer: ggml-ot, in its own environment, trains on our files; and we read what it fitted itself.

`make ggml` makes that environment; COHORTGMM_GGML_PYTHON names its interpreter where it is elsewhere.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from corrected import ALL, make_corrected
from projects import make_cohort, new_project
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import cohortgmm
from cohortgmm.storage.names import COHORT, escape_id

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("ggml_client.py")
DEMO = ROOT / "resources" / "demo" / "liu2021_covid_pbmc.h5ad"
COLUMNS = ("--patient-col", "patient", "--label-col", "condition")
KEY = "gmm_X_pca"
FEW_PCS = {"n_pcs": 5}
FLOAT32 = {"rtol": 1e-6, "atol": 1e-6}  # what the client keeps

pytestmark = pytest.mark.pipeline
each_layout = pytest.mark.parametrize(
    ("sharing", "covariance_type"),
    [(sharing, kind) for sharing in ("sample_specific", "global") for kind in ("full", "diag")],
)


@pytest.fixture(scope="module")
def ggml_python() -> Path:
    """The interpreter of ggml-ot's environment."""
    python = Path(os.environ.get("COHORTGMM_GGML_PYTHON") or ROOT / ".venv-ggml" / "bin" / "python")
    if not python.is_file():
        reason = f"no ggml-ot environment ({python}): run `make ggml` or set COHORTGMM_GGML_PYTHON"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return python


@pytest.fixture(scope="module")
def client(ggml_python, tmp_path_factory):
    """Give a command to ggml_client.py, which stays in ggml-ot's environment; gives back its report."""
    errors = tmp_path_factory.mktemp("client") / "errors.log"
    with (
        errors.open("w") as log,
        subprocess.Popen(
            [ggml_python, CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):

        def run(*arguments) -> dict:
            process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, f"{arguments}\n{errors.read_text()[-3000:]}"
            return json.loads(answer)

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory) -> Path:
    """A working directory with the preprocessing done, of two patients of each condition of the demo."""
    demo = ad.read_h5ad(DEMO)
    patients = demo.obs.groupby("condition", observed=True)["patient"].unique()
    chosen = [patient for group in patients for patient in list(group)[:2]]
    directory = tmp_path_factory.mktemp("cohort")
    demo[demo.obs["patient"].isin(chosen)].copy().write_h5ad(directory / "four.h5ad")
    run_pipeline(directory, "four.h5ad", preprocess=FEW_PCS, gmm={}, target="results/preprocessed/cohort.h5ad")
    return directory


def checked(command, **options) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def run_pipeline(
    directory: Path, cohort: str, *, preprocess: dict, gmm: dict, target="results/cohort_gmm.h5ad"
) -> Path:
    """The file that the workflow makes of a cohort in a working directory."""
    config = {"input": cohort, "patient_col": "patient", "label_col": "condition"}
    config |= {"preprocess": preprocess, "gmm": gmm}
    file = directory / "config.yaml"
    file.write_text(json.dumps(config))
    call = [sys.executable, "-m", "snakemake", "--directory", directory, "--configfile", file, "--cores", 2, target]
    checked(call, cwd=ROOT)
    return directory / target


def patient_means(file: Path) -> dict[str, np.ndarray]:
    """Mean responsibilities of every patient's cells as the file holds them."""
    adata = ad.read_h5ad(file)
    ids = adata.obs["patient"].astype(str).to_numpy()
    return {patient: adata.obsm[f"{KEY}_resp"][ids == patient].mean(axis=0) for patient in np.unique(ids)}


def check_seen(report: dict, arrays_file: Path, models: dict[str, cohortgmm.GaussianMixture]) -> None:
    """What the client trained on is ``models``, patient by patient, and it learned something finite."""
    with np.load(arrays_file) as file:
        seen = dict(file)
    assert set(report["patients"]) == set(models)
    assert report["learned_finite"]
    assert report["learned_shape"] == [2, next(iter(models.values())).n_features]
    np.testing.assert_allclose(report["weight_sums"], 1, rtol=1e-6)
    for i, patient in enumerate(report["patients"]):
        model = models[patient]
        k = model.n_components
        means = seen["supports"] if report["shared"] else seen["supports"][i]
        covariances = seen["covariances"] if report["shared"] else seen["covariances"][i]
        np.testing.assert_allclose(means[:k], model.means, **FLOAT32)
        np.testing.assert_allclose(covariances[:k], model.full_covariances, **FLOAT32)
        np.testing.assert_allclose(seen["weights"][i, :k], model.weights, **FLOAT32)
        assert not seen["weights"][i, k:].any()


@each_layout
def test_client_trains_on_what_the_pipeline_wrote(client, preprocessed, tmp_path, sharing, covariance_type):
    shutil.copytree(preprocessed, tmp_path, dirs_exist_ok=True)
    gmm = {"k_comps": [2, 3], "component_sharing": sharing, "covariance_type": covariance_type, "refit": "full"}
    file = run_pipeline(tmp_path, "four.h5ad", preprocess=FEW_PCS, gmm=gmm)
    report = client("read", file, tmp_path / "seen.npz", *COLUMNS)
    assert report["shared"] == (sharing == "global")
    obs = ad.read_h5ad(file, backed="r").obs
    conditions = obs.groupby("patient", observed=True)["condition"].first().astype(str)
    assert sorted(set(conditions)) == ["HC", "Severe"]
    assert [["HC", "Severe"][label] for label in report["labels"]] == conditions[report["patients"]].tolist()
    # What the refit jobs wrote, not what went through the layout of the file.
    stems = {patient: COHORT if sharing == "global" else escape_id(patient) for patient in report["patients"]}
    folder = tmp_path / "results" / "models"
    models = {patient: cohortgmm.GaussianMixture.load(folder / f"{stem}.npz") for patient, stem in stems.items()}
    if sharing == "global":
        weights = patient_means(file)
        models = {
            patient: cohortgmm.GaussianMixture(weights[patient], model.means, model.covariances)
            for patient, model in models.items()
        }
        assert np.ptp([model.weights for model in models.values()], axis=0).max() > 0.01
    check_seen(report, tmp_path / "seen.npz", models)
    check_seen(report, tmp_path / "seen.npz", cohortgmm.read_gmm(file, KEY))


INTEGERS = [3, 10, 20, 101]  # sorted as text they come in another order
TEXTS = ["a b/c", "A=2Fb", ".", "é '\""]


def synthetic(ids: list, n: int = 60) -> ad.AnnData:
    """Patient i has two groups of cells in unequal shares, at 10 i and 10 i + 5."""
    rng = np.random.default_rng(0)
    group = np.concatenate([np.arange(n) < (i + 1) * n // (len(ids) + 1) for i in range(len(ids))])
    x = rng.normal(size=(n * len(ids), 2)) + 10 * np.repeat(np.arange(len(ids)), n)[:, None] + 5 * group[:, None]
    obs = pd.DataFrame({"patient": np.repeat(ids, n)}, index=[f"cell{i}" for i in range(len(x))])
    obs["condition"] = np.repeat([["case", "control"][i % 2] for i in range(len(ids))], n)
    return ad.AnnData(np.zeros((len(x), 1), dtype=np.float32), obs=obs, obsm={"X_pca": x})


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_integer_ids_reach_the_client(client, tmp_path, sharing):
    adata = synthetic(INTEGERS)
    k = 2 if sharing == "sample_specific" else 4
    cohortgmm.fit_gmm(adata, patient_col="patient", use_rep="X_pca", component_sharing=sharing, k_comps=k)
    adata.write_h5ad(tmp_path / "cohort.h5ad")
    report = client("read", tmp_path / "cohort.h5ad", tmp_path / "seen.npz", *COLUMNS)
    assert report["patients"] == ["3", "10", "20", "101"]
    check_seen(report, tmp_path / "seen.npz", cohortgmm.read_gmm(tmp_path / "cohort.h5ad"))
    with np.load(tmp_path / "seen.npz") as seen:
        # Of whichever layout, the mean of a patient's mixture is where the patient's cells are.
        means = np.einsum(
            "pk,pkd->pd" if sharing == "sample_specific" else "pk,kd->pd", seen["weights"], seen["supports"]
        )
    truth = [adata.obsm["X_pca"][(adata.obs["patient"] == patient).to_numpy()].mean(axis=0) for patient in INTEGERS]
    np.testing.assert_allclose(means, truth, atol=0.01 if sharing == "sample_specific" else 2)


def test_ids_with_spaces_and_slashes_reach_the_client(client, tmp_path):
    adata = synthetic(TEXTS)
    adata.write_h5ad(tmp_path / "input.h5ad")
    file = run_pipeline(tmp_path, "input.h5ad", preprocess={"enabled": False}, gmm={"k_comps": [1, 2]})
    report = client("read", file, tmp_path / "seen.npz", *COLUMNS)
    assert set(report["patients"]) == set(TEXTS)
    models = {patient: tmp_path / "results" / "models" / f"{escape_id(patient)}.npz" for patient in TEXTS}
    models = {patient: cohortgmm.GaussianMixture.load(path) for patient, path in models.items()}
    check_seen(report, tmp_path / "seen.npz", models)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize(("sharing", "covariance_type"), [("sample_specific", "full"), ("global", "diag")])
def test_client_reads_the_components_of_corrected_mixtures(client, tmp_path, sharing, covariance_type):
    """It knows neither noise nor background: what it reads are the components, with weights that sum to one."""
    adata = make_corrected(("P1", "P2", "P3", "P4"))
    options = ALL | {"component_sharing": sharing, "covariance_type": covariance_type, "k_comps": [1, 2]}
    cohortgmm.fit_gmm(adata, patient_col="patient", use_rep="X_pca", verbose=False, **options)
    assert {"noise", "background"} <= adata.uns[KEY].keys()
    adata.write_h5ad(tmp_path / "cohort.h5ad")
    report = client("read", tmp_path / "cohort.h5ad", tmp_path / "seen.npz", *COLUMNS)
    assert report["shared"] == (sharing == "global")
    models = cohortgmm.read_gmm(tmp_path / "cohort.h5ad")
    assert max(model.background.amp for model in models.values()) > 0.01
    check_seen(
        report, tmp_path / "seen.npz", {patient: model.without_background() for patient, model in models.items()}
    )


@each_layout
def test_mixtures_of_the_client_are_read(client, tmp_path, sharing, covariance_type):
    demo = ad.read_h5ad(DEMO)
    demo.obsm["X_pca"] = demo.obsm["X_pca"][:, :4]
    chosen = demo.obs["patient"].isin(["HDML", "IM000040", "HGR0000074"])
    demo[chosen.to_numpy()].copy().write_h5ad(tmp_path / "input.h5ad")
    options = ("--component-sharing", sharing, "--covariance-type", covariance_type, "--k-comps", "2", "3", "4")
    client("write", tmp_path / "input.h5ad", tmp_path / "fitted.h5ad", *COLUMNS, *options)
    models = cohortgmm.read_gmm(tmp_path / "fitted.h5ad", KEY)
    ids, stored = stored_arrays(tmp_path / "fitted.h5ad")
    assert list(models) == ids
    assert sorted(ids) == ["HDML", "HGR0000074", "IM000040"]
    cells = ad.read_h5ad(tmp_path / "fitted.h5ad")
    for i, (patient, model) in enumerate(models.items()):
        k = int(stored["distribution_n_components"][i])
        assert model.n_components == k
        assert model.weights.sum() == pytest.approx(1, abs=1e-12)
        x = cells.obsm["X_pca"][(cells.obs["patient"] == patient).to_numpy()].astype(float)
        row = 0 if sharing == "global" else i  # ggml-ot keeps an axis for the one set of components that all share
        mu, var = stored["mu"][row], stored["var"][row]
        densities = [multivariate_normal(mu[j], var[j]).logpdf(x) for j in range(k)]
        expected = logsumexp(np.stack(densities, axis=1), axis=1, b=stored["distribution_weights"][i, :k])
        np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_the_lines_that_a_run_ends_with_train_ggml_where_patients_are_left_out(client, tmp_path, covariance_type):
    """Unused categories, patients that are too small, names that need quotes."""
    cohort = make_cohort(("P1", "{P2}", "P3", "P4"), n_cells=60, n_features=70)
    tiny = cohort[:5].copy()
    tiny.obs["patient"], tiny.obs_names = "tiny", [f"tiny {i}" for i in range(5)]
    cohort = ad.concat([cohort, tiny])
    cohort.obs['the "patient" {x}'] = pd.Categorical(cohort.obs.pop("patient")).add_categories(["nobody"])
    project = new_project(tmp_path / "in {x}", ROOT, cohort)
    project.configure(
        patient_col='the "patient" {x}',
        on_small_patient="drop",
        gmm={"k_comps": [1, 2], "gmm_key": "my key", "covariance_type": covariance_type},
    )
    run = project.call("results/cohort_gmm.h5ad")
    assert run.returncode == 0, run.stderr
    assert "- 1 of 5 patients left out: 'tiny' (5 cells, min_cells is 20); the whole list is in" in run.stderr
    printed = run.stderr.partition("To train ggml_ot on the mixtures:\n")[2].partition("Finished.")[0]
    program = textwrap.dedent(printed) + "print(sorted(set(adata.obs['the \"patient\" {x}'])), dataset.map_A)"
    assert "].copy()  # without patients left out" in program
    (tmp_path / "program.py").write_text(program)
    printed = client("run", tmp_path / "program.py")["printed"]
    assert printed.splitlines()[-1].startswith("['P1', 'P3', 'P4', '{P2}']")
    models = cohortgmm.read_gmm(project.directory / "results" / "cohort_gmm.h5ad", "my key")
    assert sorted(models) == ["P1", "P3", "P4", "{P2}"]
    assert {model.covariance_type for model in models.values()} == {covariance_type}


def stored_arrays(file: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Patient ids and arrays of a mixture as they are in the file, read without cohortgmm."""
    with h5py.File(file) as h5:
        group = h5["uns"][KEY]
        ids = group["weight_inference/distribution_ids"].asstr()[:].tolist()
        arrays = {name: group["model"][name][:] for name in ("mu", "var")}
        arrays |= {name: group[name][:] for name in ("distribution_weights", "distribution_n_components")}
    return ids, arrays
