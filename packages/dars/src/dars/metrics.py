"""Numbers about runs: pass@k, paired bootstrap intervals, resolved tasks over the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate, from n independent runs of which c succeeded, that at least one of k succeeds.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021). Not for the leaves of a tree, which are not independent.

    Raises
    ------
    ValueError
        k > n or below 1, or c outside [0, n].

    Examples
    --------
    >>> round(pass_at_k(10, 3, 2), 6)
    0.533333
    """
    if not 0 <= c <= n:
        raise ValueError(f"c is {c}; of {n} runs 0 to {n} can succeed")
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it has to lie between 1 and the number of runs, {n}")
    if n - c < k:
        return 1.0
    failed = 1.0
    for m in range(n - c + 1, n + 1):
        failed *= 1 - k / m
    return 1 - failed


def paired_bootstrap(a: ArrayLike, b: ArrayLike, n: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high) of a - b, 95 % percentile interval; pairs (task, seed) are resampled.

    Raises
    ------
    ValueError
        Different lengths, or nothing at all.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"a and b have to be equally long and not empty; got shapes {x.shape} and {y.shape}")
    gaps = x - y
    rng = np.random.default_rng(seed)
    means = np.empty(n)
    for start in range(0, n, 1000):
        rows = rng.integers(len(gaps), size=(min(1000, n - start), len(gaps)))
        means[start : start + len(rows)] = gaps[rows].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(gaps.mean()), float(low), float(high)


def cost_curve(runs: Sequence[Mapping[str, Any]], budgets: Sequence[float]) -> NDArray[np.float64]:
    """Share of runs that had resolved their task within each budget.

    Parameters
    ----------
    runs : each with "resolved_at", what had been spent when the first resolving candidate was there, or None.
    """
    if not runs:
        raise ValueError("there are no runs to draw a curve of")
    spent = np.array([np.inf if run["resolved_at"] is None else float(run["resolved_at"]) for run in runs])
    return np.array([(spent <= budget).mean() for budget in budgets])
