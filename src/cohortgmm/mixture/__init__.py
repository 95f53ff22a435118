"""The numerical core: Gaussian mixtures and their EM. The only files that it reads or writes are those of mixtures.

The names here are all that the rest of the package uses. They are imported when they are first asked for (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohortgmm.mixture.criteria import aic, bic, n_free_parameters
    from cohortgmm.mixture.density.checks import SUM_TO_ONE
    from cohortgmm.mixture.em.constraints import Frozen
    from cohortgmm.mixture.fit import fit_mixture
    from cohortgmm.mixture.model import GaussianMixture
    from cohortgmm.mixture.numerics.tiles import one_blas_thread, range_slices, tile_slices
    from cohortgmm.mixture.observations.background import Background
    from cohortgmm.mixture.observations.completeness import Completeness, NoiseOfRandomCells
    from cohortgmm.mixture.observations.noise import Noise, check_meaning, is_one_for_all
    from cohortgmm.mixture.result import MixtureFit, as_mixture
    from cohortgmm.mixture.settings import effective_settings
    from cohortgmm.mixture.stacking import cross_validate, stack, stacking_weights

_EXPORTS = {
    "fit_mixture": "cohortgmm.mixture.fit",
    "cross_validate": "cohortgmm.mixture.stacking",
    "stack": "cohortgmm.mixture.stacking",
    "stacking_weights": "cohortgmm.mixture.stacking",
    "effective_settings": "cohortgmm.mixture.settings",
    "GaussianMixture": "cohortgmm.mixture.model",
    "MixtureFit": "cohortgmm.mixture.result",
    "as_mixture": "cohortgmm.mixture.result",
    "Background": "cohortgmm.mixture.observations.background",
    "Noise": "cohortgmm.mixture.observations.noise",
    "check_meaning": "cohortgmm.mixture.observations.noise",
    "is_one_for_all": "cohortgmm.mixture.observations.noise",
    "Completeness": "cohortgmm.mixture.observations.completeness",
    "NoiseOfRandomCells": "cohortgmm.mixture.observations.completeness",
    "Frozen": "cohortgmm.mixture.em.constraints",
    "SUM_TO_ONE": "cohortgmm.mixture.density.checks",
    "aic": "cohortgmm.mixture.criteria",
    "bic": "cohortgmm.mixture.criteria",
    "n_free_parameters": "cohortgmm.mixture.criteria",
    "one_blas_thread": "cohortgmm.mixture.numerics.tiles",
    "range_slices": "cohortgmm.mixture.numerics.tiles",
    "tile_slices": "cohortgmm.mixture.numerics.tiles",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
