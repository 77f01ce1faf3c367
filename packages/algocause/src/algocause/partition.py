"""The best partition of the environments: exactly by dynamic programming, or by agglomeration and single moves.

A partition costs Σ_B [mechanism(B) + size_bits[|B|]] + count_bits[k] bits: the CRP code has its factorials in
`size_bits` and a constant in `count_bits`, the Stirling code has zeros and its S2(N, k).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isinf
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .codes.partition_codes import crp_count_bits, crp_size_bits, stirling_bits
from .data import sum_of
from .errors import DataError, LimitError

EXACT_LIMIT = 14  # items; 3^14 / 2 steps
Blocks = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PartitionCode:
    """The bits of a partition of n items by block sizes and number of blocks. `name` is "crp" or "stirling"."""

    name: str
    size_bits: NDArray[np.float64]
    count_bits: NDArray[np.float64]

    @classmethod
    def of(cls, name: str, n: int, theta: float = 1.0) -> PartitionCode:
        if name == "crp":
            return cls(name, crp_size_bits(n, theta), np.full(n + 2, crp_count_bits(n, theta)))
        if name == "stirling":
            counts = [inf] + [stirling_bits(n, k) for k in range(1, n + 1)] + [inf]
            return cls(name, np.zeros(n + 1), np.array(counts))
        raise ValueError(f'part_code must be "crp" or "stirling", not {name!r}')

    def bits(self, sizes: Sequence[int]) -> float:
        return float(sum(self.size_bits[s] for s in sizes) + self.count_bits[len(sizes)])


@dataclass(frozen=True)
class Links:
    """What is known of a partition: `groups` of items that share a block, and which groups may not (`apart`).

    `home` is the group of each item.
    """

    groups: Blocks
    apart: NDArray[np.bool_]
    home: NDArray[np.intp]

    @classmethod
    def of(
        cls,
        n: int,
        must: Iterable[tuple[int, int]] = (),
        cannot: Iterable[tuple[int, int]] = (),
    ) -> Links:
        """Close must-links transitively; raises DataError if a cannot-link contradicts them."""
        label = list(range(n))
        for i, j in must:
            old, new = max(label[i], label[j]), min(label[i], label[j])
            label = [new if x == old else x for x in label]
        groups = blocks_of(label)
        home = np.empty(n, dtype=np.intp)
        for g, group in enumerate(groups):
            home[list(group)] = g
        apart = np.zeros((len(groups), len(groups)), dtype=np.bool_)
        for i, j in cannot:
            if home[i] == home[j]:
                raise DataError(f"environments {i} and {j} must share a mechanism and cannot share it")
            apart[home[i], home[j]] = apart[home[j], home[i]] = True
        return cls(groups, apart, home)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.array([len(group) for group in self.groups], dtype=np.int64)

    def spread(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label of each item from that of its group."""
        return labels if len(self.groups) == len(self.home) else labels[self.home]


def blocks_of(labels: Iterable[Any]) -> Blocks:
    """Blocks of equal labels, as sorted tuples in the order of their smallest items."""
    found: dict[Any, list[int]] = {}
    for item, label in enumerate(labels):
        found.setdefault(label, []).append(item)
    return tuple(tuple(block) for block in found.values())


def labels_of(blocks: Blocks) -> NDArray[np.int64]:
    """The number of each item's block."""
    labels = np.empty(sum(len(block) for block in blocks), dtype=np.int64)
    for b, block in enumerate(blocks):
        labels[list(block)] = b
    return labels


