"""The exceptions a user may see: each message is one line that says what was found and what to change."""


class CohortgmmError(Exception):
    """Base of every error that cohortgmm raises on purpose."""


class ConfigError(CohortgmmError, ValueError):
    """A configuration or an argument that cannot be used."""


class DataError(CohortgmmError, ValueError):
    """Input data that cannot be used."""


class MissingFileError(DataError, FileNotFoundError):
    """A file that is not there."""


class OutputError(CohortgmmError, OSError):
    """An output that could not be written."""


class FitError(CohortgmmError, ValueError):
    """A mixture that could not be fitted."""


class SingularCovarianceError(FitError):
    """A covariance at or below the floor while ``singularity_handling`` is ``"strict"``.

    Parameters
    ----------
    component
        Index of the component.
    n_components
        Number of components of the mixture.
    eigenvalue
        Smallest eigenvalue found.
    eps
        The floor it was compared with.
    """

    def __init__(self, component: int, n_components: int, eigenvalue: float, eps: float):
        self.component = component
        self.eigenvalue = eigenvalue
        super().__init__(
            f"component {component} of {n_components} has a singular covariance (smallest eigenvalue "
            f"{eigenvalue:.3g}, floor eps={eps:g}); use fewer components or features, raise eps, or set "
            'singularity_handling to "guarded"'
        )


class DivergedError(FitError):
    """A fit in which nearly all cells would be unseen."""
