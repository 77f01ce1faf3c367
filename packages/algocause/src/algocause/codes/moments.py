"""Mechanisms read through central moments: one Cholesky factor gives the bits of a block under each Gaussian code.

With parents S first and the node last, every code needs only ln det R_S and the last pivot of
R = prior + C + (n·a/(n+a))·x̄x̄ᵀ, where C is the centred scatter of the block and a the prior weight of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, lgamma, log, pi, sqrt
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..data import Moments
from ..partition import (
    Blocks,
    Links,
    PartitionCode,
    agglomerate_items,
    block_costs_of_items,
    compiled,
    partition_dp,
    partition_dp_by_count,
)

LN2 = log(2.0)
BGE, BIC, NIG = 0, 1, 2
COLLINEAR = 1e-12  # a squared pivot below this part of the diagonal is rounding
NIG_SHAPE = 1.0  # a0 of the inverse gamma prior; its scale b0 is half the child's prior


@dataclass(frozen=True)
class Design:
    """Columns that stand for the variables, and the code that reads their moments.

    moments : of all columns, one group an environment.
    as_parent, as_child : for each variable the columns that it contributes as a parent and as a child.
    log2_scale : (d,) bits a row that turn the density of the columns into one of the data.
    parent_prior : (columns,) diagonal of the prior on parents. child_prior : the same for the child.
    mean_weight : a, the prior weight of the mean (intercept) in rows; 0 for none.
    kind : BGE, BIC or NIG. floor : (d,) least residual variance (BIC).
    """

    kind: int
    moments: Moments
    as_parent: tuple[NDArray[np.intp], ...]
    as_child: tuple[NDArray[np.intp], ...]
    log2_scale: NDArray[np.float64]
    parent_prior: NDArray[np.float64]
    child_prior: float
    mean_weight: float
    floor: NDArray[np.float64]
    _linked: dict[Any, Moments] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_per_env(self) -> NDArray[np.float64]:
        return self.moments.n

    def partition(
        self, node: int, parents: tuple[int, ...], code: PartitionCode, links: Links, exact: bool
    ) -> tuple[float, Blocks]:
        """The best partition of the environments for one (node, parents): its bits with the partition code, and blocks."""
        m = self._moments_of(links)
        cols, args = self._request(node, parents)
        if exact:
            total, labels = _exact(
                m.n, m.mean, m.scatter, cols, links.sizes, code.size_bits, code.count_bits, links.apart,
                code.name == "crp", args,
            )  # fmt: skip
        else:
            total, labels = _agglomerate(
                m.n, m.mean, m.scatter, cols, links.sizes, code.size_bits, code.count_bits, links.apart, args
            )
        return total + self._jacobian(node, self.moments.n.sum()), links.unpacked(labels)

    def block_bits(self, node: int, parents: tuple[int, ...], blocks: Blocks) -> list[float]:
        """Bits of the mechanism of each block, in the units of the data."""
        cols, args = self._request(node, parents)
        merged = self.moments.columns(cols).merged(blocks)
        return [
            float(moment_bits(packed(merged[b]), args)) + self._jacobian(node, merged.n[b]) for b in range(len(blocks))
        ]

    def _jacobian(self, node: int, n: Any) -> float:
        return float(n * self.log2_scale[node])

    def _request(self, node: int, parents: tuple[int, ...]) -> tuple[NDArray[np.intp], Any]:
        before = [self.as_parent[p] for p in parents]
        cols = np.concatenate([*before, self.as_child[node]])
        s = sum(len(c) for c in before)
        prior = self.parent_prior[cols]
        prior[s:] = self.child_prior
        return cols, (self.kind, s, prior, self.mean_weight, float(self.floor[node]))

    def _moments_of(self, links: Links) -> Moments:
        if len(links.groups) == len(self.moments.n):
            return self.moments
        if links.groups not in self._linked:
            self._linked[links.groups] = self.moments.merged(links.groups)
        return self._linked[links.groups]


def packed(moments: Moments) -> NDArray[np.float64]:
    """One group's moments as the vector [n, mean, scatter by rows] that the compiled functions read."""
    return np.concatenate([[moments.n], moments.mean, moments.scatter.ravel()])


