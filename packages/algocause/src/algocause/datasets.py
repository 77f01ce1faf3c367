"""Data with known truth: the paper's two settings and random models with sparse mechanism shifts; and real data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

# ------------------------------------------------------------------------------ the paper's settings
PAPER_THETA = ((1, 16, 1), (1, 16, 1), (9, 16, 2), (9, 25, 2.5), (25, 25, 2.5))
PAPER_SHIFTS = {
    7: (0.1, 0.1, 0.1, 0.3, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
    4: (0.1, 0.1, 0.4, 0.4, 0.6, 0.6, 0.6, 0.9, 0.9, 0.9),
    2: (0.1,) * 8 + (0.9,) * 2,
}  # by the number of distinct mechanisms


def paper_bivariate(seed: int, n: int = 20) -> tuple[Array, Array]:
    """The paper's two Gaussian variables, X1 -> X2, in five environments.

    Returns X (5, n, 2) and theta (5, 3): variance of X1, variance of X2 given X1, slope. `RandomState(seed)` as in the
    authors' scripts, so that the data are theirs.
    """
    theta = np.array(PAPER_THETA, float)
    rng = np.random.RandomState(seed)
    X = [rng.multivariate_normal([0, 0], [[v1, v1 * b], [v1 * b, b**2 * v1 + v2]], size=n) for v1, v2, b in theta]
    return np.array(X), theta


def paper_covariate_shift(
    seed: int, n_mechanisms: int = 7, family: str = "poisson", n: int = 10, M: int = 20
) -> tuple[IntArray, IntArray, IntArray, Array]:
    """The paper's covariate shift: ten environments of n rows each, of which P(X1 | e) alone differs.

    n_mechanisms : 7, 4 or 2 distinct parameters. family : of X1, see `fc.log2_pmf`; X2 is N(X1, 1) rounded and cut to
    0..M-1. Returns X1, X2 and env, (10 n,) each, and the codebook j/(M+2), j = 1..M+1. The draws are in the order of
    the authors' scripts; their Gaussian X1 below 0, which their distribution gives no mass, is 0 here.
    """
    if n_mechanisms not in PAPER_SHIFTS:
        raise DataError(f"n_mechanisms must be 7, 4 or 2, not {n_mechanisms}")
    rng = np.random.RandomState(seed)
    env = np.repeat(np.arange(10), n)
    rng.shuffle(env)
    theta = np.array(PAPER_SHIFTS[n_mechanisms])[env]
    if family == "poisson":
        X1 = rng.poisson(theta * (M + 2))
    elif family == "geometric":
        X1 = rng.geometric(theta) - 1
    elif family == "gaussian":
        X1 = np.round(rng.normal(theta * (M + 2), 1)).astype(int)
    elif family == "bernoulli":
        X1 = rng.binomial(1, theta)
    else:
        raise ValueError(f"family must be poisson, geometric, gaussian or bernoulli, not {family!r}")
    X1 = np.clip(X1, 0, M - 1)
    X2 = np.clip(np.round(rng.normal(X1, 1)).astype(int), 0, M - 1)
    return X1, X2, env, np.linspace(0, 1, M + 3)[1:-1]
