"""Codes of set partitions: which environments share a mechanism."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import lgamma, log, log2

import numpy as np
from numpy.typing import NDArray

LN2 = log(2.0)


def crp_bits(sizes: Iterable[int], theta: float = 1.0) -> float:
    """Bits of a partition with blocks of these sizes under the Ewens (Chinese restaurant) distribution.

    −log2 [ θ^k ∏_B (|B|−1)! / ∏_{i<N} (θ+i) ]: sums to one over the partitions of N items, for every θ > 0.
    """
    sizes = [int(s) for s in sizes]
    n = sum(sizes)
    blocks = sum(crp_size_bits(max(sizes, default=1), theta)[s] for s in sizes)
    return float(blocks + crp_count_bits(n, theta))


def crp_size_bits(largest: int, theta: float = 1.0) -> NDArray[np.float64]:
    """The part of `crp_bits` that a block of size s adds, at index s (0..largest): −log2 θ − log2 (s−1)!."""
    if theta <= 0:
        raise ValueError(f"theta must be positive, not {theta}")
    return np.array([0.0] + [-log2(theta) - lgamma(s) / LN2 for s in range(1, largest + 1)])


def crp_count_bits(n: int, theta: float = 1.0) -> float:
    """The part of `crp_bits` that does not depend on the blocks: log2 ∏_{i<n} (θ+i)."""
    return (lgamma(theta + n) - lgamma(theta)) / LN2


def stirling_bits(n: int, k: int) -> float:
    """Bits of a partition of n items into k blocks: k uniform in 1..n, then uniform among the S2(n, k) partitions."""
    return log2(n) + log2_stirling2(n, k)


def log2_stirling2(n: int, k: int) -> float:
    """log2 of the Stirling number of the second kind; −inf where there is no such partition."""
    return float(_log2_stirling_row(n)[k]) if 0 <= k <= n else float("-inf")


@lru_cache(maxsize=64)
def _log2_stirling_row(n: int) -> NDArray[np.float64]:
    # S2(n, k) = S2(n−1, k−1) + k·S2(n−1, k), in logarithms: the numbers themselves overflow from n = 220 on.
    row = np.full(n + 1, -np.inf)
    row[0] = 0.0
    with np.errstate(divide="ignore"):
        log2_k = np.log2(np.arange(n + 1.0))
    for _ in range(n):
        row = np.logaddexp2(np.concatenate([[-np.inf], row[:-1]]), log2_k + row)
    return row
