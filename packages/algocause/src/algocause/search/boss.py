"""Best order score search: move one variable at a time to its best place in an order (Andrews et al., NeurIPS 2023).

Given an order, each variable grows its parents greedily from those before it, then drops those that do not pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .exact import Batch, Request, Score
from .knowledge import Knowledge

MOVE_TOL = 1e-6  # bits that a move must gain
GROW_TOL = 1e-9  # bits that a parent must gain: below lies rounding


@dataclass(frozen=True)
class BossState:
    """A search between two moves, enough to go on to the same result; all fields are plain JSON values.

    order, pending : the order now, and the variables still to be moved in this sweep. moved : whether any was.
    candidates, widened : the possible parents, and whether Markov blankets have been added to them.
    starts, stale : orders started from and done, and kicks of the best since it was found.
    best : "bits", "order" and "parents" of the best graph. rng : state of the generator.
    """

    order: list[int]
    pending: list[int]
    moved: bool
    candidates: list[list[int]] | None
    widened: bool
    starts: int
    stale: int
    best: dict[str, Any] | None
    rng: dict[str, Any]


def boss(
    score: Score,
    d: int,
    *,
    batch: Batch | None = None,
    cache: dict[Request, float] | None = None,
    candidates: Sequence[Iterable[int]] | None = None,
    knowledge: Knowledge | None = None,
    max_parents: int | None = None,
    order: Sequence[int] | None = None,
    n_restarts: int = 1,
    patience: int | None = None,
    time_limit_s: float | None = None,
    random_state: int | None = 0,
    state: BossState | None = None,
    on_move: Callable[[BossState], None] | None = None,
) -> tuple[float, nx.DiGraph]:
    """A graph on 0..d-1 with few bits: never fewer than the optimum, mostly the optimum.

    Parameters
    ----------
    score : bits of variable v given its parents (sorted). batch : the same for many requests at once; used if given.
    cache : local scores known already; filled with all that are asked for.
    candidates : for each variable the possible parents; all by default. When the search has converged they are widened
        by the Markov blankets found, and it goes on once more.
    knowledge : constraints on edges between the numbers 0..d-1.
    order : where to start, instead of a random order. n_restarts : orders to start from; the best result is kept.
    patience : the best order is kicked (three variables moved at random) and searched again until this many kicks in
        turn gain nothing. By default 200 // d.
    time_limit_s : stop after this time with the best graph so far.
    state, on_move : go on from a state; called with the state after every variable.

    Returns
    -------
    total bits and the graph, with graph attributes `order` (a list) and `converged` (False when time ran out).
    """
    allowed, required = (knowledge or Knowledge()).masks(range(d))
    if candidates is not None and len(candidates) != d:
        raise DataError(f"candidates must be {d} sets, one a variable, not {len(candidates)}")
    if order is not None and sorted(order) != list(range(d)):
        raise DataError(f"order must hold each of 0..{d - 1} once")
    for v, must in enumerate(required):
        if max_parents is not None and must.bit_count() > max_parents:
            raise DataError(f"variable {v} is required to have more parents than max_parents = {max_parents}")
    rng = np.random.default_rng(random_state)
    if state is None:
        start = rng.permutation(d).tolist() if order is None else list(order)
        named = None if candidates is None else [sorted(set(c)) for c in candidates]
        state = BossState(
            order=_topological(start, required), pending=rng.permutation(d).tolist(), moved=False, candidates=named,
            widened=False, starts=0, stale=0, best=None, rng=dict(rng.bit_generator.state),
        )  # fmt: skip
    rng.bit_generator.state = state.rng
    scores = {} if cache is None else cache

    def search_among(candidates: list[list[int]] | None) -> GrowShrink:
        masks = allowed if candidates is None else [a & _mask(c) for a, c in zip(allowed, candidates, strict=True)]
        masks = [may | must for may, must in zip(masks, required, strict=True)]
        return GrowShrink(score, batch, scores, masks, required, d if max_parents is None else max_parents)

    parents = search_among(state.candidates)
    deadline = np.inf if time_limit_s is None else time.monotonic() + time_limit_s
    patience = 200 // d if patience is None else patience
    while (state.starts < n_restarts or state.stale < patience) and time.monotonic() < deadline:
        if state.pending:
            v, *pending = state.pending
            moved = _moved(v, state.order, parents)
            state = replace(state, order=moved or state.order, pending=pending, moved=state.moved or moved is not None)
        else:
            if state.moved:
                state = replace(state, moved=False)
            elif state.candidates is not None and not state.widened:
                wider = _with_blankets(state.candidates, _graph(_chosen(state.order, parents)))
                parents = search_among(wider)
                state = replace(state, candidates=wider, widened=True)
            else:
                best = _better(state, parents)
                gained = state.best is None or best["bits"] < state.best["bits"] - MOVE_TOL
                stale = 0 if gained or state.starts < n_restarts else state.stale + 1
                starts = min(state.starts + 1, n_restarts)
                start = rng.permutation(d).tolist() if starts < n_restarts else _kicked(best["parents"], rng)
                state = replace(state, order=_topological(start, required), starts=starts, stale=stale, best=best)
            state = replace(state, pending=rng.permutation(d).tolist(), rng=dict(rng.bit_generator.state))
        if on_move is not None:
            on_move(state)
    converged = state.starts >= n_restarts and state.stale >= patience
    best = state.best if converged and state.best else _better(state, parents)
    dag = _graph(best["parents"])
    dag.graph.update(order=best["order"], converged=converged)
    return best["bits"], dag


def _moved(v: int, order: list[int], parents: GrowShrink) -> list[int] | None:
    # The order with v in its best place, or None where that gains nothing.
    rest = [u for u in order if u != v]
    own, before, after = [], [0.0], []
    placed = 0
    for u in rest:
        own.append(parents(v, placed)[0])
        before.append(parents(u, placed)[0])  # u where v comes later
        after.append(parents(u, placed | 1 << v)[0])  # u where v came earlier
        placed |= 1 << u
    own.append(parents(v, placed)[0])
    totals = np.array(own) + np.cumsum(before) + np.append(np.cumsum(after[::-1])[::-1], 0.0)
    now, i = order.index(v), int(totals.argmin())
    return [*rest[:i], v, *rest[i:]] if totals[i] < totals[now] - MOVE_TOL else None


@dataclass
class _Step:
    """A parent set on the way of growing: its bits, what each further parent would bring, and where shrinking ends."""

    parents: tuple[int, ...]
    bits: float
    seen: int = 0  # mask of the further parents that were tried
    useful: int = 0  # mask of those that gain
    ranked: list[tuple[float, int]] = field(default_factory=list)  # (bits, parent) of those, best first
    end: tuple[float, tuple[int, ...]] | None = None


class GrowShrink:
    """Parents from a set of predecessors: add the best one while it gains, then drop the best one while that gains.

    Calling it with v and a mask of predecessors gives (bits, parents). Every parent set that was met is remembered
    together with what each further parent brings, so that another set of predecessors is mostly a walk in a tree.
    """

    def __init__(
        self,
        score: Score,
        batch: Batch | None,
        cache: dict[Request, float],
        allowed: Sequence[int],
        required: Sequence[int],
        max_parents: int,
    ):
        self.score, self.batch, self.cache = score, batch, cache
        self.allowed, self.required, self.max_parents = allowed, required, max_parents
        self.steps: list[dict[int, _Step]] = [{} for _ in allowed]

    def __call__(self, v: int, predecessors: int) -> tuple[float, tuple[int, ...]]:
        at = self.required[v]
        if at & ~predecessors:
            return np.inf, _members(at)
        within = predecessors & self.allowed[v] & ~at
        step = self._step(v, at)
        while len(step.parents) < self.max_parents:
            untried = within & ~step.seen
            if untried:
                self._try(v, step, untried)
            if not step.useful & within:
                break
            u = next(u for _, u in step.ranked if within >> u & 1)
            at |= 1 << u
            within &= ~(1 << u)
            step = self._step(v, at)
        if step.end is None:
            step.end = self._shrink(v, step)
        return step.end

    def bits(self, requests: list[Request]) -> list[float]:
        missing = [request for request in requests if request not in self.cache]
        if missing:
            found = self.batch(missing) if self.batch else [self.score(*request) for request in missing]
            self.cache.update(zip(missing, map(float, found), strict=True))
        return [self.cache[request] for request in requests]

    def _step(self, v: int, parents: int) -> _Step:
        step = self.steps[v].get(parents)
        if step is None:
            members = _members(parents)
            step = self.steps[v][parents] = _Step(members, self.bits([(v, members)])[0])
        return step

    def _try(self, v: int, step: _Step, further: int) -> None:
        members = _members(further)
        found = self.bits([(v, tuple(sorted((*step.parents, u)))) for u in members])
        gains = [(bits, u) for bits, u in zip(found, members, strict=True) if bits < step.bits - GROW_TOL]
        step.ranked = sorted(step.ranked + gains)
        step.seen |= further
        step.useful |= _mask(u for _, u in gains)

    def _shrink(self, v: int, step: _Step) -> tuple[float, tuple[int, ...]]:
        bits, parents = step.bits, step.parents
        while True:
            smaller = [tuple(w for w in parents if w != u) for u in parents if not self.required[v] >> u & 1]
            found = self.bits([(v, s) for s in smaller])
            if not found or min(found) >= bits - GROW_TOL:
                return bits, parents
            bits = min(found)
            parents = smaller[found.index(bits)]


def screen(
    score: Score, covariance: ArrayLike, top: int = 20, batch: Batch | None = None, ridge: float = 1e-3
) -> list[list[int]]:
    """Candidate parents of each variable: the top by bits saved alone, and the top by partial correlation.

    covariance : (d, d) average within-environment covariance. The second kind finds parents whose marginal effect
    cancels; ridge is added to the diagonal of the correlations before they are inverted.
    """
    C = np.asarray(covariance, float)
    d = len(C)
    sd = np.sqrt(np.diag(C))
    precision = np.linalg.inv(C / np.outer(sd, sd) + ridge * np.eye(d))
    partial = np.abs(precision) / np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    np.fill_diagonal(partial, -np.inf)

    requests: list[Request] = [(v, (u,)) for v in range(d) for u in range(d) if u != v]
    alone: list[Request] = [(v, ()) for v in range(d)]
    found = batch(alone + requests) if batch else [score(*request) for request in alone + requests]
    saved = np.full((d, d), -np.inf)
    for (v, (u,)), bits in zip(requests, found[d:], strict=True):
        saved[v, u] = found[v] - bits
    ranks = [np.argsort(-table, axis=1, kind="stable")[:, : min(top, d - 1)] for table in (saved, partial)]
    return [sorted(set(a.tolist()) | set(b.tolist())) for a, b in zip(*ranks, strict=True)]


def _chosen(order: Sequence[int], parents: GrowShrink) -> list[list[int]]:
    chosen: list[list[int]] = [[] for _ in order]
    for v, before in _predecessors(order):
        chosen[v] = list(parents(v, before)[1])
    return chosen


def _better(state: BossState, parents: GrowShrink) -> dict[str, Any]:
    bits = float(sum(parents(v, before)[0] for v, before in _predecessors(state.order)))
    if state.best is not None and state.best["bits"] <= bits:
        return state.best
    return {"bits": bits, "order": state.order, "parents": _chosen(state.order, parents)}


def _kicked(parents: Sequence[Sequence[int]], rng: np.random.Generator) -> list[int]:
    # A random order of the graph with three variables in random places.
    key = rng.random(len(parents))
    order = list(nx.lexicographical_topological_sort(_graph(parents), key=lambda v: key[v]))
    for _ in range(min(3, len(order))):
        v = order.pop(int(rng.integers(len(order))))
        order.insert(int(rng.integers(len(order) + 1)), v)
    return order


def _predecessors(order: Iterable[int]) -> Iterator[tuple[int, int]]:
    before = 0
    for v in order:
        yield v, before
        before |= 1 << v


def _topological(order: Iterable[int], required: Sequence[int]) -> list[int]:
    # The order, changed only where a required parent would come after its child.
    left, placed, result = list(order), 0, []
    while left:
        v = next(v for v in left if not required[v] & ~placed)
        left.remove(v)
        placed |= 1 << v
        result.append(v)
    return result


def _graph(parents: Sequence[Iterable[int]]) -> nx.DiGraph:
    dag = nx.DiGraph()
    dag.add_nodes_from(range(len(parents)))
    dag.add_edges_from((u, v) for v, members in enumerate(parents) for u in members)
    return dag


def _with_blankets(candidates: list[list[int]], dag: nx.DiGraph) -> list[list[int]]:
    wider = []
    for v, known in enumerate(candidates):
        children = set(dag.successors(v))
        spouses = {w for c in children for w in dag.predecessors(c)}
        wider.append(sorted({*known, *dag.predecessors(v), *children, *spouses} - {v}))
    return wider


def _mask(members: Iterable[int]) -> int:
    return sum(1 << u for u in members)


def _members(mask: int) -> tuple[int, ...]:
    members = []
    while mask:
        bit = mask & -mask
        members.append(bit.bit_length() - 1)
        mask ^= bit
    return tuple(members)
