"""Exceptions and warnings of cohortgmm. Every message is one line: what was found, and what to change."""


class CohortgmmError(Exception):
    """Base class of the errors that cohortgmm raises."""


class ConfigError(CohortgmmError, ValueError):
    """Invalid configuration or argument."""


class DataError(CohortgmmError, ValueError):
    """Invalid input data."""


class MissingFileError(DataError, FileNotFoundError):
    """Missing input file."""


class OutputError(CohortgmmError, OSError):
    """Output file that cannot be written."""


class FitError(CohortgmmError, ValueError):
    """Fit that failed."""


class SingularCovarianceError(FitError):
    """Covariance at or below the floor with ``singularity_handling="strict"``.

    Parameters
    ----------
    component
        Index of the component.
    n_components
        Number of components of the mixture.
    eigenvalue
        Smallest eigenvalue found.
    eps
        The floor.
    """

    def __init__(self, component: int, n_components: int, eigenvalue: float, eps: float) -> None:
        self.component = component
        self.eigenvalue = eigenvalue
        super().__init__(
            f"component {component} of {n_components} has a singular covariance (smallest eigenvalue "
            f"{eigenvalue:.3g}, floor eps={eps:g}); use fewer components or features, raise eps, or set "
            'singularity_handling to "guarded"'
        )


class DivergedError(FitError):
    """Fit with a completeness function in which nearly all cells would be unobserved."""


class ConvergenceWarning(UserWarning):
    """Fit that ended without converging."""
