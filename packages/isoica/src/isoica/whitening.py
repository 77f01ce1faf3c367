"""Centring and whitening: weighted mean and covariance in float64, one chunk at a time, and the numerical rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from .errors import IsoICAError

Array = NDArray[Any]
Chunks = Callable[[], Iterable[tuple[Array, Array | None]]]
"""Call it for one pass over the white data: blocks ``(k, b)`` with their weights ``(b,)`` (None: all one)."""


Limits = tuple[Array, Array]
"""Least and largest value (p,) of each column; what lies beyond is moved there."""


def limits_of(X: Array, share: float, rows: int = 100_000) -> Limits:
    """The quantiles ``share`` and ``1 - share`` of the columns of ``X`` (n, p), on a thinned sample of large X."""
    low, high = np.quantile(X[:: -(-len(X) // rows)], [share, 1 - share], axis=0)
    return low, high


def moments(X: Array, weights: Array | None, rows: int, limits: Limits | None = None) -> tuple[Array, Array]:
    """Weighted mean (p,) and covariance (p, p) of ``X`` (n, p), reading ``rows`` rows at a time."""
    n, p = X.shape
    total = float(n) if weights is None else float(weights.sum())
    mean = np.zeros(p)
    for part, w in _blocks(X, weights, rows, limits):
        mean += part.sum(axis=0) if w is None else w @ part
    mean /= total
    cov = np.zeros((p, p))
    for part, w in _blocks(X, weights, rows, limits):
        centred = part - mean
        cov += centred.T @ (centred if w is None else w[:, None] * centred)
    return mean, cov / total


def _blocks(X: Array, weights: Array | None, rows: int, limits: Limits | None) -> Iterator[tuple[Array, Array | None]]:
    for start in range(0, len(X), rows):
        yield _part(X, start, rows, limits), None if weights is None else weights[start : start + rows]


def _part(X: Array, start: int, rows: int, limits: Limits | None) -> Array:
    part = np.asarray(X[start : start + rows], dtype=np.float64)
    return part if limits is None else np.clip(part, *limits)


def whitening_matrix(cov: Array, n: int, n_components: int | None) -> tuple[Array, int]:
    """``K`` (k, p) with ``K cov K' = I`` for the ``k`` leading principal directions, and the numerical rank.

    The rank counts eigenvalues above ``λ_max·max(n, p)·eps``. Rows are signed so that the first nonzero entry is
    positive. Raises IsoICAError where ``n_components`` exceeds the rank.
    """
    values, vectors = linalg.eigh(cov)
    values, vectors = values[::-1], vectors[:, ::-1]
    floor = values[0] * max(n, len(cov)) * np.finfo(np.float64).eps
    rank = int(np.sum(values > floor))
    k = rank if n_components is None else n_components
    if k > rank or rank == 0:
        raise IsoICAError(
            f"n_components={k} exceeds the numerical rank {rank} of X; use at most {rank} or None"
            if rank
            else "X has numerical rank 0: no column varies"
        )
    vectors = vectors[:, :k]
    first = vectors[np.argmax(np.abs(vectors) > 1e-12, axis=0), np.arange(k)]
    return (vectors * np.where(first < 0, -1.0, 1.0) / np.sqrt(values[:k])).T, rank


def white_chunks(
    X: Array,
    mean: Array,
    K: Array,
    weights: Array | None,
    dtype: str,
    batch_size: int | None,
    limits: Limits | None = None,
) -> Chunks:
    """Passes over the white data. Without ``batch_size`` it is stored (k, n); with it, each pass whitens anew."""
    k = len(K)
    w = None if weights is None else weights.astype(dtype)
    if batch_size is None:
        Z = np.empty((k, len(X)), dtype=dtype)
        step = max(1, 2**22 // max(k, X.shape[1]))
        for start in range(0, len(X), step):
            Z[:, start : start + step] = K @ (_part(X, start, step, limits) - mean).T
        width = max(512, 2**15 // k)  # three such blocks stay in the second-level cache

        def stored() -> Iterator[tuple[Array, Array | None]]:
            for start in range(0, Z.shape[1], width):
                yield Z[:, start : start + width], None if w is None else w[start : start + width]

        return stored

    def streamed() -> Iterator[tuple[Array, Array | None]]:
        for start in range(0, len(X), batch_size):
            part = _part(X, start, batch_size, limits)
            yield (
                np.ascontiguousarray((K @ (part - mean).T).astype(dtype)),
                (None if w is None else w[start : start + batch_size]),
            )

    return streamed
