"""Mechanisms read through central moments: one Cholesky factor gives the bits of a block under each Gaussian code.

With parents S first and the node last, every code needs only ln det R_S and the last pivot of
R = prior + C + (n·a/(n+a))·x̄x̄ᵀ, where C is the centred scatter of the block and a the prior weight of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    compiled,
    partition_dp,
    partition_dp_by_count,
)

LN2 = log(2.0)
BGE, BIC, NIG = 0, 1, 2
GREEDY, EXACT, EXACT_BY_COUNT = range(3)
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
    as_parent: tuple[tuple[int, ...], ...]
    as_child: tuple[tuple[int, ...], ...]
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
    ) -> tuple[float, NDArray[np.int64]]:
        """Bits of the best partition for one (node, parents), with the partition code, and each environment's block."""
        bits, labels = self.partitions([(node, parents)], code, links, exact)
        return float(bits[0]), labels[0]

    def partitions(
        self, requests: Sequence[tuple[int, tuple[int, ...]]], code: PartitionCode, links: Links, exact: bool
    ) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
        """`partition` of many (node, parents) in one compiled call, which holds no lock."""
        m = self._moments_of(links)
        columns: list[int] = []
        shape = np.empty((len(requests), 3), dtype=np.int64)
        for i, (node, parents) in enumerate(requests):
            start = len(columns)
            for p in parents:
                columns += self.as_parent[p]
            s = len(columns) - start
            columns += self.as_child[node]
            shape[i] = start, s, node
        mode = EXACT_BY_COUNT if exact and code.name != "crp" else EXACT if exact else GREEDY
        bits, labels = _partitions(
            m.n, m.mean, m.scatter, np.array(columns, dtype=np.intp), shape, self.kind, self.parent_prior,
            self.child_prior, self.mean_weight, self.floor, links.sizes, code.size_bits, code.count_bits, links.apart,
            mode,
        )  # fmt: skip
        return bits + self.moments.n.sum() * self.log2_scale[shape[:, 2]], [links.spread(row) for row in labels]

    def block_bits(self, node: int, parents: tuple[int, ...], blocks: Blocks) -> list[float]:
        """Bits of the mechanism of each block, in the units of the data."""
        before = [c for p in parents for c in self.as_parent[p]]
        columns = [*before, *self.as_child[node]]
        prior = self.parent_prior[columns]
        prior[len(before) :] = self.child_prior
        args = (self.kind, len(before), prior, self.mean_weight, float(self.floor[node]))
        merged = self.moments.columns(columns).merged(blocks)
        return [
            float(moment_bits(packed(merged[b]), args) + merged.n[b] * self.log2_scale[node])
            for b in range(len(blocks))
        ]

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


_agglomerate_items, _block_costs_of_items = compiled("moments", merge_moments, moment_bits)


@njit(cache=True, nogil=True)
def _partitions(
    n: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
    columns: NDArray[np.intp],
    shape: NDArray[np.int64],
    kind: int,
    parent_prior: NDArray[np.float64],
    child_prior: float,
    mean_weight: float,
    floor: NDArray[np.float64],
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    apart: NDArray[np.bool_],
    mode: int,
) -> Any:
    """Bits (R,) and labels (R, N) of R requests; shape (R, 3): first of `columns`, number of parents' columns, node."""
    bits = np.empty(len(shape))
    labels = np.empty((len(shape), n.size), dtype=np.int64)
    for i in range(len(shape)):
        start, s, node = shape[i]
        end = shape[i + 1, 0] if i + 1 < len(shape) else columns.size
        cols = columns[start:end]
        p = cols.size
        stats = np.empty((n.size, 1 + p + p * p))
        prior = np.full(p, child_prior)
        prior[:s] = parent_prior[cols[:s]]
        for e in range(n.size):
            stats[e, 0] = n[e]
            for j in range(p):
                stats[e, 1 + j] = mean[e, cols[j]]
                for k in range(p):
                    stats[e, 1 + p + j * p + k] = scatter[e, cols[j], cols[k]]
        args = (kind, s, prior, mean_weight, floor[node])
        if mode == GREEDY:
            bits[i], labels[i] = _agglomerate_items(stats, sizes, size_bits, count_bits, apart, args)
        else:
            cost = _block_costs_of_items(stats, sizes, size_bits, apart, args)
            if mode == EXACT:
                total, label = partition_dp(cost, n.size)
                total += count_bits[0]
            else:
                total, label = partition_dp_by_count(cost, n.size, count_bits)
            bits[i], labels[i] = total, label
    return bits, labels
