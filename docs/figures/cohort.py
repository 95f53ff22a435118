"""The figure of the README: the mixtures of the demo's donors, each in the plane of the first two components.

python docs/figures/cohort.py RESULTS resources/readme/cohort.png
"""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch

import cohortgmm
from cohortgmm.plots.style import our_style

#: Families of the demo's cell types by the beginning of their names, with a colour each.
FAMILIES = {
    "monocytes": (("Mono", "DC", "pDC"), "#0072B2"),
    "B cells": (("B_", "Plasmablast"), "#D55E00"),
    "T and NK cells": (("CD4", "CD8", "T_", "NK", "MAIT"), "#009E73"),
    "others": (("",), "#999999"),
}


def family_of(cell_type: str) -> str:
    """The family that a cell type belongs to."""
    return next(name for name, (starts, _) in FAMILIES.items() if cell_type.startswith(starts))


def draw(axes, x: np.ndarray, families: np.ndarray, resp: np.ndarray, model: cohortgmm.GaussianMixture) -> None:
    """Cells by family; components at two standard deviations, in the colour of the family of most of their cells."""
    axes.scatter(*x.T, s=3, c=[FAMILIES[family][1] for family in families], alpha=0.55, linewidths=0)
    names = list(FAMILIES)
    shares = np.stack([resp[families == name].sum(axis=0) for name in names])
    for k in range(model.n_components):
        values, vectors = np.linalg.eigh(model.covariances[k][:2, :2])
        angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))
        width, height = (4 * np.sqrt(values[::-1])).tolist()
        colour = FAMILIES[names[shares[:, k].argmax()]][1]
        ellipse = Ellipse(tuple(model.means[k, :2]), width, height, angle=angle, fill=False, ec=colour, lw=1.4)
        axes.add_patch(ellipse)


def figure(adata: ad.AnnData) -> Figure:
    """A panel for every donor, the healthy ones first."""
    key = "gmm_X_pca"
    models = cohortgmm.read_gmm(adata, key)
    conditions = adata.obs.groupby("patient", observed=True)["condition"].first().astype(str)
    donors = sorted(models, key=lambda donor: (conditions[donor], donor))
    families = np.array([family_of(name) for name in adata.obs["cell_type"].astype(str)])
    fig = Figure(figsize=(11, 6.6), layout="constrained")
    rows = fig.subplots(4, 5, sharex=True, sharey=True)
    for axes, donor in zip(rows.flat, donors, strict=True):
        own = (adata.obs["patient"] == donor).to_numpy()
        model = models[donor]
        resp = adata.obsm[f"{key}_resp"][own][:, : model.n_components]
        draw(axes, adata.obsm["X_pca"][own, :2], families[own], resp, model)
        title = {"HC": "healthy", "Severe": "severe"}[conditions[donor]]
        axes.set_title(f"{donor}, {title}: k = {model.n_components}", fontsize=8.5, loc="left")
        axes.tick_params(labelsize=7)
        axes.set(xlim=(-18, 32), ylim=(-25, 19))
    fig.supxlabel("PC1", fontsize=8)
    fig.supylabel("PC2", fontsize=8)
    handles = [Patch(color=colour, label=name) for name, (_, colour) in FAMILIES.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return fig


def main(results: str, target: str) -> None:
    """Draw the results of the demo."""
    with our_style():
        figure(ad.read_h5ad(Path(results) / "cohort_gmm.h5ad")).savefig(target, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
