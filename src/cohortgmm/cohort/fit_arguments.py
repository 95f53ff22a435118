"""The arguments of :func:`cohortgmm.fit_mixture` from the options of a fit: makes gates, loads functions and files."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.gates import Gates
from cohortgmm.display import format_error
from cohortgmm.errors import ConfigError
from cohortgmm.mixture import Background, Completeness, GaussianMixture, MixtureFit, as_mixture, tile_slices


def fit_arguments(options: Mapping[str, Any], cells: PatientCells) -> dict[str, Any]:
    """Arguments of a fit, the same for all numbers of components.

    Parameters
    ----------
    options
        See :func:`cohortgmm.cohort.fit_options.fit_options`.
    cells
        The cells of the patient.

    Returns
    -------
    dict
        Arguments of :func:`cohortgmm.fit_mixture`, except cells, noise, number of components and seed.

    Raises
    ------
    ConfigError
        If a feature, function or file does not exist or does not fit the cells.
    """
    arguments = dict(options)
    reference, frozen = arguments.pop("reference"), arguments["frozen"]
    if reference is not None:
        arguments["initial"] = read_reference(reference)
        arguments["frozen"] = {"mean": "all", "covar": "all"} if frozen is None else frozen
    arguments["noise_at"] = _function(arguments["noise_at"])
    arguments["completeness"] = _completeness(arguments["completeness"], cells)
    arguments["background"] = _background(arguments["background"], cells)
    return arguments


def check_observed(completeness: Callable[[np.ndarray], np.ndarray] | None, cells: PatientCells) -> None:
    """Refuse cells, fitted or held out, whose completeness is zero or cannot be computed.

    Raises
    ------
    DataError
        If there are such cells, which the message names, or if the function fails.
    """
    if completeness is None:
        return
    x = cells.measured()
    tiles = ((tile, np.asarray(x[tile], dtype=np.float64)) for tile in tile_slices(*x.shape))
    Completeness(completeness).check_cells(tiles, cells.cell_name)


def read_reference(reference: GaussianMixture | MixtureFit | str | os.PathLike[str]) -> GaussianMixture:
    """The reference mixture, given as a mixture, as a fit, or as the path of its file.

    Raises
    ------
    ConfigError
        If there is no such file, or the reference is of another type.
    DataError
        If the file holds no mixture.
    """
    if not isinstance(reference, str | os.PathLike):
        return as_mixture(reference, "reference", " or the path of one")
    try:
        return GaussianMixture.load(reference)
    except FileNotFoundError:
        raise ConfigError(f"reference: no such file: {reference}") from None


def load_function(name: str) -> Callable[..., Any]:
    """The function of a name such as ``file.py:function`` or ``module:function``."""
    source, _, function = name.rpartition(":")
    try:
        module = _module_of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # a user's file may raise anything
        raise ConfigError(f"{name}: cannot be imported: {format_error(error)}") from error
    found = getattr(module, function, None)
    if not hasattr(module, function):
        raise ConfigError(f"{name}: {source} has no {function}")
    if not callable(found):
        raise ConfigError(f"{name}: {function} is {found!r}, not a function")
    return found


def _module_of_file(path: Path) -> ModuleType:
    """The module in a file. It is read every time, as a cache could hold an older version."""
    name = f"_cohortgmm_{path.stem}"  # under its own name it could hide another module
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look up their module here
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return module


def _function(given: Any) -> Any:
    return load_function(given) if isinstance(given, str) else given


def _completeness(described: Mapping[str, Any] | None, cells: PatientCells) -> Callable[..., Any] | None:
    if described is None:
        return None
    gates, function = described["gates"], _function(described["function"])
    return Gates(gates, function, cells.feature_names, cells.x.dtype) if gates else function


def _background(described: Mapping[str, Any] | None, cells: PatientCells) -> Background | None:
    if described is None:
        return None
    d = cells.x.shape[1]
    corners = {}
    for name, extreme in (("lower", np.fmin), ("upper", np.fmax)):
        corner = described[name]
        if corner is None:
            corner = extreme.reduce(cells.measured(), axis=0)
        elif np.ndim(corner) == 1 and len(corner) != d:
            raise ConfigError(f"gmm.background.{name} has {len(corner)} numbers for {d} features")
        corners[name] = np.broadcast_to(np.asarray(corner, dtype=np.float64), d)
    empty = np.flatnonzero(~(corners["lower"] < corners["upper"]))
    if len(empty):
        raise ConfigError(
            f"gmm.background: the box is empty in {cells.name_of(empty[0])}, from {corners['lower'][empty[0]]:.6g} to "
            f"{corners['upper'][empty[0]]:.6g}: give lower and upper, or leave a constant feature out"
        )
    return Background(**{**described, **corners})
