"""Files that earlier versions wrote are read, with the numbers that these versions read themselves."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest

import cohortgmm

DATA = Path(__file__).parents[1] / "data"
EXPECTED = {
    folder.name: json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for folder in sorted(DATA.iterdir())
    if folder.is_dir()
}


def names(kind):
    return [
        pytest.param(version, name, id=f"{version}-{name}") for version in EXPECTED for name in EXPECTED[version][kind]
    ]


def check_mixture(model, expected):
    for name in ("weights", "means", "covariances"):
        np.testing.assert_array_equal(getattr(model, name), np.array(expected[name]))
    if expected["background"] is None:
        assert model.background is None
        return
    for name in ("lower", "upper", "amp"):
        np.testing.assert_array_equal(getattr(model.background, name), np.array(expected["background"][name]))


@pytest.mark.parametrize(("version", "name"), names("models"))
def test_models_are_read(version, name):
    check_mixture(cohortgmm.GaussianMixture.load(DATA / version / name), EXPECTED[version]["models"][name])


@pytest.mark.parametrize(("version", "name"), names("fits"))
def test_fits_are_read(version, name):
    fit, expected = cohortgmm.MixtureFit.load(DATA / version / name), dict(EXPECTED[version]["fits"][name])
    check_mixture(fit.model, expected.pop("model"))
    check_mixture(cohortgmm.GaussianMixture.load(DATA / version / name), EXPECTED[version]["fits"][name]["model"])
    weights = expected.pop("patient_weights")
    assert (fit.patient_weights is None) == (weights is None)
    if weights is not None:
        np.testing.assert_array_equal(fit.patient_weights, np.array(weights))
    for field, value in expected.items():
        np.testing.assert_array_equal(getattr(fit, field), np.array(value), err_msg=field)


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize(("version", "key"), names("uns"))
def test_mixtures_of_a_cohort_are_read(version, key, in_memory):
    path = DATA / version / "cohort.h5ad"
    models = cohortgmm.read_gmm(anndata.read_h5ad(path) if in_memory else path, key)
    expected = EXPECTED[version]["uns"][key]
    assert list(models) == list(expected)
    for patient, model in models.items():
        check_mixture(model, expected[patient])


def test_the_files_are_those_that_the_readme_promises():
    assert {len(EXPECTED["0.1.0"][kind]) for kind in ("models", "fits")} == {3}
    assert list(EXPECTED["0.1.0"]["uns"]) == ["specific", "global", "corrected", "corrected_global"]
    for version in EXPECTED:
        assert sum(path.stat().st_size for path in (DATA / version).iterdir()) < 300_000
