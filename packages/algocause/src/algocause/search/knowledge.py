"""What is known of the graph before the data: edges that must or must not be there, and tiers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from ..errors import DataError


@dataclass(frozen=True)
class Knowledge:
    """Constraints on the directed edges (u, v), u -> v, between named variables.

    required, forbidden : edges. tiers : groups of variables, earliest first; no edge leads back to an earlier tier.
    Variables in no tier are free.
    """

    required: Iterable[tuple[Hashable, Hashable]] = ()
    forbidden: Iterable[tuple[Hashable, Hashable]] = ()
    tiers: Iterable[Iterable[Hashable]] = ()

    def masks(self, names: Sequence[Hashable]) -> tuple[list[int], list[int]]:
        """For each variable, bit masks over `names` of the parents it may have and of those it must have.

        Raises DataError for unknown variables, a variable in two tiers, and edges that contradict one another.
        """
        index = {name: i for i, name in enumerate(names)}
        required = self._edges(self.required, "required", index)
        forbidden = self._edges(self.forbidden, "forbidden", index)
        tier = self._tiers(index)

        allowed = [(1 << len(names)) - 1 - (1 << v) for v in range(len(names))]
        for u, v in forbidden:
            allowed[v] &= ~(1 << u)
        for v, t in tier.items():
            for u, s in tier.items():
                if s > t:
                    allowed[v] &= ~(1 << u)
        needed = [0] * len(names)
        for u, v in required:
            if not allowed[v] >> u & 1:
                why = "is forbidden too" if (u, v) in forbidden else "leads back to an earlier tier"
                raise DataError(f"the required edge {names[u]!r} -> {names[v]!r} {why}")
            needed[v] |= 1 << u
        try:
            cycle = nx.find_cycle(nx.DiGraph(required))
        except nx.NetworkXNoCycle:
            return allowed, needed
        raise DataError(
            "the required edges form a cycle: " + " -> ".join(repr(names[u]) for u, _ in [*cycle, cycle[0]])
        )

    @staticmethod
    def _edges(edges: Iterable[Any], what: str, index: dict[Hashable, int]) -> set[tuple[int, int]]:
        found = set()
        for edge in edges:
            u, v = edge
            for name in edge:
                if name not in index:
                    raise DataError(f"the {what} edge {u!r} -> {v!r} names {name!r}, which is not a variable")
            if u == v:
                raise DataError(f"the {what} edge {u!r} -> {v!r} joins a variable to itself")
            found.add((index[u], index[v]))
        return found

    def _tiers(self, index: dict[Hashable, int]) -> dict[int, int]:
        tier: dict[int, int] = {}
        for t, group in enumerate(self.tiers):
            for name in group:
                if name not in index:
                    raise DataError(f"tier {t + 1} names {name!r}, which is not a variable")
                if index[name] in tier:
                    raise DataError(f"{name!r} is in tier {tier[index[name]] + 1} and in tier {t + 1}")
                tier[index[name]] = t
        return tier
