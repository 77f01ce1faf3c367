"""Maps between a manifold and its coordinates, blended from one affine chart per point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from .neighbours import blocks

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Atlas:
    """``y(x) = Σ_i w_i(x) (b_i + L_i (x - a_i))`` with weights that sum to 1 over the k nearest centres.

    ``w_i ∝ (1/r_i - 1/h)²`` with ``r_i = |x - a_i|`` and h the distance to the next centre (Franke and Little's form of
    Shepard's weights): once differentiable, and at a centre exactly its chart, ``y(a_i) = b_i`` and ``Dy(a_i) = L_i``.

    centres : (n, p). values : (n, q). maps : (n, q, p).
    """

    centres: Array
    values: Array
    maps: Array
    index: NearestNeighbors

    @classmethod
    def build(cls, centres: Array, values: Array, maps: Array, k: int) -> Atlas:
        """An atlas that blends k charts (fewer where there are not as many)."""
        return cls(centres, values, maps, NearestNeighbors(n_neighbors=min(k + 1, len(centres))).fit(centres))

    def __call__(self, x: Array) -> Array:
        """Values (m, q) at (m, p)."""
        y = np.empty((len(x), self.values.shape[1]))
        for part in blocks(len(x), self._width()):
            w, charts, *_ = self._charts(x[part])
            y[part] = np.einsum("mk,mkq->mq", w, charts)
        return y

    def jacobian(self, x: Array) -> Array:
        """Derivatives (m, q, p) at (m, p)."""
        J = np.empty((len(x), *self.maps.shape[1:]))
        for part in blocks(len(x), self._width()):
            w, charts, index, delta, r, h = self._charts(x[part])
            y = np.einsum("mk,mkq->mq", w, charts)
            J[part] = np.einsum("mk,mkqp->mqp", w, self.maps[index])
            # Gradient of log w_i before it is normalised: 2(-∇r_i/r_i² + ∇h/h²)/(1/r_i - 1/h).
            last = delta[:, -1] / h[:, None]
            apart = r[:, 0] > 0
            r, h, d = r[apart, :-1], h[apart], delta[apart, :-1]
            gap = np.maximum(1 - r / h[:, None], 1e-12)
            pull = (last[apart] / h[:, None] ** 2)[:, None] * r[:, :, None]
            slope = 2 * (pull - d / r[:, :, None] ** 2) / gap[:, :, None]
            J_apart = np.einsum("mk,mkq,mkp->mqp", w[apart, :-1], charts[apart, :-1] - y[apart, None], slope)
            J[part][apart] += J_apart
        return J

    def _width(self) -> int:
        return self.index.n_neighbors * max(self.maps.shape[1] * self.maps.shape[2], 1)

    def _charts(self, x: Array) -> tuple[Array, Array, NDArray[np.intp], Array, Array, Array]:
        index = self.index.kneighbors(x, return_distance=False)
        delta = x[:, None] - self.centres[index]
        r = np.linalg.norm(delta, axis=2)
        order = np.argsort(r, axis=1, kind="stable")  # the search rounds where points are close
        index, r = np.take_along_axis(index, order, 1), np.take_along_axis(r, order, 1)
        delta = np.take_along_axis(delta, order[:, :, None], 1)
        h = np.maximum(r[:, -1], 1e-300)
        ratio = np.maximum(r[:, :1], 1e-300) / np.maximum(r, 1e-300)
        w = (ratio * np.maximum(1 - r / h[:, None], 0.0)) ** 2
        exact = r[:, 0] <= 1e-12 * h
        w[exact] = 0.0
        w[exact, 0] = 1.0
        total = w.sum(axis=1, keepdims=True)
        w = np.where(total > 0, w / np.where(total > 0, total, 1.0), 1.0 / w.shape[1])
        r[exact, 0] = 0.0
        charts = self.values[index] + np.einsum("mkqp,mkp->mkq", self.maps[index], delta)
        return w, charts, index, delta, r, h
