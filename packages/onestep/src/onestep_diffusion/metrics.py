"""How far two samples are apart, beyond the learned ratio. numpy in, float out; features are the caller's.

Quadratic metrics go in blocks of `chunk` rows: O(n m) time, O(chunk m) memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import euclidean_distances

from .errors import ConfigError, DataError
from .oracle import GaussianMixture

Array = NDArray[np.float64]


def frechet_distance(mu1: ArrayLike, cov1: ArrayLike, mu2: ArrayLike, cov2: ArrayLike) -> float:
    """|mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), squared 2-Wasserstein distance of two Gaussians.

    Means (d,), covariances (d, d), singular ones included. The trace of the root is the nuclear norm of
    cov1^(1/2) cov2^(1/2), which needs no root of a product that is not symmetric (metric: Heusel et al. 2017).
    """
    m1, m2 = np.asarray(mu1, float), np.asarray(mu2, float)
    c1, c2 = np.asarray(cov1, float), np.asarray(cov2, float)
    if not (m1.shape == m2.shape and m1.ndim == 1 and c1.shape == c2.shape == m1.shape * 2):
        shapes = f"{m1.shape}, {c1.shape}, {m2.shape}, {c2.shape}"
        raise DataError(f"means and covariances have to be (d,), (d, d), (d,), (d, d); got {shapes}")
    overlap = np.linalg.norm(_root(c1) @ _root(c2), "nuc")
    # Rounding alone can make the distance of equal laws negative.
    return max(float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * overlap), 0.0)


def fid(feat_a: ArrayLike, feat_b: ArrayLike) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features (n, d) and (m, d), n, m >= 2.

    It is "FID" only if the features are Inception's; say FD(features) else.
    """
    a, b = _samples(feat_a, feat_b, at_least=2)
    return frechet_distance(a.mean(0), np.atleast_2d(np.cov(a.T)), b.mean(0), np.atleast_2d(np.cov(b.T)))


