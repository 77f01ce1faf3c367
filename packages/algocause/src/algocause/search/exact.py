"""The shortest graph of all, by dynamic programming over sets of variables (Silander and Myllymäki, UAI 2006)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..errors import DataError, LimitError
from .knowledge import Knowledge

Score = Callable[[int, tuple[int, ...]], float]
Request = tuple[int, tuple[int, ...]]
Batch = Callable[[Sequence[Request]], Sequence[float] | NDArray[np.float64]]

MAX_VARIABLES = 20  # 2^d subsets are held for every variable
MAX_SCORES = 400_000  # d = 12 with any parents are 24 576, d = 20 with four 100 720


@dataclass(frozen=True)
class ScoreTable:
    """Local scores of every allowed parent set, ready for the dynamic programme.

    bits : (d, 2^(d-1)) float64; bits[v, S] for the parent set S as a mask over the other variables in ascending
    order; +inf where S is not allowed.
    """

    bits: NDArray[np.float64]

    @property
    def d(self) -> int:
        return len(self.bits)


def exact_dag(
    score: Score,
    d: int,
    max_parents: int | None = None,
    *,
    knowledge: Knowledge | None = None,
    batch: Batch | None = None,
) -> tuple[float, nx.DiGraph]:
    """The graph on 0..d-1 with the fewest bits.

    Parameters
    ----------
    score : bits of variable v given its parents (sorted). batch : the same for many requests at once; used if given.
    max_parents : largest parent set; needed from d = 16 on, where all sets are too many.
    knowledge : constraints on edges between the numbers 0..d-1.

    Raises LimitError beyond 20 variables or 400 000 parent sets.
    """
    return best_dag(score_table(score, d, max_parents, knowledge=knowledge, batch=batch))


def score_table(
    score: Score,
    d: int,
    max_parents: int | None = None,
    *,
    knowledge: Knowledge | None = None,
    batch: Batch | None = None,
) -> ScoreTable:
    """The local scores that `best_dag` and `arc_margin` work on; arguments and limits as in `exact_dag`."""
    most = d - 1 if max_parents is None else min(max_parents, d - 1)
    if d > MAX_VARIABLES:
        raise LimitError(f"exact search takes {MAX_VARIABLES} variables at most, not {d}: use the search boss")
    allowed, required = (knowledge or Knowledge()).masks(range(d))
    requests: list[list[tuple[int, tuple[int, ...]]]] = []
    for v in range(d):
        may = [u for u in range(d) if allowed[v] >> u & 1]
        must = {u for u in range(d) if required[v] >> u & 1}
        sets = (s for k in range(most + 1) for s in combinations(may, k) if must <= set(s))
        requests.append([(sum(1 << (u - (u > v)) for u in s), s) for s in sets])
        if sum(map(len, requests)) > MAX_SCORES:
            raise LimitError(
                f"exact search over {d} variables needs more than {MAX_SCORES} local scores: "
                "set max_parents (4 or fewer for 20 variables) or use the search boss"
            )
    bits = np.full((d, 1 << max(d - 1, 0)), np.inf)
    for v, sets_of_v in enumerate(requests):
        if not sets_of_v:
            raise DataError(f"variable {v} is required to have more parents than max_parents = {most}")
        asked = [(v, parents) for _, parents in sets_of_v]
        found = batch(asked) if batch else [score(*request) for request in asked]
        bits[v, [mask for mask, _ in sets_of_v]] = found
    return ScoreTable(bits)


def best_dag(table: ScoreTable) -> tuple[float, nx.DiGraph]:
    """The graph with the fewest bits; of parent sets with equal bits the smallest."""
    d = table.d
    best = np.empty_like(table.bits)
    choice = np.empty(table.bits.shape, np.int32)
    for v in range(d):
        _best_parents(table.bits[v], best[v], choice[v])
    total, sink = _best_sinks(best)
    dag = nx.DiGraph()
    dag.add_nodes_from(range(d))
    left = (1 << d) - 1
    while left:
        v = int(sink[left])
        left &= ~(1 << v)
        chosen = int(choice[v, _without(left, v)])
        dag.add_edges_from((u + (u >= v), v) for u in range(d - 1) if chosen >> u & 1)
    return float(total[-1]), dag


def arc_margin(table: ScoreTable, u: int, v: int, best: float | None = None) -> float:
    """Bits that the best graph without the edge u -> v has more than the best of all (0 if that has no such edge).

    best : the bits of the best graph, if known.
    """
    bits = table.bits.copy()
    without = np.arange(bits.shape[1]) >> (u - (u > v)) & 1 == 1
    bits[v, without] = np.inf
    return _best_bits(ScoreTable(bits)) - (_best_bits(table) if best is None else best)


def _best_bits(table: ScoreTable) -> float:
    best = np.empty_like(table.bits)
    choice = np.empty(table.bits.shape[1], np.int32)
    for v in range(table.d):
        _best_parents(table.bits[v], best[v], choice)
    return float(_best_sinks(best)[0][-1])


@njit(cache=True, nogil=True)
def _without(mask: int, v: int) -> int:
    # The mask over all variables, v not among them, as a mask over the others.
    low = (1 << v) - 1
    return (mask & low) | ((mask >> 1) & ~low)


@njit(cache=True, nogil=True)
def _best_parents(bits, best, choice):  # type: ignore[no-untyped-def]
    # best[S] = min over subsets of S, from S itself and S without one member.
    for s in range(len(bits)):
        lowest, where = np.inf, 0
        rest = s
        while rest:
            bit = rest & -rest
            rest ^= bit
            if best[s ^ bit] < lowest:
                lowest, where = best[s ^ bit], choice[s ^ bit]
        if bits[s] < lowest:
            lowest, where = bits[s], s
        best[s], choice[s] = lowest, where


@njit(cache=True, nogil=True)
def _best_sinks(best):  # type: ignore[no-untyped-def]
    # total[W]: bits of the best graph on W; its sink takes its best parents within the rest.
    d = len(best)
    total = np.full(1 << d, np.inf)
    sink = np.zeros(1 << d, np.int8)
    total[0] = 0.0
    for w in range(1, 1 << d):
        for v in range(d):
            if w >> v & 1:
                rest = w ^ (1 << v)
                found = total[rest] + best[v, _without(rest, v)]
                if found < total[w]:
                    total[w], sink[w] = found, v
    return total, sink