def optimal_partition(block_cost: NDArray[np.float64], n_items: int) -> tuple[float, Blocks]:
    """The partition of n_items ≤ 14 items with the least Σ_B block_cost[mask of B].

    block_cost has length 2**n_items; bit i of the mask is item i; entry 0 is ignored. Returns the total and the blocks
    as sorted tuples, ordered by their smallest items. f(T) = min over B ⊆ T with min(T) ∈ B of cost(B) + f(T∖B).
    """
    cost = np.ascontiguousarray(block_cost, dtype=float)
    if n_items > EXACT_LIMIT:
        raise LimitError(f"exact partitions of {n_items} items: the limit is {EXACT_LIMIT}; use agglomerate instead")
    if cost.shape != (1 << n_items,):
        raise DataError(f"block_cost must have shape ({1 << n_items},) for {n_items} items, not {cost.shape}")
    total, labels = partition_dp(cost, n_items)
    return float(total), blocks_of(labels)


def agglomerate(
    stats: Sequence[Any],
    cost_fn: Callable[[Any], float],
    theta: float = 1.0,
    part_code: str = "crp",
    links: Links | None = None,
) -> tuple[float, Blocks]:
    """A good partition of N items with statistics that can be added: `cost_fn(sum)` is the bits of a block's mechanism.

    From singletons merge the pair that saves most (smallest indices on ties) down to one block, keep the best
    partition met, then move single items once where that is shorter. The total includes the partition code.
    """
    code = PartitionCode.of(part_code, len(stats), theta)
    total, labels = best_partition(stats, cost_fn, code, links or Links.of(len(stats)), exact=False)
    return total, blocks_of(labels.tolist())


def best_partition(
    stats: Sequence[Any], cost_fn: Callable[[Any], float], code: PartitionCode, links: Links, exact: bool
) -> tuple[float, NDArray[np.int64]]:
    """Bits with the partition code, and the block of each item, for any statistics that can be added."""
    items = [sum_of([stats[i] for i in group]) for group in links.groups]
    if not exact:
        total, labels = agglomerate_items(items, links.sizes, code.size_bits, code.count_bits, links.apart, cost_fn)
    else:
        costs = block_costs_of_items(items, links.sizes, code.size_bits, links.apart, cost_fn)
        total, labels = partition_dp_by_count(costs, len(items), code.count_bits)
    return float(total), links.spread(labels)


def merge(a: Any, b: Any) -> Any:
    """Statistics of the rows of both."""
    return a + b


def cost(stat: Any, args: Any) -> float:
    """Bits of the mechanism of a block with these statistics."""
    return float(args(stat))


def compiled(family: str, merge: Any, cost: Any) -> tuple[Any, Any]:
    """`agglomerate_items` and `block_costs_of_items` compiled with a family's own `merge` and `cost`.

    Copies with other globals, since numba keeps no compiled code on disk for functions that are given functions.
    Who changes these loops must delete __pycache__: numba looks at the age of the calling module alone.
    """
    names = {**globals(), "merge": merge, "cost": cost}
    for loop in (merge_pairs, move_singles, agglomerate_items, block_costs_of_items):
        twin = FunctionType(loop.__code__, names, loop.__name__)
        twin.__module__, twin.__qualname__ = loop.__module__, f"{loop.__name__}_{family}"
        names[loop.__name__] = njit(cache=True, nogil=True)(twin)
    return names["agglomerate_items"], names["block_costs_of_items"]


def agglomerate_items(
    stats: Any,
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    forbidden: NDArray[np.bool_],
    args: Any,
) -> Any:
    """`agglomerate` in the subset of Python that numba compiles: `stats` is a list, or an array with one row an item.

    Returns the total bits and a label for each item.
    """
    total, label = merge_pairs(stats, sizes, size_bits, count_bits, forbidden, args)
    if isinf(total) or len(stats) < 3:
        return total, label
    return move_singles(stats, sizes, size_bits, count_bits, forbidden, args, label)


