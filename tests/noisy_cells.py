"""Cells that each have their own noise or missing features, in one group, and their pairs with components."""

import numpy as np
from measured import make_noise

from cohortgmm.mixture.density.noisy import noisy_densities
from cohortgmm.mixture.estep.noisy import NoisyPairs
from cohortgmm.mixture.observations.cells import CellData
from cohortgmm.mixture.observations.measurements import Group, Measurements
from cohortgmm.mixture.observations.noise import Noise

ALL_ROWS = slice(None)


def one_group(x, noise=None, background=None):
    """All cells together, in the kind of group that this E-step is made for."""
    if not np.isnan(x).any():
        group = Group(CellData(x), noise=None if noise is None else Noise.validated(noise, *x.shape))
        if background is not None:
            group.cells.log_background = Measurements(x, noise, 1, background).groups[0].cells.log_background
        return group
    (group,) = Measurements(x, noise, 1, background).groups
    return group


def pairs_of(group, tile, model):
    return NoisyPairs(noisy_densities(group, tile, model))


def all_pairs(group, model):
    """Every component evaluated for every cell."""
    pairs = pairs_of(group, ALL_ROWS, model)
    for k in range(model.n_components):
        pairs.evaluate(k, np.arange(len(group.cells)))
    return pairs


def noisy_cells(model, kind, n, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    x = model.sample(n, rng)[0]
    return x + np.sqrt(scale) * rng.normal(size=x.shape), make_noise(kind, n, model.n_features, rng, scale)