@njit(cache=True, nogil=True)
def merge_moments(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chan's rule on packed moments; only the lower triangle of the scatter is kept up."""
    p = int((sqrt(4.0 * a.size - 3.0) - 1.0) / 2.0 + 0.5)
    out = np.empty(a.size)
    n = a[0] + b[0]
    share = b[0] / n if n > 0.0 else 0.0
    weight = a[0] * share
    out[0] = n
    for i in range(p):
        step = b[1 + i] - a[1 + i]
        out[1 + i] = a[1 + i] + share * step
        row = 1 + p + i * p
        for j in range(i + 1):
            out[row + j] = a[row + j] + b[row + j] + weight * step * (b[1 + j] - a[1 + j])
    return out


@njit(cache=True, nogil=True)
def moment_bits(stat: NDArray[np.float64], args: Any) -> float:
    """Bits of the child columns given the s parent columns before them, for one block with packed moments."""
    kind, s, prior, a, floor = args
    p = prior.size
    n = stat[0]
    if n == 0.0:
        return 0.0
    if kind == BIC and n < s + 3:
        return inf
    weight = n * a / (n + a) if a > 0.0 else 0.0
    L = np.empty((p, p))
    log_det = 0.0  # of R over the columns before the present one
    nats = 0.0
    for i in range(p):
        row = 1 + p + i * p
        for j in range(i + 1):
            r = stat[row + j] + weight * stat[1 + i] * stat[1 + j]
            if i == j:
                r += prior[i]
            for k in range(j):
                r -= L[i, k] * L[j, k]
            if i > j:
                L[i, j] = r / L[j, j]
        pivot = r
        if i < s:
            if pivot <= COLLINEAR * stat[row + i]:
                return inf
            log_det += log(pivot)
        elif kind == BGE:
            # Ratio of the evidences of l + 1 and of l columns, ν0 = A = a + 1 + l, T0 = t·1.
            l = float(i)
            A = a + 1.0 + l
            nats += 0.5 * log((n + a) / a) - lgamma(0.5 * (n + A + 1.0)) + lgamma(0.5 * (A + 1.0))
            nats += 0.5 * n * log(pi) - 0.5 * (A + l + 1.0) * log(prior[i])
            nats += 0.5 * log_det + 0.5 * (n + A + 1.0) * log(pivot)
            log_det += log(pivot)
        elif kind == BIC:
            variance = max(pivot / n, floor)
            nats += 0.5 * n * (log(2.0 * pi * variance) + 1.0) + 0.5 * (s + 2.0) * log(n)
        else:
            b0 = 0.5 * prior[i]
            shape = NIG_SHAPE + 0.5 * n
            nats += 0.5 * n * log(2.0 * pi) + 0.5 * log((n + a) / a) + 0.5 * log_det
            for k in range(s):
                nats -= 0.5 * log(prior[k])
            nats += shape * log(0.5 * pivot) - NIG_SHAPE * log(b0) - lgamma(shape) + lgamma(NIG_SHAPE)
        L[i, i] = sqrt(max(pivot, 1e-300))
    return nats / LN2


@njit(cache=True, nogil=True)
def _packed_columns(
    n: NDArray[np.float64], mean: NDArray[np.float64], scatter: NDArray[np.float64], cols: NDArray[np.intp]
) -> NDArray[np.float64]:
    p = cols.size
    out = np.empty((n.size, 1 + p + p * p))
    for e in range(n.size):
        out[e, 0] = n[e]
        for i in range(p):
            out[e, 1 + i] = mean[e, cols[i]]
            for j in range(p):
                out[e, 1 + p + i * p + j] = scatter[e, cols[i], cols[j]]
    return out


_agglomerate_items = compiled(agglomerate_items, "moments", merge_moments, moment_bits)
_block_costs_of_items = compiled(block_costs_of_items, "moments", merge_moments, moment_bits)


@njit(cache=True, nogil=True)
def _agglomerate(
    n: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
    cols: NDArray[np.intp],
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    apart: NDArray[np.bool_],
    args: Any,
) -> Any:
    stats = _packed_columns(n, mean, scatter, cols)
    return _agglomerate_items(stats, sizes, size_bits, count_bits, apart, args)


@njit(cache=True, nogil=True)
def _exact(
    n: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
    cols: NDArray[np.intp],
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    apart: NDArray[np.bool_],
    additive: bool,
    args: Any,
) -> Any:
    stats = _packed_columns(n, mean, scatter, cols)
    cost = _block_costs_of_items(stats, sizes, size_bits, apart, args)
    if additive:
        total, label = partition_dp(cost, n.size)
        return total + count_bits[0], label
    return partition_dp_by_count(cost, n.size, count_bits)
