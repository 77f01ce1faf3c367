"""Generated two-dimensional densities: the standard pictures on which one sees what a generator misses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import make_moons, make_swiss_roll

from .errors import DataError
from .oracle import GaussianMixture

Points = NDArray[np.float64]


def mixture(name: str) -> GaussianMixture:
    """The exact law of a generated mixture, in data units: `gmm:25` (5 x 5 grid) or `gmm:ring8`; DataError else."""
    if name == "gmm:25":
        line = np.arange(-2.0, 3.0)
        means = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
        return GaussianMixture(np.ones(25), means, np.full(25, 0.05))
    if name == "gmm:ring8":
        angle = 2 * np.pi * np.arange(8) / 8
        return GaussianMixture(np.ones(8), 0.67 * np.stack([np.cos(angle), np.sin(angle)], 1), np.full(8, 0.08))
    raise DataError(f"{name!r} is not one of gmm:25, gmm:ring8")


def rings(n: int, seed: int, radii: tuple[float, ...] = (1.0, 2.0, 3.0), noise: float = 0.05) -> Points:
    """Circles, equally likely, with radial Gaussian noise."""
    rng = np.random.default_rng(seed)
    radius = rng.choice(radii, n) + noise * rng.standard_normal(n)
    angle = rng.uniform(0, 2 * np.pi, n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def checkerboard(n: int, seed: int) -> Points:
    """Uniform on the 8 dark squares of a 4 x 4 board, [-2, 2]^2."""
    rng = np.random.default_rng(seed)
    column, pair = rng.integers(4, size=n), rng.integers(2, size=n)
    corner = np.stack([column, 2 * pair + column % 2], 1) - 2.0
    return corner + rng.random((n, 2))


def swiss_roll(n: int, seed: int) -> Points:
    """Seen from the side, with noise 0.3."""
    points: Points = make_swiss_roll(n, noise=0.3, random_state=seed)[0][:, [0, 2]]
    return points


def moons(n: int, seed: int) -> Points:
    """Two half circles with noise 0.05."""
    points: Points = make_moons(n, noise=0.05, random_state=seed)[0]
    return points


def _mixture_sample(name: str) -> Callable[[int, int], Points]:
    return lambda n, seed: np.asarray(mixture(name).sample(jax.random.key(seed), n), float)


TOYS: dict[str, Callable[[int, int], Points]] = {  # (n, seed) -> (n, 2)
    "gmm:25": _mixture_sample("gmm:25"),
    "gmm:ring8": _mixture_sample("gmm:ring8"),
    "rings": rings,
    "checkerboard": checkerboard,
    "swissroll": swiss_roll,
    "moons": moons,
}
