"""The graph."""

from __future__ import annotations

from collections.abc import Iterable


class Graph:
    """Nodes with weighted edges; both ways unless directed."""

    def __init__(self, edges: Iterable[tuple[str, str] | tuple[str, str, int]] = (), directed: bool = False) -> None:
        self.directed = directed
        self.next: dict[str, dict[str, int]] = {}
        for edge in edges:
            self.add(*edge)

    def __repr__(self) -> str:
        return f"Graph({self.edges()})"

    def node(self, name: str) -> None:
        """Add a node, if it is new."""
        self.next.setdefault(name, {})

    def add(self, start: str, end: str, weight: int = 1) -> None:
        """Add an edge; of two between the same nodes the lighter counts."""
        if weight < 0:
            raise ValueError("weights cannot be negative")
        self.node(start)
        self.node(end)
        self._join(start, end, weight)
        if not self.directed:
            self._join(end, start, weight)

    def _join(self, start: str, end: str, weight: int) -> None:
        known = self.next[start].get(end)
        if known is None or weight < known:
            self.next[start][end] = weight

    def edges(self) -> list[tuple[str, str, int]]:
        """All edges, sorted; one without direction is named once."""
        found = [(a, b, weight) for a, ends in self.next.items() for b, weight in ends.items()]
        return sorted(edge for edge in found if self.directed or edge[0] <= edge[1])

    def degree(self, name: str) -> int:
        """Edges that leave a node."""
        return len(self.next[name])

    def without(self, start: str, end: str) -> Graph:
        """A copy that lacks an edge."""
        gone = {(start, end)} if self.directed else {(start, end), (end, start)}
        copy = Graph([edge for edge in self.edges() if edge[:2] not in gone], self.directed)
        for name in self.next:
            copy.node(name)
        return copy

    def reverse(self) -> Graph:
        """A copy with all edges turned round."""
        copy = Graph([(b, a, weight) for a, b, weight in self.edges()], self.directed)
        for name in self.next:
            copy.node(name)
        return copy
