"""What holds together."""

from __future__ import annotations

from .graph import Graph
from .paths import distances


class Groups:
    """Sets of names that can be joined."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The name that stands for a group."""
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> bool:
        """Make one group of two; whether they were two."""
        first, second = self.find(a), self.find(b)
        if first == second:
            return False
        self.parent[max(first, second)] = min(first, second)
        return True


def components(graph: Graph) -> list[list[str]]:
    """Groups of nodes that are joined, directions aside; the largest first."""
    groups = Groups()
    for a, b, _ in graph.edges():
        groups.join(a, b)
    found: dict[str, list[str]] = {}
    for name in sorted(graph.next):
        found.setdefault(groups.find(name), []).append(name)
    return sorted(found.values(), key=lambda names: (-len(names), names))


def spanning(graph: Graph) -> list[tuple[str, str, int]]:
    """Edges of the lightest tree over each component (Kruskal)."""
    groups = Groups()
    kept = []
    for a, b, weight in sorted(graph.edges(), key=lambda edge: (edge[2], edge)):
        if groups.join(a, b):
            kept.append((a, b, weight))
    return kept


def bridges(graph: Graph) -> list[tuple[str, str]]:
    """Edges without which a component falls apart."""
    found = []
    for a, b, _ in graph.edges():
        if a != b and b not in distances(graph.without(a, b), a):
            found.append((a, b))
    return found
