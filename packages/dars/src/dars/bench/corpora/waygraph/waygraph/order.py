"""Orders of directed graphs."""

from __future__ import annotations

from .graph import Graph


def entering(graph: Graph) -> dict[str, int]:
    """Number of edges that enter each node."""
    counts = dict.fromkeys(graph.next, 0)
    for _, end, _ in graph.edges():
        counts[end] += 1
    return counts


def layers(graph: Graph) -> list[list[str]]:
    """Nodes in groups: each after all groups that lead to it. Nodes on or behind a cycle are left out."""
    counts = entering(graph)
    layer = sorted(name for name, count in counts.items() if count == 0)
    found = []
    while layer:
        found.append(layer)
        following = []
        for name in layer:
            for other in graph.next[name]:
                counts[other] -= 1
                if counts[other] == 0:
                    following.append(other)
        layer = sorted(following)
    return found


def topological(graph: Graph) -> list[str]:
    """Nodes so that all edges lead forwards."""
    order = [name for layer in layers(graph) for name in layer]
    if len(order) < len(graph.next):
        raise ValueError(f"there is a cycle: {' '.join(cycle(graph))}")
    return order


def cycle(graph: Graph) -> list[str]:
    """Nodes of a cycle, the first again at the end; [] if there is none."""
    left = set(graph.next) - {name for layer in layers(graph) for name in layer}
    for start in sorted(left):
        way, name = [start], start
        while True:
            ahead = sorted(other for other in graph.next[name] if other in left)
            if not ahead:
                break
            name = ahead[0]
            if name in way:
                return [*way[way.index(name) :], name]
            way.append(name)
    return []


def longest(graph: Graph) -> int:
    """Weight of the heaviest way."""
    best = dict.fromkeys(graph.next, 0)
    for name in topological(graph):
        for other, weight in graph.next[name].items():
            best[other] = max(best[other], best[name] + weight)
    return max(best.values(), default=0)
