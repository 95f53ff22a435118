"""A small cohort whose cells were measured with noise and gaps, sorted by a gate, and mixed with debris."""

import anndata as ad
import numpy as np
import pandas as pd

#: Where cells are kept, and the box of the debris.
GATE = {"PC1": [-1.0, None]}
BOX = (-4.0, 10.0)

#: All corrections at once, as the configuration says it; short runs of EM, as the tests compare and do not converge.
ALL = {
    "noise": {"obsm": "X_pca_var"},
    "missing": True,
    "completeness": {"gates": [{"inside": GATE}]},
    "background": {"lower": BOX[0], "upper": BOX[1], "amp": 0.05},
    "max_iter": 30,
    "tol": 1e-4,
    "n_init": 2,
}


def make_corrected(patients=("P1", "P2", "P3"), n_cells=80, n_features=2, seed=0) -> ad.AnnData:
    """Two groups of cells per patient, 5 apart, in ``obsm["X_pca"]``; each patient's do not depend on the others.

    Behind the noise (variances in ``obsm["X_pca_var"]``) each group is a normal of variance 1; every tenth cell is
    debris; only cells in :data:`GATE` are there; a fifth of the values beyond the first feature are missing.
    """
    blocks, noises, names = [], [], []
    for patient in patients:
        rng = np.random.default_rng([seed, *str(patient).encode()])
        n = 4 * n_cells
        noise = rng.uniform(0.1, 0.6, size=(n, n_features))
        x = rng.normal(size=(n, n_features)) + 5.0 * (np.arange(n) % 2)[:, None]
        debris = np.arange(n) % 10 == 0
        x[debris] = rng.uniform(*BOX, size=(debris.sum(), n_features))
        x += np.sqrt(noise) * rng.normal(size=x.shape)
        kept = np.flatnonzero(x[:, 0] >= GATE["PC1"][0] + 1e-3)[:n_cells]  # also once they are rounded to float32
        x, noise = x[kept], noise[kept]
        x[:, 1:][rng.random((n_cells, n_features - 1)) < 0.2] = np.nan
        blocks.append(x)
        noises.append(noise)
        names += [f"{patient}:{i:03d}" for i in range(n_cells)]
    obs = pd.DataFrame(
        {
            "patient": np.repeat(np.array(patients, dtype=object), n_cells),
            "condition": np.repeat(np.where(np.arange(len(patients)) % 2, "sick", "well"), n_cells),
            "cell_type": np.where(np.concatenate(blocks)[:, 0] > 2.5, "T", "B"),
        },
        index=names,
    )
    x = np.concatenate(blocks).astype(np.float32)
    noise = np.concatenate(noises).astype(np.float32)
    return ad.AnnData(np.zeros((len(x), 1), dtype=np.float32), obs=obs, obsm={"X_pca": x, "X_pca_var": noise})
