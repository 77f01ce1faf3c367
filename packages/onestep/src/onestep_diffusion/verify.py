"""The ratio as verifier: student samples, weighted by exp(log ratio), stand for the data (arXiv:2502.08005 v5)."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, DataError

METHODS = ("sir", "rejection", "best_of")


def resample(
    log_ratio: ArrayLike,
    *,
    method: str = "sir",
    group: int | None = None,
    n_out: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose among m candidates by their log ratios log p_data - log p_student.

    Args:
        log_ratio: (m,) nats; -inf is never chosen.
        method: `sir`, sampling-importance-resampling: a draw with probability proportional to exp(l / temperature);
            tends to the data's law as the group grows, if the ratio is right.
            `rejection`: keep candidate i with probability exp((l_i - running maximum) / temperature); later
            candidates are cleaner, as a new one exceeds the maximum of i others with probability 1/(i + 1).
            `best_of`: the largest ratio. Biased: it contracts to the mode of the ratio as the group grows.
        group: N candidates compete for one place; m has to be a multiple of N. None: all m are one pool.
        n_out: of a pool, how many to take: `sir` draws that many with replacement (default m), `best_of` takes the
            best so many (default 1), `rejection` stops there (default: all accepted; there may be fewer).
        temperature: > 0; large values make the choice uniform, small ones greedy.

    Returns:
        With a group, m // N indices, the j-th within [j N, (j + 1) N); else indices into the pool, for `rejection`
        in the order of the candidates.

    Warns if the mean effective sample size of `sir` is below a quarter of the group: the ratio is too peaked to trust.
    Raises ConfigError for illegal settings and DataError for log ratios that are not numbers or leave no candidate.
    """
    logits = _logits(log_ratio, temperature, group)
    if method not in METHODS:
        raise ConfigError(f"resampling method {method!r} is not one of {', '.join(METHODS)}")
    if n_out is not None and (n_out < 1 or group is not None):
        raise ConfigError(f"n_out={n_out} has to be positive, and is given only without a group")
    if method == "rejection" and group is not None:
        raise ConfigError(f"rejection works on one pool; leave out group={group}")
    rng = np.random.default_rng(seed)
    pool = logits.ravel()
    if method == "rejection":
        accepted = np.log1p(-rng.random(pool.size)) <= pool - np.maximum.accumulate(pool)
        return np.flatnonzero(accepted)[:n_out]
    if method == "best_of":
        if group is None:
            return np.argsort(-pool, kind="stable")[: n_out or 1]
        return logits.argmax(1) + np.arange(len(logits)) * group
    ess = _ess(logits)
    if ess.mean() < logits.shape[1] / 4:
        warnings.warn(
            f"effective sample size {ess.mean():.2g} of {logits.shape[1]} candidates: the log ratio is too peaked; "
            "raise sigma_v or the temperature, or refit the ratio",
            stacklevel=2,
        )
    if group is None:
        probability = np.exp(pool - pool.max())
        return rng.choice(pool.size, size=n_out or pool.size, p=probability / probability.sum())
    # Gumbel's trick: the place of the largest l + noise is a draw from softmax(l).
    return (logits + rng.gumbel(size=logits.shape)).argmax(1) + np.arange(len(logits)) * group


def importance_ess(log_ratio: ArrayLike, *, group: int | None = None, temperature: float = 1.0) -> NDArray[np.float64]:
    """(sum w)^2 / sum w^2 of w = exp(l / temperature), one value a group, from 1 to N; one without a group."""
    return _ess(_logits(log_ratio, temperature, group))


def _ess(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    w = np.exp(logits - logits.max(1, keepdims=True))
    ess: NDArray[np.float64] = w.sum(1) ** 2 / (w**2).sum(1)
    return ess


def _logits(log_ratio: ArrayLike, temperature: float, group: int | None) -> NDArray[np.float64]:
    """(groups, N) log weights, checked."""
    l = np.asarray(log_ratio, float)
    if l.ndim != 1 or l.size == 0 or np.isnan(l).any() or np.isposinf(l).any():
        raise DataError(f"log_ratio has to be (m,) numbers below infinity, m > 0; got shape {l.shape} or such an entry")
    if not temperature > 0:
        raise ConfigError(f"temperature has to be positive; got {temperature}")
    if group is not None and (group < 1 or l.size % group):
        raise ConfigError(f"the number of candidates, {l.size}, has to be a multiple of group={group}")
    logits = l.reshape(-1, group or l.size) / temperature
    if np.isneginf(logits).all(1).any():
        raise DataError("a group has only candidates with log ratio -inf")
    return logits
