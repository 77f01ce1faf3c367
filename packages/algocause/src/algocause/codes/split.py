"""Gaussian mechanisms whose intercept, slopes and noise variance change in different environments.

Each of the three slots has its own partition of the environments: the answer to "what changed: mean, slopes or noise?"
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log2, pi, sqrt
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..data import EnvData, Moments
from ..partition import Blocks, Links, PartitionCode, blocks_of, labels_of
from .gaussian import VARIANCE_FLOOR, refuse_collinear, standardised

SLOTS = ("intercept", "slope", "noise")
FROM_SCRATCH, WARM = 6, 2  # rounds of alternating weighted least squares


@dataclass(frozen=True)
class SplitBic:
    """−log2 of the maximum likelihood, plus ½·log2 n for each number of each class of each slot."""

    name = "bic"
    is_code = False
    score_equivalent = False


@dataclass(frozen=True)
class SplitDesign:
    """Standardised moments, and what the fit of three slots needs beside them."""

    moments: Moments
    log2_scale: NDArray[np.float64]
    floor: NDArray[np.float64]

    @property
    def n_per_env(self) -> NDArray[np.float64]:
        return self.moments.n

    def partition(
        self, node: int, parents: tuple[int, ...], code: PartitionCode, links: Links, exact: bool
    ) -> tuple[float, NDArray[np.int64]]:
        """Bits with the partition codes of all slots, and the common refinement of the three partitions as labels."""
        bits, slots = self.components(node, parents, code, links)
        return bits, labels_of(refinement(list(slots.values())))

    def components(
        self, node: int, parents: tuple[int, ...], code: PartitionCode, links: Links
    ) -> tuple[float, dict[str, Blocks]]:
        """Bits with the partition codes, and the partition of each slot; without parents there are no slopes.

        Greedy: from singletons in all slots, the merge of two classes in one slot that saves most, until none saves.
        Environments with fewer than |S| + 3 rows cannot be fitted alone and are joined to the largest one first.
        """
        total_n = float(self.moments.n.sum())
        if total_n < len(parents) + 3:
            whole: Blocks = (tuple(range(len(self.moments.n))),)
            return inf, dict.fromkeys(self._slots(parents), whole)
        groups, apart = self._fittable(links, len(parents) + 3)
        merged = self.moments.columns([*parents, node]).merged(groups)
        sizes = np.array([len(group) for group in groups], dtype=np.int64)
        bits, labels = _greedy(
            merged.n, merged.mean, merged.scatter, sizes, code.size_bits, code.count_bits, apart,
            float(self.floor[node]),
        )  # fmt: skip
        item = {i: g for g, group in enumerate(groups) for i in group}
        found = {
            slot: blocks_of([int(labels[SLOTS.index(slot), item[i]]) for i in range(len(item))])
            for slot in self._slots(parents)
        }
        return float(bits + total_n * self.log2_scale[node]), found

    def slot_bits(self, node: int, parents: tuple[int, ...], slots: dict[str, Blocks]) -> float:
        """Bits of the mechanisms, without the partition codes, for given partitions of the slots."""
        m = self.moments.columns([*parents, node])
        labels = np.array([labels_of(slots.get(slot, slots["intercept"])) for slot in SLOTS])
        variance = np.ones(len(m.n))
        bits = fit(m.n, m.mean, m.scatter, labels, variance, 50, float(self.floor[node]))
        return float(bits + m.n.sum() * self.log2_scale[node])

    def _slots(self, parents: tuple[int, ...]) -> tuple[str, ...]:
        return SLOTS if parents else ("intercept", "noise")

    def _fittable(self, links: Links, least: int) -> tuple[Blocks, NDArray[np.bool_]]:
        rows = [float(sum(self.moments.n[i] for i in group)) for group in links.groups]
        largest = int(np.argmax(rows))
        home = [largest if r < least else g for g, r in enumerate(rows)]
        kept = sorted(set(home))
        groups = tuple(
            tuple(sorted(i for g, group in enumerate(links.groups) if home[g] == k for i in group)) for k in kept
        )
        return groups, links.apart[np.ix_(kept, kept)]


def design(
    data: EnvData, code: SplitBic, standardize: bool = True, precision: NDArray[np.float64] | None = None
) -> SplitDesign:
    """The columns of the data themselves, standardised by the variance within environments."""
    moments, scale = standardised(data.moments, standardize)
    refuse_collinear(moments, data.names)
    step = np.ones(data.d) if precision is None else np.broadcast_to(np.asarray(precision, dtype=float), (data.d,))
    floor = np.zeros(data.d) if precision is None else (step / scale) ** 2 / 12
    return SplitDesign(moments, np.log2(scale) - np.log2(step), np.maximum(floor, VARIANCE_FLOOR))


def refinement(partitions: list[Blocks]) -> Blocks:
    """The coarsest partition finer than each of these."""
    return blocks_of(zip(*[labels_of(p).tolist() for p in partitions], strict=True))


@njit(cache=True, nogil=True)
def fit(
    n: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
    labels: NDArray[np.int64],
    variance: NDArray[np.float64],
    rounds: int,
    floor: float,
) -> float:
    """Bits of the last column given those before it, by alternating weighted least squares and noise variances.

    labels (3, N): class of each environment's intercept, slopes and noise, in 0..N−1. `variance` (N,) holds the
    noise variance of each environment at the start and is left at the fitted one.
    """
    N = n.size
    p = mean.shape[1] - 1
    b_of, w_of, s_of = labels[0], labels[1], labels[2]
    slopes = np.zeros((N, p))
    intercepts = np.zeros(N)
    rss = np.zeros(N)
    rows = np.zeros(N)
    for _ in range(rounds):
        # Normal equations A_w·w + Σ_b U_wb·b = g_w and Σ_w U_wb·w + B_b·b = h_b: eliminate the slopes of each class.
        A = np.zeros((N, p, p))
        U = np.zeros((N, N, p))
        g = np.zeros((N, p))
        B = np.zeros((N, N))
        h = np.zeros(N)
        for e in range(N):
            b, w = b_of[e], w_of[e]
            weight = 1.0 / variance[e]
            B[b, b] += weight * n[e]
            h[b] += weight * n[e] * mean[e, p]
            for i in range(p):
                U[w, b, i] += weight * n[e] * mean[e, i]
                g[w, i] += weight * (scatter[e, p, i] + n[e] * mean[e, i] * mean[e, p])
                for j in range(i + 1):
                    A[w, i, j] += weight * (scatter[e, i, j] + n[e] * mean[e, i] * mean[e, j])
        if p > 0:
            for w in range(N):
                if A[w, 0, 0] == 0.0:
                    continue
                _factor(A[w], 1e-14)
                _solve_lower(A[w], g[w])
                for b in range(N):
                    _solve_lower(A[w], U[w, b])
                for b in range(N):
                    for i in range(p):
                        u = U[w, b, i]
                        if u != 0.0:
                            h[b] -= u * g[w, i]
                            for c in range(b + 1):
                                B[b, c] -= u * U[w, c, i]
        for b in range(N):
            if B[b, b] == 0.0:
                B[b, b] = 1.0  # no such class
        _factor(B, 1e-14)
        _solve_lower(B, h)
        _solve_upper(B, h)
        intercepts[:] = h
        for w in range(N):
            for i in range(p):
                slopes[w, i] = g[w, i]
                for b in range(N):
                    slopes[w, i] -= U[w, b, i] * intercepts[b]
            if p > 0 and A[w, 0, 0] != 0.0:
                _solve_upper(A[w], slopes[w])
        rss[:] = 0.0
        rows[:] = 0.0
        for e in range(N):
            w = w_of[e]
            off = mean[e, p] - intercepts[b_of[e]]
            r = scatter[e, p, p]
            for i in range(p):
                off -= slopes[w, i] * mean[e, i]
                r -= 2.0 * slopes[w, i] * scatter[e, p, i]
                for j in range(p):
                    r += slopes[w, i] * slopes[w, j] * scatter[e, max(i, j), min(i, j)]
            rss[s_of[e]] += max(r, 0.0) + n[e] * off * off
            rows[s_of[e]] += n[e]
        for e in range(N):
            variance[e] = max(rss[s_of[e]] / rows[s_of[e]], floor)
    bits = 0.0
    for e in range(N):
        bits += 0.5 * n[e] * log2(2.0 * pi * np.e * variance[e])
    for slot in range(3):
        dim = p if slot == 1 else 1
        for c in range(N):
            total = 0.0
            for e in range(N):
                if labels[slot, e] == c:
                    total += n[e]
            if total > 0.0:
                bits += 0.5 * dim * log2(total)
    return bits


@njit(cache=True, nogil=True)
def _factor(M: NDArray[np.float64], ridge: float) -> None:
    """Lower Cholesky factor in place; pivots no smaller than `ridge` of the diagonal."""
    p = M.shape[0]
    for i in range(p):
        least = max(ridge * M[i, i], 1e-300)
        for j in range(i + 1):
            r = M[i, j]
            for k in range(j):
                r -= M[i, k] * M[j, k]
            M[i, j] = sqrt(max(r, least)) if i == j else r / M[j, j]


@njit(cache=True, nogil=True)
def _solve_lower(L: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    for i in range(x.size):
        r = x[i]
        for k in range(i):
            r -= L[i, k] * x[k]
        x[i] = r / L[i, i]


@njit(cache=True, nogil=True)
def _solve_upper(L: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    for i in range(x.size - 1, -1, -1):
        r = x[i]
        for k in range(i + 1, x.size):
            r -= L[k, i] * x[k]
        x[i] = r / L[i, i]


@njit(cache=True, nogil=True)
def _partition_bits(
    label: NDArray[np.int64],
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
) -> float:
    weight = np.zeros(label.size, dtype=np.int64)
    for i in range(label.size):
        weight[label[i]] += sizes[i]
    bits = 0.0
    k = 0
    for c in range(label.size):
        if weight[c] > 0:
            bits += size_bits[weight[c]]
            k += 1
    return bits + count_bits[k]


@njit(cache=True, nogil=True)
def _greedy(
    n: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    apart: NDArray[np.bool_],
    floor: float,
) -> Any:
    N = n.size
    p = mean.shape[1] - 1
    labels = np.empty((3, N), dtype=np.int64)
    for slot in range(3):
        labels[slot] = np.arange(N)
    if p == 0:
        labels[1] = 0  # no slopes: nothing to code
    variance = np.ones(N)
    codes = np.zeros(3)
    for slot in range(3):
        if slot != 1 or p > 0:
            codes[slot] = _partition_bits(labels[slot], sizes, size_bits, count_bits)
    total = fit(n, mean, scatter, labels, variance, FROM_SCRATCH, floor) + codes.sum()
    gain = np.full(3 * N * N, inf)  # bits saved by joining class v to class u of a slot; stale until computed again
    for slot in range(3):
        for u in range(N):
            for v in range(N):
                if v <= u or (slot == 1 and p == 0):
                    gain[(slot * N + u) * N + v] = -inf
    while True:
        fresh = np.zeros(3 * N * N, dtype=np.bool_)
        while True:
            # Gains mostly fall as classes join, so the largest is looked at first; before stopping, all are.
            best = int(np.argmax(gain))
            if fresh[best] and gain[best] <= 1e-9:
                stale = np.where(fresh | (gain == -inf), -1, np.arange(3 * N * N))
                if stale.max() < 0:
                    break
                best = int(stale.max())
            elif fresh[best]:
                break
            slot, u, v = best // (N * N), best // N % N, best % N
            trial = _joined(labels, slot, u, v)
            if _clash(trial, apart, p):
                gain[best] = -1e300
            else:
                trial_variance = variance.copy()
                after = _partition_bits(trial[slot], sizes, size_bits, count_bits) - codes[slot]
                bits = fit(n, mean, scatter, trial, trial_variance, WARM, floor) + codes.sum() + after
                gain[best] = total - bits
            fresh[best] = True
        if gain[best] <= 1e-9:
            return total, labels
        slot, u, v = best // (N * N), best // N % N, best % N
        labels = _joined(labels, slot, u, v)
        codes[slot] = _partition_bits(labels[slot], sizes, size_bits, count_bits)
        total = fit(n, mean, scatter, labels, variance, FROM_SCRATCH, floor) + codes.sum()
        for w in range(N):
            gain[(slot * N + v) * N + w] = gain[(slot * N + w) * N + v] = -inf


@njit(cache=True, nogil=True)
def _joined(labels: NDArray[np.int64], slot: int, u: int, v: int) -> NDArray[np.int64]:
    out = labels.copy()
    for e in range(labels.shape[1]):
        if out[slot, e] == v:
            out[slot, e] = u
    return out


@njit(cache=True, nogil=True)
def _clash(labels: NDArray[np.int64], apart: NDArray[np.bool_], p: int) -> bool:
    """Whether two environments that must differ share all slots."""
    for e in range(labels.shape[1]):
        for f in range(e):
            same = labels[0, e] == labels[0, f] and labels[2, e] == labels[2, f]
            if apart[e, f] and same and (p == 0 or labels[1, e] == labels[1, f]):
                return True
    return False
