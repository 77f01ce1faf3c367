"""Shortest ways."""

from __future__ import annotations

import heapq

from .graph import Graph


def search(graph: Graph, start: str) -> tuple[dict[str, int], dict[str, str]]:
    """Dijkstra's algorithm: distance of every node that can be reached, and the node before it."""
    if start not in graph.next:
        raise KeyError(start)
    found: dict[str, int] = {start: 0}
    before: dict[str, str] = {}
    queue = [(0, start)]
    done: set[str] = set()
    while queue:
        distance, name = heapq.heappop(queue)
        if name in done:
            continue
        done.add(name)
        for other, weight in sorted(graph.next[name].items()):
            longer = distance + weight
            if other not in found or longer < found[other]:
                found[other] = longer
                before[other] = name
                heapq.heappush(queue, (longer, other))
    return found, before


def distances(graph: Graph, start: str) -> dict[str, int]:
    """Distance of every node that can be reached."""
    return search(graph, start)[0]


def route(graph: Graph, start: str, end: str) -> list[str]:
    """Nodes of a shortest way; [] if there is none."""
    found, before = search(graph, start)
    if end not in found:
        return []
    way = [end]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def within(graph: Graph, start: str, most: int) -> list[str]:
    """Other nodes that are no further away, the nearest first."""
    near = [(distance, name) for name, distance in distances(graph, start).items() if 0 < distance <= most]
    return [name for _, name in sorted(near)]


def eccentricity(graph: Graph, name: str) -> int:
    """Distance of the node that is furthest away."""
    return max(distances(graph, name).values())


def centre(graph: Graph) -> str:
    """The node from which the furthest is nearest; of several the first by name."""
    return min(sorted(graph.next), key=lambda name: eccentricity(graph, name))
