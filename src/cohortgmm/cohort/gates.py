"""Gates: conditions that the cells in the data fulfil, as a completeness function."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cohortgmm.errors import ConfigError

#: Largest number of features named in a message.
_NAMED = 12


class Gates:
    """Completeness that is 1 where all conditions are fulfilled and 0 elsewhere, multiplied by a function.

    Parameters
    ----------
    gates
        The conditions, each with the keys of :class:`~cohortgmm.config.gmm.GateConfig`: ``inside``, ``outside``,
        ``half_space`` and ``at_least``.
    function
        Completeness function by which the gates are multiplied; None for no function.
    feature_names
        (D,) names of the features.
    dtype
        Type in which the cells are stored. A cell on the edge of a gate fulfils the condition, also if rounding to this
        type moved it beyond the edge.

    Raises
    ------
    ConfigError
        If a gate names a feature that does not exist, or whose name is not unique.
    """

    def __init__(
        self,
        gates: Sequence[Mapping[str, Any]],
        function: Callable[[np.ndarray], np.ndarray] | None,
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
                    known = ", ".join([*feature_names][:_NAMED]) + (", ..." if len(feature_names) > _NAMED else "")
                    raise ConfigError(f"gmm.completeness: no feature {name!r}; known: {known}")
                if name in ambiguous:
                    raise ConfigError(
                        f"gmm.completeness: {list(feature_names).count(name)} features have the name {name!r}: "
                        "give each a name of its own"
                    )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(m,) probabilities at places (m, D); NaN where they depend on a missing feature."""
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
        # A cell outside in one feature is outside, whatever its missing features are.
        within = np.where((inside == 0).any(axis=1), 0.0, inside.prod(axis=1))
        return within if gate["inside"] else 1.0 - within

    def _rounded(self, low: float | None, high: float | None, *, hole: bool) -> tuple[float, float]:
        """Bounds rounded like the cells. The bounds of a hole move inwards, since rounding may move cells onto them."""
        edges = np.array([-np.inf if low is None else low, np.inf if high is None else high])
        with np.errstate(over="ignore"):
            rounded = edges.astype(self._dtype)
        if hole and self._dtype.itemsize < edges.itemsize:
            rounded = np.where(np.isinf(edges), rounded, np.nextafter(rounded, rounded[::-1]))
        return float(rounded[0]), float(rounded[1])