def merge_pairs(
    stats: Any,
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    forbidden: NDArray[np.bool_],
    args: Any,
) -> Any:
    """From singletons down to one block, always by the merge that saves most; the best partition on the way."""
    m = len(stats)
    merged = stats.copy()
    weight = sizes.copy()
    apart = forbidden.copy()
    label = np.arange(m)
    bits = np.empty(m)
    pair = np.full((m, m), inf)
    for i in range(m):
        bits[i] = cost(merged[i], args) + size_bits[weight[i]]
    total = bits.sum() + count_bits[m]
    for i in range(m):
        for j in range(i + 1, m):
            if not apart[i, j]:
                pair[i, j] = cost(merge(merged[i], merged[j]), args) + size_bits[weight[i] + weight[j]]
    best_total, best_label = total, label.copy()
    for k in range(m - 1, 0, -1):
        gain, u, v = -inf, -1, -1
        for i in range(m):
            for j in range(i + 1, m):
                if weight[i] == 0 or weight[j] == 0 or apart[i, j]:
                    continue
                if isinf(pair[i, j]):  # too few rows still: no loss if they were too few before
                    g = 0.0 if isinf(bits[i]) or isinf(bits[j]) else -1e300
                else:
                    g = bits[i] + bits[j] - pair[i, j]
                if g > gain:
                    gain, u, v = g, i, j
        if u < 0:
            break
        merged[u] = merge(merged[u], merged[v])
        weight[u] += weight[v]
        weight[v] = 0
        bits[u], bits[v] = pair[u, v], 0.0
        for i in range(m):
            if label[i] == v:
                label[i] = u
            apart[i, u] |= apart[i, v]
            apart[u, i] |= apart[v, i]
        total = bits.sum() + count_bits[k]
        if total < best_total:
            best_total, best_label = total, label.copy()
        if k > 1:
            for i in range(m):
                if weight[i] > 0 and i != u and not apart[i, u]:
                    joint = cost(merge(merged[u], merged[i]), args) + size_bits[weight[u] + weight[i]]
                    pair[min(i, u), max(i, u)] = joint
    return best_total, best_label


def move_singles(
    stats: Any,
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    forbidden: NDArray[np.bool_],
    args: Any,
    start: NDArray[np.int64],
) -> Any:
    """One pass that moves each item to another block or to a new one where that is shorter.

    The rest of its block is summed anew: moments cannot be subtracted without cancellation.
    """
    m = len(stats)
    merged = stats.copy()
    label = start.copy()
    weight = np.zeros_like(sizes)
    bits = np.empty(m)
    k = 0
    for i in range(m):
        slot = label[i]
        merged[slot] = stats[i] if weight[slot] == 0 else merge(merged[slot], stats[i])
        k += weight[slot] == 0
        weight[slot] += sizes[i]
    for slot in range(m):
        bits[slot] = cost(merged[slot], args) + size_bits[weight[slot]] if weight[slot] > 0 else 0.0
    for e in range(m):
        home = label[e]
        alone = weight[home] == sizes[e]
        rest = stats[e]
        rest_bits = 0.0
        free = -1
        if not alone:
            started = False
            for i in range(m):
                if label[i] == home and i != e:
                    rest = merge(rest, stats[i]) if started else stats[i]
                    started = True
            rest_bits = cost(rest, args) + size_bits[weight[home] - sizes[e]]
        gain, to, to_bits = 1e-9, -1, 0.0
        saved = bits[home] - rest_bits
        for slot in range(m):
            if weight[slot] == 0:
                free = slot
                continue
            if slot == home:
                continue
            allowed = True
            for i in range(m):
                if label[i] == slot and forbidden[i, e]:
                    allowed = False
            if not allowed:
                continue
            joint = cost(merge(merged[slot], stats[e]), args) + size_bits[weight[slot] + sizes[e]]
            after = k - 1 if alone else k
            g = saved + bits[slot] - joint + count_bits[k] - count_bits[after]
            if g > gain:
                gain, to, to_bits = g, slot, joint
        if not alone:
            single = cost(stats[e], args) + size_bits[sizes[e]]
            g = saved - single + count_bits[k] - count_bits[k + 1]
            if g > gain:
                gain, to, to_bits = g, free, single
        if to < 0:
            continue
        merged[to] = stats[e] if weight[to] == 0 else merge(merged[to], stats[e])
        k += (weight[to] == 0) - (1 if alone else 0)
        weight[to] += sizes[e]
        weight[home] -= sizes[e]
        bits[to], bits[home] = to_bits, rest_bits
        if not alone:
            merged[home] = rest
        label[e] = to
    return bits.sum() + count_bits[k], label


