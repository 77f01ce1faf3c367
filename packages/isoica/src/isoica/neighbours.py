"""Neighbourhoods of a point cloud near a manifold: graph, tangent planes, noise level and intrinsic dimension."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from .errors import IsoICAError

Array = NDArray[np.float64]

_ENTRIES = 2**22  # of the differences (points, k, D) held at once


@dataclass(frozen=True)
class Neighbourhoods:
    """The neighbours of each of n points and their places in its tangent plane.

    index : (n, k) neighbours. weight : (n, k), 0 for padding (then the neighbour is the point itself).
    tangents : (n, D, d) orthonormal columns. places : (n, k, d) coordinates t of the neighbours in them.
    noise : standard deviation per coordinate off the tangent planes. chord : whether places have chord length.
    """

    index: NDArray[np.intp]
    weight: Array
    tangents: Array
    places: Array
    noise: float
    chord: bool


def neighbours_of(X: Array, k: int, n_jobs: int | None = None) -> NDArray[np.intp]:
    """(n, k) nearest other points."""
    return np.asarray(NearestNeighbors(n_neighbors=k, n_jobs=n_jobs).fit(X).kneighbors(return_distance=False))


def blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of at most ``_ENTRIES/width`` rows."""
    rows = max(1, _ENTRIES // max(width, 1))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def tangent_places(X: Array, index: NDArray[np.intp], d: int, lengths: str) -> Neighbourhoods:
    """Tangent planes by local PCA of the neighbour differences, and the neighbours' coordinates in them.

    lengths : "projected" onto the plane, robust to noise; "chord", rescaled to the distance in space, closer to the
        geodesic where there is no noise; "auto", chord unless noise explains more than half of what the neighbours are
        off the planes.
    """
    n, k, D = *index.shape, X.shape[1]
    tangents, places, chords = np.empty((n, D, d)), np.empty((n, k, d)), np.empty((n, k))
    for part in blocks(n, k * D):
        delta = X[index[part]] - X[part, None]
        centred = delta - delta.mean(axis=1, keepdims=True)
        T = _leading(centred, d)
        tangents[part], places[part] = T, delta @ T
        chords[part] = np.linalg.norm(delta, axis=2)
    projected = np.linalg.norm(places, axis=2)
    off = np.maximum(chords**2 - projected**2, 0.0)
    # Mean square off the plane of a neighbour at t: 2(D-d)σ² by noise, |t|² by tilt of the plane, |t|⁴ by curvature.
    powers = np.stack([projected.ravel() ** p / max(np.mean(projected**p), 1e-300) for p in (0, 2, 4)])
    level = float(optimize.nnls(powers @ powers.T, powers @ off.ravel())[0][0])
    chord = lengths == "chord" or (lengths == "auto" and level <= 0.5 * off.mean())
    if chord:
        places *= np.divide(chords, projected, out=np.ones_like(chords), where=projected > 1e-12 * chords)[:, :, None]
    noise = float(np.sqrt(level / (2 * (D - d)))) if d < D else 0.0
    return Neighbourhoods(index, np.ones((n, k)), tangents, places, noise, chord)


def _leading(centred: Array, d: int) -> Array:
    """The d leading right singular vectors (m, D, d) of matrices (m, k, D), orthonormal also where the rank is less."""
    _, k, D = centred.shape
    if k >= D:
        return np.linalg.eigh(np.swapaxes(centred, 1, 2) @ centred)[1][:, :, : -d - 1 : -1]
    values, U = np.linalg.eigh(centred @ np.swapaxes(centred, 1, 2))
    values, U = values[:, : -d - 1 : -1], U[:, :, : -d - 1 : -1]
    flat = values[:, -1] <= 1e-14 * values[:, 0]
    T = np.swapaxes(centred, 1, 2) @ (U / np.sqrt(np.maximum(values, 1e-300))[:, None, :])
    if flat.any():
        T[flat] = np.linalg.svd(centred[flat], full_matrices=False)[2][:, :d].swapaxes(1, 2)
    return np.asarray(T)


def connect(X: Array, hood: Neighbourhoods, policy: str) -> Neighbourhoods:
    """Neighbourhoods whose graph is connected: policy "mst" adds the shortest bridges, "error" raises."""
    n, k = hood.index.shape
    graph = sparse.csr_array((np.ones(n * k), (np.repeat(np.arange(n), k), hood.index.ravel())), shape=(n, n))
    count, label = connected_components(graph, directed=False)
    if count == 1:
        return hood
    sizes = np.sort(np.bincount(label))[::-1]
    shown = ", ".join(map(str, sizes[:8])) + (", …" if count > 8 else "")
    if policy == "error":
        raise IsoICAError(f"the graph of {k} neighbours has {count} components of {shown} points; raise n_neighbors")
    warnings.warn(
        f"the graph of {k} neighbours has {count} components of {shown} points; they are joined by their shortest "
        "bridges, about which a part can turn: raise n_neighbors, or treat the parts one by one",
        UserWarning,
        4,
    )
    bridges: list[tuple[int, int]] = []
    for _ in range(count - 1):
        inside = label == label[np.argmin(np.bincount(label)[label])]  # a smallest part
        here, there = np.flatnonzero(inside), np.flatnonzero(~inside)
        distance, nearest = NearestNeighbors(n_neighbors=1).fit(X[there]).kneighbors(X[here])
        a = int(np.argmin(distance[:, 0]))
        i, j = int(here[a]), int(there[nearest[a, 0]])
        bridges += [(i, j), (j, i)]
        label[inside] = label[j]
    return _with_edges(X, hood, bridges)


def _with_edges(X: Array, hood: Neighbourhoods, edges: list[tuple[int, int]]) -> Neighbourhoods:
    n, k, d = hood.places.shape
    extra = int(np.bincount([i for i, _ in edges]).max())
    index = np.concatenate([hood.index, np.repeat(np.arange(n)[:, None], extra, axis=1)], axis=1)
    weight = np.concatenate([hood.weight, np.zeros((n, extra))], axis=1)
    places = np.concatenate([hood.places, np.zeros((n, extra, d))], axis=1)
    used = np.full(n, k)
    for i, j in edges:
        delta = X[j] - X[i]
        t = delta @ hood.tangents[i]
        length, distance = np.linalg.norm(t), np.linalg.norm(delta)
        # The tangent plane knows the direction of a far point badly; its distance is all there is.
        places[i, used[i]] = t * (distance / length) if length > 0 else distance * np.eye(d)[0]
        index[i, used[i]], weight[i, used[i]] = j, 1.0
        used[i] += 1
    return replace(hood, index=index, weight=weight, places=places)


# --- intrinsic dimension


@dataclass(frozen=True)
class Dimension:
    """Two estimates of the intrinsic dimension: ``two_nn`` (real) and ``local_pca`` (the gap of the mean spectrum)."""

    two_nn: float
    local_pca: int

    @property
    def taken(self) -> int:
        """TwoNN rounded, or the gap where that is smaller: noise inflates what the two nearest neighbours see."""
        return max(1, min(round(self.two_nn), self.local_pca))

    @property
    def agree(self) -> bool:
        """Whether the rounded TwoNN estimate is the gap."""
        return round(self.two_nn) == self.local_pca


def intrinsic_dimension(X: Any, k: int = 20, n_jobs: int | None = None) -> Dimension:
    """Intrinsic dimension of the points X (n, D).

    TwoNN (Facco et al. 2017): the ratio of the two smallest distances of a point has a Pareto law with exponent d;
    fitted on the lower nine tenths. Local PCA: the widest relative gap in the mean spectrum of k neighbours.
    """
    X = np.asarray(X, dtype=np.float64)
    k = min(k, len(X) - 1)
    if k < 3:
        raise IsoICAError(f"n_samples = {len(X)}; at least 4 are needed to estimate a dimension")
    distance, index = NearestNeighbors(n_neighbors=k, n_jobs=n_jobs).fit(X).kneighbors()
    keep = distance[:, 0] > 0
    ratio = np.sort(np.log(distance[keep, 1] / distance[keep, 0]))
    m = int(0.9 * len(ratio))
    y = -np.log1p(-np.arange(1, m + 1) / (len(ratio) + 1))
    x = ratio[:m]
    two_nn = float(x @ y / (x @ x)) if m and x @ x > 0 else 1.0
    spectrum = np.zeros(min(k, X.shape[1]))
    for part in blocks(len(X), k * X.shape[1]):
        delta = X[index[part]] - X[part, None]
        delta -= delta.mean(axis=1, keepdims=True)
        spectrum += np.sum(np.linalg.svd(delta, compute_uv=False)[:, : len(spectrum)] ** 2, axis=0)
    spectrum = spectrum[spectrum > 1e-12 * spectrum[0]]
    half = spectrum[: max(2, k // 2 + 1)]
    if len(spectrum) < min(k - 1, X.shape[1]) and len(half) == len(spectrum):
        half = np.append(half, 1e-12 * half[0])  # rank ends here: the widest gap of all
    gap = int(np.argmax(half[:-1] / half[1:])) + 1 if len(half) > 1 else 1
    return Dimension(two_nn, gap)
