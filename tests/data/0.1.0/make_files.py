"""Write the files of this folder with the installed cohortgmm: python make_files.py FOLDER."""

import json
import sys
from pathlib import Path

import anndata
import numpy as np

import cohortgmm

FEW = {"patient_col": "patient", "use_rep": "X_pca", "k_comps": [1, 2], "verbose": False}


def listed(model):
    """The parameters of a mixture for JSON, which keeps every digit of a float."""
    background = model.background and {
        "lower": model.background.lower.tolist(),
        "upper": model.background.upper.tolist(),
        "amp": float(model.background.amp),
    }
    arrays = {name: getattr(model, name).tolist() for name in ("weights", "means", "covariances")}
    return arrays | {"background": background}


def listed_fit(fit):
    scalars = ("log_likelihood", "n_iter", "converged", "n_unobserved", "completeness", "n_empty")
    weights = None if fit.patient_weights is None else fit.patient_weights.tolist()
    arrays = {"history": fit.history.tolist(), "floored": fit.floored.tolist(), "patient_weights": weights}
    return {"model": listed(fit.model), **{name: getattr(fit, name) for name in scalars}, **arrays}


def main(folder):
    rng = np.random.default_rng(0)
    clusters = [rng.normal(size=(50, 2)), rng.normal([6, 0], 0.5, size=(50, 2)), rng.uniform(-9, 9, size=(20, 2))]
    x = np.concatenate(clusters)[rng.permutation(120)]
    box = cohortgmm.Background([-9, -9], [9, 9])
    full = cohortgmm.fit_mixture(x, 2)
    diag = cohortgmm.fit_mixture(x, 2, covariance_type="diag")
    background = cohortgmm.fit_mixture(x, 2, background=box)
    noise = np.array([0.1, 0.1])
    selected = cohortgmm.fit_mixture(x, 2, noise=noise, completeness=lambda x: np.where(x[:, 0] > 3, 1.0, 0.5))
    shared = cohortgmm.MixtureFit(
        **{name: getattr(background, name) for name in background.__dataclass_fields__}
        | {"patient_weights": np.array([[0.25, 0.5], [0.125, 0.75]])}
    )
    expected = {"models": {}, "fits": {}, "uns": {}}
    for name, fit in (("full", full), ("diag", diag), ("background", background)):
        fit.model.save(folder / f"model_{name}.npz")
        expected["models"][f"model_{name}.npz"] = listed(fit.model)
    for name, fit in (("full", full), ("selected", selected), ("patient_weights", shared)):
        fit.save(folder / f"fit_{name}.npz")
        expected["fits"][f"fit_{name}.npz"] = listed_fit(fit)

    cells = np.zeros((120, 1), dtype=np.float32)
    patients = np.array(["a", "b/c", "d"]).repeat(40)
    cohort = anndata.AnnData(cells, obs={"patient": patients}, obsm={"X_pca": x})
    corrected = {"noise": noise, "background": {"lower": [-9, -9], "upper": [9, 9]}}
    options = {
        "specific": {"component_sharing": "sample_specific"},
        "global": {"component_sharing": "global"},
        "corrected": {"component_sharing": "sample_specific", "covariance_type": "diag", **corrected},
        "corrected_global": {"component_sharing": "global", **corrected},
    }
    for key, own in options.items():
        cohortgmm.fit_gmm(cohort, gmm_key=key, **FEW, **own)
        models = cohortgmm.read_gmm(cohort, key)
        expected["uns"][key] = {patient: listed(model) for patient, model in models.items()}
    cohort.obsm, cohort.obs = {}, cohort.obs[["patient"]]
    cohort.write_h5ad(folder / "cohort.h5ad")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