def block_costs_of_items(
    stats: Any,
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    forbidden: NDArray[np.bool_],
    args: Any,
) -> Any:
    """The bits of every block of items, indexed by its mask; inf where two of its items may not share a block.

    Depth first, so that only one chain of merged statistics is held. Compiled like `agglomerate_items`.
    """
    m = len(stats)
    out = np.empty(1 << m)
    out[0] = 0.0
    chain = stats.copy()
    chosen = np.zeros(m, dtype=np.int64)
    weight = np.zeros(m + 1, dtype=np.int64)
    clashes = np.zeros(m + 1, dtype=np.int64)
    depth, mask, item = 0, 0, 0
    while True:
        chosen[depth] = item
        mask |= 1 << item
        chain[depth] = stats[item] if depth == 0 else merge(chain[depth - 1], stats[item])
        weight[depth + 1] = weight[depth] + sizes[item]
        clashes[depth + 1] = clashes[depth]
        for i in range(depth):
            if forbidden[chosen[i], item]:
                clashes[depth + 1] += 1
        out[mask] = inf if clashes[depth + 1] else cost(chain[depth], args) + size_bits[weight[depth + 1]]
        if item + 1 < m:
            depth += 1
            item += 1
            continue
        mask ^= 1 << item
        depth -= 1
        if depth < 0:
            return out
        mask ^= 1 << chosen[depth]
        item = chosen[depth] + 1


@njit(cache=True, nogil=True)
def partition_dp(cost: NDArray[np.float64], n: int) -> Any:
    """(total, label of each item) of the partition with the least sum of block costs."""
    size = 1 << n
    best = np.zeros(size)
    choice = np.zeros(size, dtype=np.int64)
    for t in range(1, size):
        low = t & -t
        rest = t ^ low
        sub = rest
        least, arg = inf, t
        while True:
            total = cost[sub | low] + best[rest ^ sub]
            if total < least:
                least, arg = total, sub | low
            if sub == 0:
                break
            sub = (sub - 1) & rest
        best[t], choice[t] = least, arg
    return best[size - 1], _labels(choice, n)


@njit(cache=True, nogil=True)
def partition_dp_by_count(cost: NDArray[np.float64], n: int, count_bits: NDArray[np.float64]) -> Any:
    """The same with count_bits[k] added for k blocks."""
    size = 1 << n
    best = np.full((n + 1, size), inf)
    choice = np.zeros((n + 1, size), dtype=np.int64)
    best[0, 0] = 0.0
    for k in range(1, n + 1):
        for t in range(1, size):
            low = t & -t
            rest = t ^ low
            sub = rest
            while True:
                total = cost[sub | low] + best[k - 1, rest ^ sub]
                if total < best[k, t]:
                    best[k, t], choice[k, t] = total, sub | low
                if sub == 0:
                    break
                sub = (sub - 1) & rest
    least, k_best = inf, 0
    for k in range(1, n + 1):
        total = best[k, size - 1] + count_bits[k]
        if total < least:
            least, k_best = total, k
    label = np.zeros(n, dtype=np.int64)
    t, k = size - 1, k_best
    while k > 0:
        for i in range(n):
            if choice[k, t] >> i & 1:
                label[i] = k
        t ^= choice[k, t]
        k -= 1
    return least, label


@njit(cache=True, nogil=True)
def _labels(choice: NDArray[np.int64], n: int) -> Any:
    label = np.zeros(n, dtype=np.int64)
    t = (1 << n) - 1
    block = 0
    while t:
        for i in range(n):
            if choice[t] >> i & 1:
                label[i] = block
        t ^= choice[t]
        block += 1
    return label
