"""From the configuration of a fit to the arguments of :func:`cohortgmm.fit_mixture`: gates, functions, files."""

import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.display import format_error
from cohortgmm.errors import ConfigError
from cohortgmm.mixture import Background, Completeness, GaussianMixture, as_mixture, tile_slices


def fit_arguments(options: Mapping[str, Any], cells: PatientCells) -> dict[str, Any]:
    """Arguments of a fit, the same for all its candidates.

    Parameters
    ----------
    options
        As :meth:`cohortgmm.config.GmmConfig.fit_options` gives them; a notebook may have put functions, a
        :class:`~cohortgmm.Background` or a mixture in the place of what describes them.
    cells
        The patient.

    Returns
    -------
    dict
        For :func:`cohortgmm.fit_mixture`, but for the cells, their noise, k and the seed.

    Raises
    ------
    ConfigError
        If a feature, function or file is not there or does not fit the cells.
    """
    arguments = dict(options)
    reference, frozen = arguments.pop("reference"), arguments["frozen"]
    if reference is not None:
        arguments["initial"] = reference if isinstance(reference, GaussianMixture) else GaussianMixture.load(reference)
        arguments["frozen"] = {"mean": "all", "covar": "all"} if frozen is None else frozen
    arguments["completeness"] = _completeness(arguments["completeness"], cells)
    arguments["background"] = _background(arguments["background"], cells)
    if isinstance(arguments["noise_at"], str):
        arguments["noise_at"] = load_function(arguments["noise_at"])
    return arguments


def check_seen(completeness: Callable | None, cells: PatientCells) -> None:
    """Refuse cells, fitted or held out, that could not have been seen, by their names.

    Raises
    ------
    DataError
        For such cells, or a function that fails on them.
    """
    if completeness is None:
        return
    x = cells.measured()
    tiles = ((tile, np.asarray(x[tile], dtype=np.float64)) for tile in tile_slices(*x.shape))
    Completeness(completeness).check_cells(tiles, cells.cell_name)


