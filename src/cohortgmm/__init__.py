"""One Gaussian mixture per patient from a cohort of single-cell samples."""

import importlib

__version__ = "0.2.0.dev0"

# PEP 562: a fit job must not pay for anndata, pandas or matplotlib, which the notebook functions need.
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
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
