"""The parts of ``X = A S + η h(S)`` that every generator shares: a mixing A, and h without its linear part."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def mixing_matrix(d: int, rng: np.random.Generator) -> Array:
    """A random (d, d) matrix with singular values between 0.7 and 1.4."""
    left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
    return np.asarray(left * rng.uniform(0.7, 1.4, size=d) @ right)


def canonical_part(S: ArrayLike, h: ArrayLike) -> Array:
    """``h`` (n, m) without its mean and its linear regression on ``S`` (n, d), both taken on the sample."""
    s, h = np.asarray(S, dtype=np.float64), np.asarray(h, dtype=np.float64)
    design = np.column_stack([np.ones(len(s)), s])
    return np.asarray(h - design @ np.linalg.lstsq(design, h, rcond=None)[0])


def rms(v: NDArray[np.floating[Any]]) -> float:
    """Root mean square of the rows of v (n, d), each as a vector."""
    return float(np.sqrt(np.mean(np.sum(v * v, axis=1))))