def kid(a: ArrayLike, b: ArrayLike, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of the unbiased MMD^2 with kernel (x . y / d + 1)^3.

    Features (n, d) and (m, d); raises DataError if subset_size is larger than n or m (Binkowski et al. 2018).
    """
    x, y = _samples(a, b)
    if subsets < 1:
        raise ConfigError(f"subsets has to be at least 1; got {subsets}")
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise DataError(f"subset_size={subset_size} has to lie between 2 and the number of rows, {len(x)} and {len(y)}")
    rng = np.random.default_rng(seed)

    def kernel(u: Array, v: Array) -> Array:
        return (u @ v.T / u.shape[1] + 1) ** 3

    values = [
        _mmd2(
            x[rng.choice(len(x), subset_size, replace=False)],
            y[rng.choice(len(y), subset_size, replace=False)],
            kernel,
            chunk=subset_size,
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def mmd2(x: ArrayLike, y: ArrayLike, bandwidths: Sequence[float] | None = None, *, chunk: int = 1024) -> float:
    """Unbiased squared maximum mean discrepancy of (n, d) and (m, d), n, m >= 2; mean zero, also negative, if equal.

    The kernel is the mean of exp(-|x - y|^2 / (2 b^2)) over bandwidths, by default 1/4, 1/2, 1, 2, 4 times the median
    distance in the pooled sample (of 1000 points of it), which treats x and y alike and so keeps the mean zero.
    """
    a, b = _samples(x, y, at_least=2)
    if bandwidths is None:
        pooled = np.concatenate([a, b])
        some = pooled[np.random.default_rng(0).permutation(len(pooled))[:1000]]
        distances = euclidean_distances(some)[np.triu_indices(len(some), 1)]
        bandwidths = [f * max(float(np.median(distances)), np.finfo(float).tiny) for f in (0.25, 0.5, 1, 2, 4)]
    if len(bandwidths) == 0 or min(bandwidths) <= 0:
        raise ConfigError(f"bandwidths have to be positive; got {list(bandwidths)}")
    rates = [0.5 / h**2 for h in bandwidths]

    def kernel(u: Array, v: Array) -> Array:
        square = euclidean_distances(u, v, squared=True)
        return np.mean([np.exp(-rate * square) for rate in rates], axis=0)

    return _mmd2(a, b, kernel, chunk)


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, n_proj: int = 256, p: float = 2, seed: int = 0) -> float:
    """(mean over random directions of W_p^p of the projections)^(1/p), of (n, d) and (m, d); exact for n != m too."""
    a, b = _samples(x, y)
    if n_proj < 1 or not p > 0:
        raise ConfigError(f"n_proj={n_proj} has to be at least 1, and p={p} positive")
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], n_proj))
    directions /= np.linalg.norm(directions, axis=0)
    u, v = np.sort(a @ directions, axis=0), np.sort(b @ directions, axis=0)
    # Both quantile functions are constant between the multiples of 1/n and of 1/m; count in units of 1/(n m).
    n, m = len(a), len(b)
    cuts = np.union1d(np.arange(n) * m, np.arange(m) * n)
    widths = np.diff(cuts, append=n * m) / (n * m)
    costs = widths @ np.abs(u[cuts // m] - v[cuts // n]) ** p
    return float(costs.mean() ** (1 / p))


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5, *, chunk: int = 1024) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    By balls that reach to the k-th neighbour. Features (n, d) and (m, d) with n, m > k.
    """
    if k < 1 or chunk < 1:
        raise ConfigError(f"k={k} and chunk={chunk} have to be at least 1")
    a, b = _samples(real, fake, at_least=k + 1)
    ball_real, ball_fake = _radii(a, k, chunk), _radii(b, k, chunk)
    recall = coverage = 0
    inside = np.zeros(len(b), int)  # how many real balls hold each fake sample
    for rows in _blocks(len(a), chunk):
        distance = euclidean_distances(a[rows], b)
        hit = distance < ball_real[rows, None]
        inside += hit.sum(0)
        recall += int((distance < ball_fake).any(1).sum())
        coverage += int(hit.any(1).sum())
    return {
        "precision": float((inside > 0).mean()),
        "recall": recall / len(a),
        "density": float(inside.mean()) / k,
        "coverage": coverage / len(a),
    }


def mode_stats(x: ArrayLike, gm: GaussianMixture, radius: float = 3.0) -> dict[str, float]:
    """How samples (n, d) fall on the modes of a mixture, each sample belonging to the nearest mean.

    modes: how many have a sample within radius standard deviations of their mean; high_quality: the share of samples
    that are; kl: KL(shares of the modes in the sample || weights), nats.
    """
    if not radius > 0:
        raise ConfigError(f"radius has to be positive; got {radius}")
    means, scales, weights = (np.asarray(v, float) for v in (gm.means, gm.scales, gm.weights))
    points, _ = _samples(x, means)
    distance = np.concatenate([euclidean_distances(points[rows], means) for rows in _blocks(len(points), 1024)])
    nearest = distance.argmin(1)
    good = distance[np.arange(len(points)), nearest] <= radius * scales[nearest]
    share = np.bincount(nearest, minlength=len(means)) / len(points)
    seen = share > 0
    return {
        "modes": float(len(np.unique(nearest[good]))),
        "high_quality": float(good.mean()),
        "kl": float(share[seen] @ np.log(share[seen] / weights[seen])),
    }


def _root(cov: Array) -> Array:
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def _mmd2(x: Array, y: Array, kernel: Callable[[Array, Array], Array], chunk: int) -> float:
    n, m = len(x), len(y)
    xx = sum(kernel(x[rows], x).sum() - np.trace(kernel(x[rows], x[rows])) for rows in _blocks(n, chunk))
    yy = sum(kernel(y[rows], y).sum() - np.trace(kernel(y[rows], y[rows])) for rows in _blocks(m, chunk))
    xy = sum(kernel(x[rows], y).sum() for rows in _blocks(n, chunk))
    return float(xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m))


def _radii(x: Array, k: int, chunk: int) -> Array:
    """Distance of each row to its k-th nearest other row."""
    out = np.empty(len(x))
    for rows in _blocks(len(x), chunk):
        distance = euclidean_distances(x[rows], x)
        distance[np.arange(len(distance)), np.arange(rows.start, rows.start + len(distance))] = 0
        out[rows] = np.partition(distance, k, axis=1)[:, k]
    return out


def _blocks(n: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n, chunk))


def _samples(a: ArrayLike, b: ArrayLike, at_least: int = 1) -> tuple[Array, Array]:
    x, y = (_matrix(v) for v in (a, b))
    if x.shape[1] != y.shape[1]:
        raise DataError(f"both samples need equally many columns; got {x.shape[1]} and {y.shape[1]}")
    for v in (x, y):
        if len(v) < at_least:
            raise DataError(f"each sample needs at least {at_least} rows; got {len(v)}")
        if not np.isfinite(v).all():
            raise DataError("samples have to be finite")
    return x, y


def _matrix(v: Any) -> Array:
    x = np.asarray(v, float)
    if x.ndim < 2:
        raise DataError(f"samples have to be (n, d); got shape {x.shape}")
    return x.reshape(len(x), -1)
