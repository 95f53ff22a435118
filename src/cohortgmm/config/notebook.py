"""The arguments of :func:`cohortgmm.fit_gmm` as values of the section ``gmm:``."""

from collections.abc import Mapping
from typing import Any

from cohortgmm.config.gmm import BackgroundConfig, GivenNoise, GmmConfig
from cohortgmm.config.problems import validated
from cohortgmm.errors import ConfigError

#: Arguments of :func:`cohortgmm.fit_gmm` that :func:`read_gmm_options` checks.
GMM_ARGUMENTS = frozenset(GmmConfig.model_fields) | {"noise_at"}


def read_gmm_options(arguments: Mapping[str, Any]) -> GmmConfig:
    """Check the arguments of a fit.

    Parameters
    ----------
    arguments
        The keys of :class:`~cohortgmm.config.gmm.GmmConfig`, and ``noise_at``. Functions, mixtures and arrays of noise
        are kept as objects. Numbers and arrays of numpy are converted to numbers and lists of Python.

    Returns
    -------
    GmmConfig

    Raises
    ------
    ConfigError
        For all problems at once, one line each, with the key.
    """
    values = {key: _number_of(value) for key, value in arguments.items()}
    values["noise"] = _noise(values.get("noise"), values.pop("noise_at", None))
    if callable(values.get("completeness")):
        values["completeness"] = {"function": values["completeness"]}
    background = values.get("background")
    if hasattr(background, "adjust_amp"):  # a cohortgmm.Background, which has the keys of the section
        background = {key: getattr(background, key) for key in BackgroundConfig.model_fields}
    if isinstance(background, Mapping):
        corners = {key: _as_list(background[key]) for key in ("lower", "upper") if key in background}
        values["background"] = {**background, **corners}
    if isinstance(values.get("frozen"), Mapping):
        values["frozen"] = {key: _as_numbers(value) for key, value in values["frozen"].items()}
    return validated(GmmConfig, values, "fit_gmm")


def _noise(noise: Any, noise_at: Any) -> Any:
    """The section ``noise``: keys of AnnData, or the arrays themselves."""
    if noise is None:
        if noise_at is not None:
            raise ConfigError("noise_at needs noise, which is not given")
        return None
    if isinstance(noise, str):
        noise = {"obsm": noise}
    if isinstance(noise, Mapping) and all(isinstance(key, str | None) for key in noise.values()):
        return {**noise} if noise_at is None else {**noise, "at": noise_at}
    return GivenNoise.model_construct(values=noise, at=noise_at)


def _number_of(value: Any) -> Any:
    """A number of numpy as one of Python; any other value as it is."""
    return value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value


def _as_list(value: Any) -> Any:
    """An array or another sequence as a list; any other value as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_number_of(one) for one in value] if isinstance(value, list | tuple | range) else value


def _as_numbers(value: Any) -> Any:
    """Indices of components as a list, also if a single index is given."""
    value = _as_list(value)
    return value if value is None or isinstance(value, str | bytes | list) else [value]
