"""Drawing cells as they would be measured: noise first, then selection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohortgmm.arguments import check_count, generator
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.numerics.tuning import tuning
from cohortgmm.mixture.observations.completeness import Completeness, NoiseAt, noise_of_places
from cohortgmm.mixture.observations.noise import Noise


@dataclass(frozen=True, eq=False)
class ObservedSample:
    """Cells drawn from a mixture as they would be measured.

    Attributes
    ----------
    x
        (n, D) measured cells.
    noise
        Their measurement noise, (n, D, D) or (n, D), or the shared one; None without noise.
    components
        (n,) the component of every cell; −1 for the background.
    n_drawn
        Number of cells drawn, observed or not.
    """

    x: np.ndarray
    noise: np.ndarray | None
    components: np.ndarray
    n_drawn: int


def sample(model: Parameters, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """See :meth:`cohortgmm.GaussianMixture.sample`."""
    components = rng.choice(model.n_components, size=n, p=model.component_weights)
    noise = rng.standard_normal((n, model.n_features))
    x = np.empty_like(noise)
    for k in range(model.n_components):
        chosen = components == k
        root = model.factors.root[k]
        shift = noise[chosen] * root if model.covariance_type == "diag" else noise[chosen] @ root.T
        x[chosen] = model.means[k] + shift
    if model.background is not None:
        components[rng.random(n) < model.background.amp] = -1
        x[components < 0] = model.background.sample(np.count_nonzero(components < 0), rng)
    return x, components


def sample_observed(
    model: Parameters,
    n: int,
    rng: np.random.Generator | int | None = None,
    *,
    noise: NoiseAt | None = None,
    completeness: Callable[[np.ndarray], np.ndarray] | None = None,
    inverted: bool = False,
) -> ObservedSample:
    """See :meth:`cohortgmm.GaussianMixture.sample_observed`."""
    n, rng = check_count("n, the number of cells,", n, 0), generator(rng, "rng")
    checked = None if completeness is None else Completeness(completeness)
    noise = _noise_of_sample(noise, n, model.n_features, selected=checked is not None)
    sizes = tuning()
    parts: list[tuple[Any, ...]] = []
    n_observed, n_drawn, size = 0, 0, max(n, sizes.fewest_draws)
    if isinstance(noise, Noise) and not noise.is_shared:
        size = n
    while n_observed < n or not parts:
        size = int(min(size, sizes.most_draws))
        x, components = sample(model, size, rng)
        own = None
        if noise is not None:
            own = noise_of_places(x, noise, "noise") if callable(noise) else noise
            x = x + own.scale(rng.standard_normal(x.shape))
        observed = np.ones(size, dtype=bool) if checked is None else rng.random(size) < checked(x)
        # Cells drawn after the one that completes the sample are dropped and not counted.
        end = size
        if n_observed + observed.sum() >= n:
            end = int(np.flatnonzero(observed)[n - n_observed - 1]) + 1 if n else 0
        chosen = np.flatnonzero(~observed[:end] if inverted else observed[:end])
        parts.append((x[chosen], None if own is None else own.take(chosen), components[chosen]))
        n_observed, n_drawn = n_observed + int(observed[:end].sum()), n_drawn + end
        if n_observed == 0 and n_drawn > sizes.hopeless_draws:
            raise DataError(f"none of {n_drawn} cells drawn from the mixture passes the selection")
        size = size if n_observed == 0 else 1.1 * (n - n_observed) * n_drawn / n_observed + sizes.fewest_draws
    x, own, components = zip(*parts, strict=True)
    return ObservedSample(np.concatenate(x), _together(own), np.concatenate(components), n_drawn)


def _noise_of_sample(noise: Any, n: int, n_features: int, *, selected: bool) -> Callable | Noise | None:
    """Check the noise that a user gave: a function is returned unchanged, an array becomes a :class:`Noise`."""
    if noise is None or callable(noise):
        return noise
    is_declared = isinstance(noise, Noise)
    noise = Noise.validated(noise, n, n_features)
    if not np.isfinite(noise.values).all():
        raise DataError("noise gave values that are not finite")
    if not (noise.is_shared or is_declared):
        raise DataError(
            f"noise of shape {noise.values.shape} is not one for all cells: cohortgmm.Noise.per_cell(values) says that it "
            "is of each cell that is drawn"
        )
    if selected and not noise.is_shared:
        raise ConfigError(
            "noise of each cell does not go with completeness, which decides which cells there are: give a function of "
            "places"
        )
    return noise


def _together(parts: Sequence[Noise | None]) -> np.ndarray | None:
    if parts[0] is None or parts[0].is_shared:
        return None if parts[0] is None else parts[0].values
    return np.concatenate([part.values for part in parts])
