"""Mixtures out of ``uns``: every array is held against what the layout says, every mixture against what one is."""

import copy

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cohortgmm
from cohortgmm.errors import DataError


def layout(*, shared=False, n_patients=3, k=3, d=3, kind="full"):
    """Square in every way: as many patients as components as features."""
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(n_patients, k, d))
    var = rng.uniform(0.5, 1.0, size=(n_patients, k, d))[..., None] * np.eye(d)
    weights = rng.dirichlet(np.ones(k), size=n_patients)
    return {
        "component_sharing": "global" if shared else "sample_specific",
        "covariance_type": kind,
        "distribution_n_components": [k] * n_patients,
        "model": {
            "mu": mu[0] if shared else mu,
            "var": var[0] if shared else var,
            "pi": weights[:1] if shared else weights,
        },
        "distribution_weights": weights,
        "weight_inference": {"distribution_ids": [f"P{i}" for i in range(n_patients)]},
    }


def read(stored):
    return cohortgmm.read_gmm(ad.AnnData(np.zeros((1, 1)), obs=pd.DataFrame(index=["c"]), uns={"gmm": stored}))


def changed(stored, path, value):
    stored = copy.deepcopy(stored)
    *groups, name = path.split("/")
    place = stored
    for group in groups:
        place = place[group]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return stored


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("leading_axis", [False, True])
@pytest.mark.parametrize("variances", [False, True])
def test_arrays_that_are_square_in_every_way_have_one_meaning(shared, leading_axis, variances):
    stored = layout(shared=shared, kind="diag" if variances else "full")
    mu, var = stored["model"]["mu"], stored["model"]["var"]
    if variances:
        stored["model"]["var"] = var = np.diagonal(var, axis1=-2, axis2=-1).copy()
    if leading_axis and shared:
        stored["model"] |= {"mu": mu[None], "var": var[None]}
    models = read(stored)
    for i, patient in enumerate(models):
        own = () if shared else (i,)
        assert np.array_equal(models[patient].means, mu[own])
        assert np.array_equal(models[patient].covariances, var[own])
        assert np.array_equal(models[patient].weights, stored["distribution_weights"][i])


@pytest.mark.parametrize("dtype", ["f4", ">f8", "f2"])
def test_arrays_of_other_types_are_read(dtype):
    stored = layout()
    for path in ("model/mu", "model/var", "distribution_weights"):
        group, _, name = path.rpartition("/")
        array = (stored[group] if group else stored)[name]
        stored = changed(stored, path, array.astype(dtype))
    for model in read(stored).values():
        assert model.means.dtype == np.float64
        assert model.weights.sum() == pytest.approx(1.0, abs=1e-6)


def test_without_counts_padding_is_left_out():
    stored = layout()
    stored["distribution_weights"][1] = stored["model"]["pi"][1] = [0.5, 0.5, 0.0]
    stored["model"]["var"][1, 2] = 0.0
    models = read(changed(stored, "distribution_n_components", None))
    assert [model.n_components for model in models.values()] == [3, 2, 3]


BAD = {
    "weights that do not sum to one": (
        "distribution_weights",
        np.full((3, 3), 0.3),
        "uns['gmm'], patient 'P0': weights of the mixture must sum to one, got 0.9: divide them by their sum",
    ),
    "negative weights": (
        "distribution_weights",
        np.tile([1.5, -0.5, 0.0], (3, 1)),
        "uns['gmm'], patient 'P0': weights",
    ),
    "weights of others": ("distribution_weights", np.full((2, 3), 1 / 3), "uns['gmm'] has weights of shape (2, 3)"),
    "complex weights": (
        "distribution_weights",
        np.full((3, 3), 1 / 3 + 0j),
        "uns['gmm']: weights must hold real numbers",
    ),
    "means without patients": ("model/mu", np.zeros((3, 3)), "uns['gmm'] has means of shape (3, 3) for 3 patients"),
    "means of others": ("model/mu", np.zeros((2, 3, 3)), "uns['gmm'] has means of shape (2, 3, 3) for 3 patients"),
    "no numbers": ("model/mu", np.full((3, 3, 3), "x"), "uns['gmm']: means must hold real numbers"),
    "covariances of others": ("model/var", np.ones((3, 3)), "uns['gmm'] has covariances of shape (3, 3) for means of"),
    "covariances of one": ("model/var", np.tile(np.eye(3), (1, 3, 1, 1)), "uns['gmm'] has covariances of shape (1, 3"),
    "zero covariances": (
        "model/var",
        np.zeros((3, 3, 3, 3)),
        "uns['gmm'], patient 'P0': the covariance of component 0",
    ),
    "counts of others": (
        "distribution_n_components",
        [3, 3],
        "uns['gmm']: distribution_n_components must be 3 integers",
    ),
    "too many": (
        "distribution_n_components",
        [3, 3, 4],
        "uns['gmm']: distribution_n_components must be 3 integers",
    ),
    "broken counts": (
        "distribution_n_components",
        [3, 2.5, 3],
        "uns['gmm']: distribution_n_components must be 3 integers",
    ),
    "no patients": ("weight_inference/distribution_ids", None, "uns['gmm'] holds no mixtures: weight_inference/"),
    "no means": ("model/mu", None, "uns['gmm'] holds no mixtures: model/mu is missing"),
    "no sharing": ("component_sharing", None, "uns['gmm'] holds no mixtures: component_sharing is missing"),
    "half a background": (
        "background",
        {"amp": [0.1] * 3},
        "uns['gmm'], patient 'P0': the background holds no mixtures",
    ),
    "box of others": (
        "background",
        {"lower": np.zeros((3, 2)), "upper": np.ones((3, 2)), "amp": [0.1] * 3},
        "uns['gmm'], patient 'P0': the background has 2 features, the components have 3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_the_layout_is_one_line(name):
    path, value, message = BAD[name]
    with pytest.raises(DataError) as caught:
        read(changed(layout(), path, value))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_several_mixtures_are_not_one_that_is_shared():
    stored = layout(shared=True)
    stored["model"] |= {key: layout()["model"][key] for key in ("mu", "var")}
    with pytest.raises(DataError) as caught:
        read(stored)
    assert str(caught.value) == "uns['gmm'] has means of shape (3, 3, 3) for 3 patients, which share one mixture"
