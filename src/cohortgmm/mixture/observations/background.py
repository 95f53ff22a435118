"""A uniform background: cells, or what passes for cells, that belong to no component."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np

from cohortgmm.arrays import dense_array
from cohortgmm.display import format_value
from cohortgmm.errors import ConfigError, DataError

#: Names of the parameters in the file of a mixture.
BACKGROUND_ARRAYS = ("background_lower", "background_upper", "background_amp")

#: In a box narrower than this many standard deviations of the noise, the midpoint rule replaces the exact formula.
_NARROW = 1e-3


@dataclass(frozen=True, eq=False)
class Background:
    """One more class of the mixture, uniform over a box (Melchior & Goulding 2018, section 2.4).

    Parameters
    ----------
    lower, upper
        (D,) corners of the box, in the units of the features. A cell outside belongs to the components.
    amp
        Share of all cells that belong to the background; with ``adjust_amp``, the value at which a fit starts.
    amp_min, amp_max
        Bounds of a fitted amplitude.
    adjust_amp
        Whether the amplitude is fitted.

    Raises
    ------
    ConfigError
        If the box is empty or not finite, the amplitude is not within its bounds, or the bounds are not within [0, 1].
    """

    lower: np.ndarray
    upper: np.ndarray
    amp: float = 0.1
    amp_min: float = 0.0
    amp_max: float = 1.0
    adjust_amp: bool = True

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            corner = dense_array(getattr(self, name), f"the background's {name}")
            object.__setattr__(self, name, np.atleast_1d(np.array(corner, dtype=np.float64)))
        if self.lower.ndim != 1 or self.lower.shape != self.upper.shape or not len(self.lower):
            raise ConfigError(
                f"the background needs lower and upper of shape (D,), got {self.lower.shape} and {self.upper.shape}"
            )
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all() and np.all(self.lower < self.upper)):
            raise ConfigError("the background's lower must be below its upper, and both finite, in every feature")
        with np.errstate(over="ignore"):
            if not np.isfinite(self.upper - self.lower).all():
                raise ConfigError("the background's box is too large for its volume: rescale the data")
        for name in ("amp", "amp_min", "amp_max"):
            if not isinstance(getattr(self, name), Real) or isinstance(getattr(self, name), bool):
                raise ConfigError(f"the background's {name} must be a number, got {format_value(getattr(self, name))}")
        if not isinstance(self.adjust_amp, bool | np.bool_):
            raise ConfigError(f"the background's adjust_amp must be True or False, got {format_value(self.adjust_amp)}")
        if not 0 <= self.amp_min <= self.amp <= self.amp_max <= 1:
            raise ConfigError(
                "the background needs 0 <= amp_min <= amp <= amp_max <= 1, got "
                f"amp_min {self.amp_min!r}, amp {self.amp!r}, amp_max {self.amp_max!r}"
            )

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return len(self.lower)

    def with_amp(self, amp: float) -> "Background":
        """A copy of this background with another amplitude, which is clipped to its bounds."""
        return replace(self, amp=float(np.clip(amp, self.amp_min, self.amp_max)))

    def log_density(
        self, x: np.ndarray, features: np.ndarray | None = None, variances: np.ndarray | None = None
    ) -> np.ndarray:
        """Log-density of the background by itself, whatever its amplitude.

        Parameters
        ----------
        x
            (n, m) cells; NaN is a missing feature and integrated over.
        features
            (m,) the features that x has; None for all.
        variances
            (m,) or (n, m) measurement noise, which blurs the edges of the box; its correlations are left out.

        Returns
        -------
        ndarray
            (n,) nats; −inf outside the box.
        """
        lower, upper = (edge if features is None else edge[features] for edge in (self.lower, self.upper))
        missing = np.isnan(x)
        if variances is None:
            share = ((x >= lower) & (x <= upper)).astype(np.float64)
        else:
            share = _blurred(x, lower, upper, np.sqrt(variances))
        with np.errstate(divide="ignore"):
            log_density = np.log(share) - np.log(upper - lower)
        return np.where(missing, 0.0, log_density).sum(axis=1)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n cells (n, D)."""
        return rng.uniform(self.lower, self.upper, size=(n, self.n_features))

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, as a file holds them."""
        amps = np.array([self.amp, self.amp_min, self.amp_max, float(self.adjust_amp)])
        return {"background_lower": self.lower, "background_upper": self.upper, "background_amp": amps}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Background | None":
        """Make a background from arrays by name, as :meth:`arrays` returns them; None if they contain no background."""
        names = [name for name in BACKGROUND_ARRAYS if name in arrays]
        if not names:
            return None
        if len(names) < 3:
            raise DataError(f"half a background: {', '.join(sorted({*BACKGROUND_ARRAYS} - {*names}))} missing")
        numbers = dense_array(arrays["background_amp"], "background_amp")
        if numbers.shape != (4,):
            raise DataError(f"background_amp must hold amp, amp_min, amp_max and adjust_amp, got shape {numbers.shape}")
        amp, amp_min, amp_max, adjust_amp = numbers.tolist()
        return cls(arrays["background_lower"], arrays["background_upper"], amp, amp_min, amp_max, bool(adjust_amp))


def _blurred(x: np.ndarray, lower: np.ndarray, upper: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Probability that a cell measured at x with normal noise lies between the edges, for each feature separately."""
    from scipy.special import ndtr

    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        above, below, width = (x - lower) / scale, (x - upper) / scale, (upper - lower) / scale
        # Both probabilities are computed in the smaller tail, so that their difference keeps its digits.
        flip = below > 0
        share = ndtr(np.where(flip, -below, above)) - ndtr(np.where(flip, -above, below))
        # If the noise is far wider than the box, the difference loses its digits; the midpoint rule keeps them.
        middle = 0.5 * (above + below)
        bend = 1.0 + (middle**2 - 1.0) * width**2 / 24.0
        narrow = np.exp(-0.5 * middle**2) * width * bend / np.sqrt(2.0 * np.pi)
        share = np.where(width < _NARROW, narrow, share)
    exact = np.broadcast_to(scale == 0, x.shape)
    return np.where(exact, (x >= lower) & (x <= upper), share)
