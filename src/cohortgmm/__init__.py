"""One Gaussian mixture per patient from a cohort of single-cell samples."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohortgmm.api import fit_gmm as fit_gmm
    from cohortgmm.cohort.uns import read_gmm as read_gmm
    from cohortgmm.errors import CohortgmmError as CohortgmmError
    from cohortgmm.errors import ConvergenceWarning as ConvergenceWarning
    from cohortgmm.mixture import Background as Background
    from cohortgmm.mixture import GaussianMixture as GaussianMixture
    from cohortgmm.mixture import MixtureFit as MixtureFit
    from cohortgmm.mixture import Noise as Noise
    from cohortgmm.mixture import cross_validate as cross_validate
    from cohortgmm.mixture import fit_mixture as fit_mixture
    from cohortgmm.mixture import stack as stack
    from cohortgmm.mixture import stacking_weights as stacking_weights

__version__ = "0.2.0.dev0"

# Imported when first used (PEP 562), because a fit job does without anndata, pandas and matplotlib.
_EXPORTS = {
    "fit_gmm": "cohortgmm.api",
    "fit_mixture": "cohortgmm.mixture",
    "MixtureFit": "cohortgmm.mixture",
    "Noise": "cohortgmm.mixture",
    "Background": "cohortgmm.mixture",
    "GaussianMixture": "cohortgmm.mixture",
    "cross_validate": "cohortgmm.mixture",
    "stack": "cohortgmm.mixture",
    "stacking_weights": "cohortgmm.mixture",
    "read_gmm": "cohortgmm.cohort.uns",
    "CohortgmmError": "cohortgmm.errors",
    "ConvergenceWarning": "cohortgmm.errors",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
