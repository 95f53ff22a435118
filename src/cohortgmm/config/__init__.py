"""The configuration: every key with its type, range, default and meaning.

The models in :mod:`~cohortgmm.config.sections` and :mod:`~cohortgmm.config.gmm` are the only source of the schemas in
``workflow/schemas``, of the page ``config/README.md`` and of the checks of :func:`cohortgmm.fit_gmm`. They hold the
values that the user gave. Values that follow from these, such as the number of iterations, are computed elsewhere.
"""

from cohortgmm.config.gmm import GmmConfig
from cohortgmm.config.notebook import read_gmm_options
from cohortgmm.config.sections import Config, PatientRow, PreprocessConfig, QcConfig, read_config

__all__ = ["Config", "GmmConfig", "PatientRow", "PreprocessConfig", "QcConfig", "read_config", "read_gmm_options"]