def describe_arguments(
    *, noise=None, noise_at=None, completeness=None, background=None, reference=None, frozen=None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a notebook gives, as the configuration would say it, and the objects that it cannot say.

    Returns
    -------
    described : dict
        For :func:`cohortgmm.config.read_gmm_options`.
    objects : dict
        To be put over :meth:`cohortgmm.config.GmmConfig.fit_options`.
    """
    described: dict[str, Any] = {"completeness": completeness, "reference": None, "frozen": frozen}
    objects: dict[str, Any] = {}
    if noise_at is not None and noise is None:
        raise ConfigError("noise_at is about cells with noise, which is not given")
    if noise is not None:
        if isinstance(noise, str):
            noise = {"obsm": noise}
        by_key = isinstance(noise, Mapping) and all(isinstance(key, str | None) for key in noise.values())
        described["noise"] = dict(noise) if by_key else {"obsm": "an array"}
    if noise_at is not None:
        described["noise"] = {**described["noise"], "at": _name_of(noise_at)}
        objects["noise_at"] = noise_at
    if completeness is not None and not isinstance(completeness, Mapping):
        if not callable(completeness):
            raise ConfigError(f"completeness must be a function or gates, got {completeness!r}")
        described["completeness"], objects["completeness"] = {"function": _name_of(completeness)}, completeness
    if isinstance(background, Mapping):
        background = {key: _plain(value) if key in ("lower", "upper") else value for key, value in background.items()}
    if isinstance(background, Background):
        corners = {"lower": background.lower.tolist(), "upper": background.upper.tolist()}
        background = {**asdict(background), **corners}
    described["background"] = background
    if reference is not None:
        is_path = isinstance(reference, str | os.PathLike)
        try:
            objects["reference"] = (
                GaussianMixture.load(reference)
                if is_path
                else as_mixture(reference, "reference", " or the path of one")
            )
        except FileNotFoundError:
            raise ConfigError(f"reference: no such file: {reference}") from None
        described["reference"] = str(reference) if is_path else "a mixture"
    if isinstance(frozen, Mapping):
        described["frozen"] = {kind: _plain(numbers, several=True) for kind, numbers in frozen.items()}
    return described, objects


def _plain(value: Any, *, several: bool = False) -> Any:
    """An array as lists, one number as a list where ``several`` are meant; anything else as it is."""
    if value is None or isinstance(value, str | bytes):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of different lengths, which the configuration refuses
        return value
    return (np.atleast_1d(array) if several else array).tolist() if array.dtype.kind != "O" else value


def _name_of(thing: Any) -> str:
    name = getattr(thing, "__name__", "")
    return f"{getattr(thing, '__module__', None) or 'notebook'}:{name}" if name.isidentifier() else "notebook:function"


def load_function(name: str) -> Callable:
    """The function that a text such as ``file.py:function`` or ``module:function`` names."""
    source, _, function = name.rpartition(":")
    try:
        module = _module_of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # anything may happen in a user's file
        raise ConfigError(f"{name}: cannot be imported: {format_error(error)}") from error
    found = getattr(module, function, None)
    if not hasattr(module, function):
        raise ConfigError(f"{name}: {source} has no {function}")
    if not callable(found):
        raise ConfigError(f"{name}: {function} is {found!r}, not a function")
    return found


def _module_of_file(path: Path) -> ModuleType:
    """The module in a file, read again every time: a cache could hold an older one."""
    name = f"_cohortgmm_{path.stem}"  # a name of its own: it must hide no module of the same name
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return module


class Gates:
    """Completeness of cells that fulfil some conditions, times a function.

    Parameters
    ----------
    gates
        Each with ``inside``, ``outside`` or ``half_space`` and ``at_least``; see the configuration.
    function
        Another completeness function; None for none.
    feature_names
        (D,) names of the features.
    dtype
        In which the cells are kept: one on an edge is in the data, whichever way it was rounded.
    """

    def __init__(
        self,
        gates: Sequence[Mapping[str, Any]],
        function: Callable | None,
        feature_names: Sequence[str],
        dtype: np.dtype | type = np.float64,
    ) -> None:
        self._gates, self._function = gates, function
        self._dtype = np.dtype(dtype if np.issubdtype(dtype, np.floating) else np.float64)
        self._columns = {name: i for i, name in enumerate(feature_names)}
        ambiguous = {name for name, count in Counter(feature_names).items() if count > 1}
        for gate in gates:
            for name in {**(gate["inside"] or {}), **(gate["outside"] or {}), **(gate["half_space"] or {})}:
                if name not in self._columns:
                    known = ", ".join([*feature_names][:12]) + (", ..." if len(feature_names) > 12 else "")
                    raise ConfigError(f"gmm.completeness: no feature {name!r}; known: {known}")
                if name in ambiguous:
                    raise ConfigError(
                        f"gmm.completeness: {list(feature_names).count(name)} features have the name {name!r}: "
                        "give each a name of its own"
                    )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(m,) probabilities at places (m, D); NaN where a feature is missing that matters."""
        result = np.ones(len(x))
        for gate in self._gates:
            result *= self._passes(gate, x)
        return result if self._function is None else result * self._function(x)

    def _passes(self, gate: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
        if gate["half_space"]:
            terms = [factor * x[:, self._columns[name]] for name, factor in gate["half_space"].items()]
            slack = len(terms) * np.finfo(self._dtype).eps * sum(map(np.abs, terms))
            return np.where(np.isnan(slack), np.nan, sum(terms) >= gate["at_least"] - slack)
        inside = np.ones((len(x), 0))
        for name, bounds in (gate["inside"] or gate["outside"]).items():
            values = x[:, self._columns[name]]
            low, high = self._rounded(*bounds, hole=not gate["inside"])
            between = np.where(np.isnan(values), np.nan, (values >= low) & (values <= high))
            inside = np.column_stack([inside, between])
        # Outside in one feature is outside, whatever the missing ones are.
        within = np.where((inside == 0).any(axis=1), 0.0, inside.prod(axis=1))
        return within if gate["inside"] else 1.0 - within

    def _rounded(self, low: float | None, high: float | None, *, hole: bool) -> tuple[float, float]:
        """Bounds as cells on them are kept; those of a hole just within, where rounding may have put cells there."""
        edges = np.array([-np.inf if low is None else low, np.inf if high is None else high])
        with np.errstate(over="ignore"):
            rounded = edges.astype(self._dtype)
        if hole and self._dtype.itemsize < edges.itemsize:
            rounded = np.where(np.isinf(edges), rounded, np.nextafter(rounded, rounded[::-1]))
        return float(rounded[0]), float(rounded[1])


def _completeness(described: Any, cells: PatientCells) -> Callable | None:
    if described is None or callable(described):
        return described
    if not isinstance(described, Mapping):
        raise ConfigError(f"completeness must be a function or gates, got {described!r}")
    function = described["function"]
    function = None if function is None else load_function(function)
    return Gates(described["gates"], function, cells.feature_names, cells.x.dtype) if described["gates"] else function


def _background(described: Any, cells: PatientCells) -> Background | None:
    if described is None or isinstance(described, Background):
        return described
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
