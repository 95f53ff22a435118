"""The settings of the examples hold on a real cohort: the demo."""

import anndata as ad
import numpy as np
import pytest
import yaml
from projects import REPOSITORY

from cohortgmm import fit_gmm
from cohortgmm.cohort.preprocess import preprocess
from cohortgmm.config import PreprocessConfig

DEMO = REPOSITORY / "resources" / "demo" / "liu2021_covid_pbmc.h5ad"


@pytest.fixture(scope="module")
def demo():
    """The demo in 10 dimensions, and a panel of its 30 genes with most counts."""
    counts = ad.read_h5ad(DEMO)
    most = np.argsort(-np.asarray(counts.X.sum(axis=0)).ravel())[:30]
    whole, panel = (preprocess(part.copy(), PreprocessConfig(n_pcs=10), 0) for part in (counts, counts[:, most]))
    return {"whole": whole, "panel": panel}


@pytest.mark.parametrize(
    ("example", "genes", "most_nll"),
    [
        ("example_counts", "whole", 22.7),
        ("example_counts", "panel", 12.8),
        ("example_embedding", "whole", 24.1),
        ("example_embedding", "panel", 14.5),
    ],
)
def test_no_component_at_the_floor_and_held_out_cells_are_likely(demo, example, genes, most_nll):
    options = yaml.safe_load((REPOSITORY / "config" / f"{example}.yaml").read_text())["gmm"]
    fit_gmm(demo[genes], patient_col="patient", use_rep="X_pca", verbose=False, **options)
    result = demo[genes].uns["gmm_X_pca"]
    assert np.sum(result["diagnostics"]["n_floored"]) == 0
    selection = result["selection"]
    if options.get("component_sharing") == "global":
        assert np.min(selection["scores"]["score"]) < most_nll
        assert options["k_comps"][0] < selection["best_k"] < options["k_comps"][-1]
        return
    best = selection["best_k_by_distribution"]
    scores = selection["scores_by_distribution"]
    held_out = [dict(zip(scores[p]["k"], scores[p]["validation_nll"], strict=True))[best[p]] for p in best]
    assert len(held_out) == 20
    assert np.mean(held_out) < most_nll
    assert np.max(held_out) < 1.3 * most_nll
