"""The normalising sum of the multinomial normalised-maximum-likelihood code.

C(n, K) = Σ over counts h of n in K cells of n!/∏h! ∏(h/n)^h (Kontkanen & Myllymäki 2007).
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, log, sqrt

import numpy as np
from numba import njit
from numpy.typing import NDArray

LN2 = log(2.0)
RECURRENCE_CELLS = 60  # beyond, the expansion of Szpankowski & Weinberger is off by less than 0.003 nats


@lru_cache(maxsize=1 << 16)
def log2_multinomial_nml(n: int, K: int) -> float:
    """log2 C(n, K): bits of regret of n draws from K cells. n ≥ 0, K ≥ 1."""
    if n < 0 or K < 1:
        raise ValueError(f"C(n, K) needs n ≥ 0 and K ≥ 1, not n = {n}, K = {K}")
    return float(ln_nml(float(n), float(K), ln_binomial_nml(float(n)))) / LN2


@njit(cache=True, nogil=True)
def ln_binomial_nml(n: float) -> float:
    """ln C(n, 2) = ln(1 + Q(n)), with Ramanujan's Q(n) = Σ_{k=1}^n n!/((n−k)! n^k)."""
    term, total = 1.0, 1.0
    k = 0.0
    while k < n:
        term *= (n - k) / n
        total += term
        if term < 1e-17 * total:
            break
        k += 1.0
    return log(total)


@njit(cache=True, nogil=True)
def ln_nml(n: float, K: float, ln_two: float) -> float:
    """ln C(n, K), given ln C(n, 2)."""
    if n == 0.0 or K <= 1.0:
        return 0.0
    if n == 1.0:
        return log(K)
    if K > RECURRENCE_CELLS:
        a = K / n
        c = 0.5 + 0.5 * sqrt(1.0 + 4.0 / a)
        return n * (log(a) + (a + 2.0) * log(c) - 1.0 / c) - 0.5 * log(c + 2.0 / a)
    # C(n, k) = C(n, k−1) + n/(k−2)·C(n, k−2), as ratios of neighbours: no overflow.
    total, ratio = ln_two, exp(ln_two)
    k = 3.0
    while k <= K:
        ratio = 1.0 + n / (k - 2.0) / ratio
        total += log(ratio)
        k += 1.0
    return total


@njit(cache=True, nogil=True)
def ln_nml_memo(n: float, K: float, memo: NDArray[np.float64]) -> float:
    """ln C(n, K) with ln C(n, 2) remembered in memo[n] (NaN where unknown): threads may share it."""
    i = int(n)
    two = memo[i]
    if np.isnan(two):
        two = ln_binomial_nml(n)
        memo[i] = two
    return ln_nml(n, K, two)


def new_memo(n: int) -> NDArray[np.float64]:
    """An empty memo for up to n draws."""
    return np.full(n + 1, np.nan)
