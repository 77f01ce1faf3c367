"""Differentially private moments: Gaussian noise on means and second moments, then repair (spec 13.4).

A moments file is an average of one vector per row. Noise on the average hides every single row; whatever is computed
from the noisy numbers afterwards, the repair included, stays private. The noise is calibrated exactly (Balle and
Wang 2018, "Improving the Gaussian mechanism for differential privacy", arXiv:1805.06530, Theorem 8).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr

from .completion import complete_covariance
from .errors import CMaxEntError, InfeasibleMomentsError
from .graph import _listed
from .moments import Moments, _nonredundant, _variable_of
from .pooling import _shrunk_pairs

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_LARGEST_CORRELATION = 1 - 1e-6


def privatize(
    moments: Moments,
    epsilon: float,
    delta: float,
    bounds: Mapping[str, tuple[float, float]],
    random_state: int | np.random.Generator | None = None,
) -> Moments:
    """(epsilon, delta)-differentially private moments of the rows behind ``moments``.

    Two data sets are neighbours if one row has other values (replace-one; which values are missing, and with it the
    counts, is public). Released are the means and the known second moments about 0 of the scaled coordinates: each
    number once, mirrored over the symmetric matrix, with independent Gaussian noise.

    Parameters
    ----------
    moments : with ``n``; if pairs rest on different rows, the smallest pair count is used.
    epsilon, delta : privacy budget of the whole release; epsilon > 0, 0 < delta < 1 (well below 1/n).
    bounds : continuous variable -> (lowest, highest) value that a row can have. They have to hold for every row and
        to come from outside the data; what lies beyond them is not protected. Tight bounds mean little noise.
    random_state : seed or generator. Keep it secret: who knows the seed can subtract the noise.

    Returns
    -------
    Moments
        Usable like any other: frequencies inside (0, 1), variances positive, tables of indicators without negative
        cells, and the known covariances positive definite after off-diagonals were multiplied by
        1 - ``repair_alpha`` (0 if no repair was needed).

    Raises
    ------
    CMaxEntError
        No ``n``, a bad budget, bounds that are missing, empty, of a variable that does not exist, or that the moments
        contradict.

    Notes
    -----
    The covariance of a pair is its noisy second moment minus the product of the noisy overall means. Where pairs rest
    on different rows, this differs from the covariance about the pair's own means by a sampling error. The guarantee is
    for averages over unweighted rows, ``n`` of them; a row of weight w moves its moments w times as far. Noise is drawn
    in floating point, which is not proof against attacks on its last bits (Mironov 2012).
    """
    if not (epsilon > 0 and np.isfinite(epsilon)):
        raise CMaxEntError(f"epsilon has to be a positive number; got {epsilon!r}")
    if not 0 < delta < 1:
        raise CMaxEntError(f"delta has to lie strictly between 0 and 1; got {delta!r}")
    n = _smallest_count(moments)
    middle, width = _scaling(moments, bounds)
    release = _Release.of(moments)
    scale = gaussian_noise_scale(epsilon, delta, release.sensitivity / n)
    mean, second = _scaled_moments(moments, middle, width)
    rng = np.random.default_rng(random_state)
    mean = mean + _spread_out(scale * rng.standard_normal(len(release.means)), release.means, moments.p)
    i, j = release.seconds
    noise = np.zeros_like(second)
    noise[i, j] = scale * rng.standard_normal(len(i))
    noise[j, i] = noise[i, j]
    return _repaired(moments, mean, second + noise, middle, width, release, scale, n)


def gaussian_noise_scale(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """Smallest standard deviation of Gaussian noise that makes a query of this L2 sensitivity (epsilon, delta)-private.

    The root s of Phi(D/2s - epsilon s/D) - exp(epsilon) Phi(-D/2s - epsilon s/D) = delta, D the sensitivity. The
    textbook D sqrt(2 log(1.25/delta))/epsilon is larger, and valid for epsilon < 1 only.
    """

    def excess(log_ratio: float) -> float:
        r = np.exp(log_ratio)
        first, second = log_ndtr(0.5 / r - epsilon * r), epsilon + log_ndtr(-0.5 / r - epsilon * r)
        # log of exp(first) - exp(second), accurate for tiny delta
        return float(first + np.log(-np.expm1(min(second - first, -1e-300)))) - np.log(delta)

    low, high = -1.0, 1.0
    while excess(low) <= 0:
        low -= 2.0
    while excess(high) > 0:
        high += 2.0
    root = brentq(excess, low, high, xtol=1e-14, rtol=1e-14)
    return sensitivity * float(np.exp(root))


# --- what is released, and how far one row can move it --------------------------------------------------------------


@dataclass(frozen=True)
class _Release:
    """Entries that get noise: what others imply (last indicators, squares of indicators) is left out."""

    means: Index  # (q,) coordinates
    seconds: tuple[Index, Index]  # (i, j), i <= j
    squares: int  # how many of them have i = j: the continuous coordinates

    @classmethod
    def of(cls, moments: Moments) -> _Release:
        keep = _nonredundant(moments)
        owner = [_variable_of(name, moments.kinds) for name in moments.names]
        continuous = np.array([moments.kinds[v] == "continuous" for v in owner])
        number = {v: k for k, v in enumerate(moments.variables)}
        home = np.array([number[v] for v in owner])
        chosen = moments.known.copy()
        chosen &= (home[:, None] != home) | (np.eye(moments.p, dtype=bool) & continuous)
        inside = np.isin(np.arange(moments.p), keep)
        chosen &= inside[:, None] & inside
        i, j = np.nonzero(np.triu(chosen))
        return cls(keep, (i, j), int((i == j).sum()))

    @property
    def sensitivity(self) -> float:
        """n times a bound of the L2 distance between the releases of two data sets that differ in one row.

        A row enters as T(u) = (u_i; u_i u_j for released pairs i < j; u_i^2 for continuous i) with |u_i| <= 1/2, and
        the release is the mean of T, so that n times the distance is |T(u) - T(v)|. Of two bounds the smaller counts.

        1. Entry by entry: |u_i - v_i| <= 1, |u_i u_j - v_i v_j| <= 1/2, |u_i^2 - v_i^2| <= 1/4, hence
           |T(u) - T(v)|^2 <= q + pairs/4 + squares/16.
        2. Jointly: with a = |u|^2, b = |v|^2 <= q/4 and s = u.v, and over all pairs,
           |u - v|^2 + |uu' - vv'|_F^2 / 2 = a + b - 2s + (a^2 + b^2)/2 - s^2. For q >= 4 it is largest at s = -1, where
           it is ((1 + a)^2 + (1 + b)^2)/2 <= R^4 with R^2 = 1 + q/4; for q < 4, s >= -q/4 > -1 and it is at most q. In
           |uu' - vv'|_F^2 / 2 a square counts half, those of indicators being constant; the other half of the released
           squares adds at most squares/32. (Noise on both mirror images would need sqrt(2) R^2.)
        """
        q, pairs = len(self.means), len(self.seconds[0]) - self.squares
        singly = q + pairs / 4 + self.squares / 16
        jointly = ((1 + q / 4) ** 2 if q >= 4 else float(q)) + self.squares / 32
        return float(np.sqrt(min(singly, jointly)))


def _smallest_count(moments: Moments) -> float:
    counts = moments.pair_counts()
    if counts is None:
        raise CMaxEntError("privatize needs the number of rows behind the moments: give n= when they are made")
    n = float(counts[moments.known].min())
    if n < 1:
        i, j = (int(k) for k in np.argwhere(moments.known & (counts < 1))[0])
        raise CMaxEntError(f"the pair {moments.names[i]}, {moments.names[j]} rests on {counts[i, j]:g} rows")
    return n


def _scaling(moments: Moments, bounds: Mapping[str, tuple[float, float]]) -> tuple[Array, Array]:
    """Middle and width (p,) of the range of each coordinate."""
    continuous = [v for v, kind in moments.kinds.items() if kind == "continuous"]
    unknown = [v for v in bounds if v not in moments.kinds]
    if unknown:
        raise CMaxEntError(f"bounds name {_listed(unknown)}, but the variables are {_listed(moments.variables)}")
    discrete = [v for v in bounds if v not in continuous]
    if discrete:
        raise CMaxEntError(f"bounds are for continuous variables; {_listed(discrete)} is discrete, with values 0 and 1")
    missing = [v for v in continuous if v not in bounds]
    if missing:
        raise CMaxEntError(f"bounds are missing for {_listed(missing)}: the noise covers a row's range")
    middle, width = np.full(moments.p, 0.5), np.ones(moments.p)
    for v in continuous:
        k = moments.names.index(v)
        try:
            low, high = (float(value) for value in bounds[v])
        except (TypeError, ValueError):
            raise CMaxEntError(f"bounds of {v} have to be a pair (lowest, highest); got {bounds[v]!r}") from None
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise CMaxEntError(f"bounds of {v} have to be finite and increasing; got ({low:g}, {high:g})")
        mean, variance = moments.mean[k], moments.cov[k, k]
        if not low <= mean <= high:
            raise CMaxEntError(f"{v} has mean {mean:.6g}, outside its bounds [{low:g}, {high:g}]")
        if variance > (high - mean) * (mean - low) * (1 + 1e-9):
            raise CMaxEntError(
                f"{v} has variance {variance:.6g}, more than {(high - mean) * (mean - low):.6g}, the most that values "
                f"within [{low:g}, {high:g}] with mean {mean:.6g} can have: the bounds are too narrow"
            )
        middle[k], width[k] = (low + high) / 2, high - low
    return middle, width


def _scaled_moments(moments: Moments, middle: Array, width: Array) -> tuple[Array, Array]:
    """E[u] and E[u u'] of u = (x - middle) / width; a pair's second moment is over the rows that observe both."""
    own = (
        moments.pair_mean
        if moments.pair_mean is not None
        else np.broadcast_to(moments.mean[:, None], moments.cov.shape)
    )
    u = (own - middle[:, None]) / width[:, None]
    return (moments.mean - middle) / width, moments.cov / np.outer(width, width) + u * u.T


def _spread_out(values: Array, places: Index, p: int) -> Array:
    out = np.zeros(p)
    out[places] = values
    return out


# --- from noisy numbers to moments of some distribution ---------------------------------------------------------------


def _repaired(
    moments: Moments,
    mean: Array,
    second: Array,
    middle: Array,
    width: Array,
    release: _Release,
    scale: float,
    n: float,
) -> Moments:
    """Post-processing: reads the noisy ``mean`` and ``second`` and public facts only, never the moments' own values."""
    names, kinds = moments.names, moments.kinds
    mean = _possible_means(moments, mean, n)
    cov = np.full_like(second, np.nan)
    i, j = release.seconds
    cov[i, j] = second[i, j] - mean[i] * mean[j]
    indicators = np.flatnonzero(_discrete(moments))
    cov[indicators, indicators] = 0.25 - mean[indicators] ** 2  # pi (1 - pi)
    squares = i[i == j]
    drowned = squares[cov[squares, squares] < scale]
    if len(drowned):
        # A variance below the noise cannot be told from zero.
        cov[drowned, drowned] = min(scale, 1 / 12)
        warnings.warn(
            f"noise of SD {scale:.2g} of the squared range hides the variance of {_listed(names[k] for k in drowned)}: "
            "give tighter bounds, more rows or a larger epsilon",
            UserWarning,
            stacklevel=4,
        )
    cov[j, i] = cov[i, j]
    for variable, kind in kinds.items():
        if kind == "categorical":
            _last_level(np.array(moments.coordinates(variable)), mean, cov)
    _bound_pairs(moments, mean, cov)
    made = Moments.from_arrays(
        middle + width * mean,
        cov * np.outer(width, width),
        names=names,
        kinds=kinds,
        n=moments.n,
        levels=moments.levels,
    )
    return _positive_definite(made, cov.diagonal(), scale)


def _possible_means(moments: Moments, mean: Array, n: float) -> Array:
    """Means inside their ranges, class frequencies that sum to one, none below half a row."""
    mean = mean.copy()
    for variable, kind in moments.kinds.items():
        own = moments.coordinates(variable)
        least = min(0.5 / n, 0.5 / max(len(own), 2))
        if kind == "continuous":
            mean[own] = mean[own].clip(-0.5, 0.5)
        elif kind == "binary":
            mean[own] = mean[own].clip(-0.5 + least, 0.5 - least)
        else:
            pi = mean[own] + 0.5
            pi[-1] = 1 - pi[:-1].sum()
            mean[own] = _onto_simplex(pi, least) - 0.5
    return mean


def _onto_simplex(pi: Array, least: float) -> Array:
    """Nearest probabilities with every entry at least ``least`` (Euclidean projection)."""
    total = 1 - least * len(pi)
    ordered = np.sort(pi - least)[::-1]
    excess = (ordered.cumsum() - total) / np.arange(1, len(pi) + 1)
    last = int(np.flatnonzero(ordered > excess)[-1])
    return least + np.maximum(pi - least - excess[last], 0.0)


def _discrete(moments: Moments) -> NDArray[np.bool_]:
    return np.array([moments.kinds[_variable_of(name, moments.kinds)] != "continuous" for name in moments.names])


def _last_level(own: Index, mean: Array, cov: Array) -> None:
    """Covariances of the indicators ``own`` among themselves, and of the last one as minus the sum of the others'."""
    others = np.setdiff1d(np.arange(len(mean)), own)
    cov[own[-1], others] = cov[others, own[-1]] = -cov[np.ix_(own[:-1], others)].sum(axis=0)
    pi = mean[own] + 0.5
    cov[np.ix_(own, own)] = np.diag(pi) - np.outer(pi, pi)


def _bound_pairs(moments: Moments, mean: Array, cov: Array) -> None:
    """Scale pairs down to correlations inside (-1, 1) and, of two indicators, tables without negative cells (Fréchet).

    All indicators of a categorical variable share one factor, which keeps their covariances summing to zero.
    """
    sd, pi, discrete = np.sqrt(cov.diagonal()), mean + 0.5, _discrete(moments)
    high = _LARGEST_CORRELATION * np.outer(sd, sd)
    low = -high
    D = np.ix_(discrete, discrete)
    a, b = np.meshgrid(pi[discrete], pi[discrete], indexing="ij")
    high[D] = np.minimum(high[D], np.minimum(a, b) - a * b)
    low[D] = np.maximum(low[D], np.maximum(0.0, a + b - 1) - a * b)
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.fmin(np.where(cov > 0, high, low) / cov, 1.0)  # 1 where a pair or a variance is unknown
    coordinates = [np.array(moments.coordinates(v)) for v in moments.variables]
    for own in coordinates:
        if len(own) > 1:
            factor[own] = factor[own].min(axis=0)
    for own in coordinates:
        if len(own) > 1:
            factor[:, own] = factor[:, own].min(axis=1, keepdims=True)
        factor[np.ix_(own, own)] = 1.0
    cov *= factor


def _positive_definite(made: Moments, scaled_variance: Array, scale: float) -> Moments:
    """Smallest shrinkage of the known pairs that keeps eigenvalues of their correlations above noise or 1e-3."""
    keep = _nonredundant(made)
    usable = keep[~np.isnan(made.cov.diagonal()[keep])]
    if len(usable) == 0:
        return replace(made, repair_alpha=0.0)
    floor = min(1e-3, scale / float(scaled_variance[usable].min()))

    def fine(alpha: float) -> bool:
        block = _shrunk_pairs(made, alpha).cov[np.ix_(usable, usable)].copy()
        sd = np.sqrt(block.diagonal())
        block /= np.outer(sd, sd)
        block[np.diag_indices(len(block))] = 1 - floor
        try:
            complete_covariance(block, names=[made.names[k] for k in usable], tol=1e-6)
        except InfeasibleMomentsError:
            return False
        return True

    if fine(0.0):
        return replace(made, repair_alpha=0.0)
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if fine(middle) else (middle, high)
    return replace(_shrunk_pairs(made, high), repair_alpha=high)


__all__ = ["gaussian_noise_scale", "privatize"]
