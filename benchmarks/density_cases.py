"""Simulated cells with a known truth, each with one of the complications that the engine handles."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cohortgmm import Background, GaussianMixture

Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Sample:
    """What was simulated, and what is told of it to a fit."""

    truth: GaussianMixture
    x: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> GaussianMixture:
        """The truth as the start of a fit."""
        background = self.options.get("background")
        return self.truth if background is None else self.truth.with_background(background)


def planar(n_components: int = 3) -> GaussianMixture:
    """Components of the plane with widths from 0.5 to 2.8."""
    means = np.array([[0.0, 0.0], [7.0, 1.0], [2.0, 8.0]])[:n_components]
    covariances = np.array([[[1.0, 0.3], [0.3, 0.5]], [[0.25, 0.0], [0.0, 2.0]], [[7.8, -2.0], [-2.0, 1.5]]])
    weights = np.array([0.4, 0.25, 0.35])[:n_components]
    return GaussianMixture(weights / weights.sum(), means, covariances[:n_components])


def spatial(rng: Rng) -> GaussianMixture:
    """Five components in three dimensions, some close to each other."""
    means = np.array([[0.0, 0, 0], [4, 0, 1], [0, 4, -1], [4, 4, 2], [2, 2, 6]])
    factors = rng.normal(size=(5, 3, 3)) * 0.35
    covariances = factors @ factors.transpose(0, 2, 1) + 0.35 * np.eye(3)
    return GaussianMixture(np.array([0.3, 0.2, 0.2, 0.2, 0.1]), means, covariances)


def with_noise(x: np.ndarray, noise: np.ndarray, rng: Rng) -> np.ndarray:
    """Cells as they are measured."""
    normal = rng.standard_normal(x.shape)
    if noise.shape == x.shape:
        return x + np.sqrt(noise) * normal
    return x + np.einsum("...ij,...j->...i", np.linalg.cholesky(noise), normal)


def selected(truth: GaussianMixture, n: int, completeness: Callable, rng: Rng, noise: np.ndarray | None = None):
    """Cells of n drawn ones that pass the selection."""
    x, _ = truth.sample(n, rng)
    if noise is not None:
        x = with_noise(x, noise, rng)
    return x[rng.random(n) < completeness(x)]


def box(x: np.ndarray) -> np.ndarray:
    """A gate that cuts into all three components."""
    return np.all((x > -1.0) & (x < [8.0, 9.0]), axis=1).astype(float)


def hole(x: np.ndarray) -> np.ndarray:
    """A round gap between the components."""
    return (((x - [2.0, 5.0]) ** 2).sum(axis=1) > 4.0).astype(float)


def box_with_hole(x: np.ndarray) -> np.ndarray:
    """Both."""
    return box(x) * hole(x)


def slope(x: np.ndarray) -> np.ndarray:
    """Fewer and fewer towards larger values of the first feature."""
    return np.clip(1.0 - x[:, 0], 0.0, 1.0)


def gentle_slope(x: np.ndarray) -> np.ndarray:
    """The same over the width of several components."""
    return np.clip((6.0 - x[:, 0]) / 8.0, 0.0, 1.0)


def diagonal_noise(rng: Rng) -> Sample:
    truth = planar()
    noise = rng.uniform(0.2, 1.5, size=(4000, 2)) ** 2
    return Sample(truth, with_noise(truth.sample(4000, rng)[0], noise, rng), {"noise": noise})


def full_noise(rng: Rng) -> Sample:
    truth = spatial(rng)
    factors = rng.normal(size=(5000, 3, 3)) * 0.5
    noise = factors @ factors.transpose(0, 2, 1) + 0.05 * np.eye(3)
    return Sample(truth, with_noise(truth.sample(5000, rng)[0], noise, rng), {"noise": noise})


def shared_noise(rng: Rng) -> Sample:
    truth = planar()
    noise = 0.7**2 * np.eye(2)
    return Sample(truth, with_noise(truth.sample(20_000, rng)[0], noise, rng), {"noise": noise})


def missing_entries(rng: Rng) -> Sample:
    truth = planar()
    x, _ = truth.sample(4000, rng)
    x[rng.random(x.shape) < 0.3] = np.nan
    return Sample(truth, x)


def gated(completeness: Callable) -> Callable[[Rng], Sample]:
    def simulate(rng: Rng) -> Sample:
        truth = planar()
        return Sample(truth, selected(truth, 4000, completeness, rng), {"completeness": completeness})

    return simulate


def gated_noise(rng: Rng) -> Sample:
    truth, noise = planar(), 0.5**2 * np.eye(2)
    x = selected(truth, 4000, box_with_hole, rng, noise)
    return Sample(truth, x, {"completeness": box_with_hole, "noise": noise})


def sloped_one(rng: Rng) -> Sample:
    truth = GaussianMixture(np.array([1.0]), np.array([[0.5, 0.0]]), np.array([[[1.0, 0.4], [0.4, 1.0]]]))
    return Sample(truth, selected(truth, 20_000, slope, rng), {"completeness": slope})


def sloped_five(rng: Rng) -> Sample:
    truth = spatial(rng)
    return Sample(truth, selected(truth, 10_000, gentle_slope, rng), {"completeness": gentle_slope})


def background(noisy: bool) -> Callable[[Rng], Sample]:
    def simulate(rng: Rng) -> Sample:
        truth, n = planar(), 4000
        uniform = Background([-10.0, -10.0], [20.0, 20.0], amp=0.1)
        is_background = rng.random(n) < 0.3
        x, _ = truth.sample(n, rng)
        x[is_background] = uniform.sample(int(is_background.sum()), rng)
        options: dict[str, Any] = {"background": uniform}
        if noisy:
            options["noise"] = rng.uniform(0.2, 1.5, size=(n, 2)) ** 2
            x = with_noise(x, options["noise"], rng)
        return Sample(truth, x, options)

    return simulate


def crowded(rng: Rng) -> Sample:
    """Eight components that overlap, behind noise as wide as some of them."""
    means = rng.uniform(0.0, 12.0, size=(8, 2))
    factors = rng.normal(size=(8, 2, 2)) * 0.6
    covariances = factors @ factors.transpose(0, 2, 1) + 0.2 * np.eye(2)
    truth = GaussianMixture(rng.dirichlet(np.full(8, 3.0)), means, covariances)
    noise = rng.uniform(0.2, 1.0, size=(4000, 2)) ** 2
    return Sample(truth, with_noise(truth.sample(4000, rng)[0], noise, rng), {"noise": noise})


@dataclass(frozen=True, eq=False)
class Case:
    """A kind of cells, and the largest median KL divergence that is wanted (None: as good as the peer)."""

    name: str
    simulate: Callable[[Rng], Sample]
    target: float | None = None


CASES = {
    "diagonal noise": Case("2-D, 3 components, n = 4,000, diagonal noise of 0.2 to 1.5", diagonal_noise, 0.011),
    "full noise": Case("3-D, 5 components, n = 5,000, full noise as large as they are", full_noise, 0.025),
    "shared noise": Case("2-D, shared noise 0.7, n = 20,000", shared_noise, 0.0012),
    "missing": Case("30 % of the entries missing, n = 4,000", missing_entries, 0.0036),
    "box": Case("box, n = 4,000 drawn", gated(box)),
    "box with hole": Case("box with hole", gated(box_with_hole)),
    "hole": Case("hole", gated(hole)),
    "box with hole, noise": Case("box with hole, noise 0.5", gated_noise, 0.02),
    "slope, one": Case("one component, slope, n = 20,000 drawn", sloped_one, 0.001),
    "slope, five": Case("3-D, 5 components, slope, n = 10,000 drawn", sloped_five, 0.008),
    "background": Case("background 0.3 on [−10, 20]²", background(False)),
    "background, noise": Case("background 0.3 on [−10, 20]², diagonal noise", background(True)),
}

#: Where starts differ; the truth is another one for every seed.
HARD = {"crowded": Case("2-D, 8 components that overlap, n = 4,000, diagonal noise of 0.2 to 1", crowded)}


def divergence(truth: GaussianMixture, fit: GaussianMixture, n: int = 100_000) -> float:
    """KL(truth‖fit) in nats, of the components by themselves, by draws from the truth."""
    x, _ = truth.sample(n, 12345)
    return float(np.mean(truth.log_prob(x) - fit.without_background().log_prob(x)))
