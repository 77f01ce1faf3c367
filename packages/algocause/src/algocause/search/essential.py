"""Which edges the shortest structure leaves undirected: the algorithmic essential graph, and Meek's rules (UAI 1995).

Graphs of this kind are `nx.DiGraph`s in which an undirected edge is a pair of opposite arcs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import combinations

import networkx as nx

from ..errors import DataError

Partition = Iterable[Iterable[Hashable]]


def essential_graph(dag: nx.DiGraph, partitions: Mapping[Hashable, Partition]) -> nx.DiGraph:
    """The union of all structures that are exactly as short as (dag, partitions), generically.

    They are reached by reversing covered edges between variables with one partition of the environments. The union is
    the CPDAG of dag, with every edge between different partitions directed as in dag, closed under Meek's rules.

    partitions : for each node, blocks of environments; blocks and their members in any order.
    """
    missing = [node for node in dag if node not in partitions]
    if missing:
        raise DataError(f"no partition is given for {', '.join(map(repr, missing))}")
    as_set = {node: frozenset(frozenset(block) for block in partitions[node]) for node in dag}
    graph = cpdag(dag)
    for u, v in dag.edges:
        if as_set[u] != as_set[v] and graph.has_edge(v, u):
            graph.remove_edge(v, u)
    return meek_closure(graph)


def cpdag(dag: nx.DiGraph) -> nx.DiGraph:
    """The union of all graphs with the skeleton and the v-structures of dag."""
    if not nx.is_directed_acyclic_graph(dag):
        cycle = nx.find_cycle(dag)
        raise DataError("the graph has a cycle: " + " -> ".join(repr(u) for u, _ in [*cycle, cycle[0]]))
    graph = nx.DiGraph()
    graph.add_nodes_from(dag)
    graph.add_edges_from(dag.edges)
    graph.add_edges_from((v, u) for u, v in dag.edges)
    for v in dag:
        for a, b in combinations(dag.predecessors(v), 2):
            if not (dag.has_edge(a, b) or dag.has_edge(b, a)):
                graph.remove_edges_from([(v, a), (v, b)])
    return meek_closure(graph)


def meek_closure(graph: nx.DiGraph) -> nx.DiGraph:
    """A copy of graph in which every undirected edge that Meek's rules R1 to R4 direct is directed."""
    graph = graph.copy()
    changed = True
    while changed:
        changed = False
        for a, b in list(graph.edges):
            if graph.has_edge(b, a) and _is_compelled(graph, a, b):
                graph.remove_edge(b, a)
                changed = True
    return graph


def _is_compelled(graph: nx.DiGraph, a: Hashable, b: Hashable) -> bool:
    into_a, into_b = _parents(graph, a), _parents(graph, b)
    beside_a, beside_b = _neighbours(graph, a), set(graph.succ[b]) | set(graph.pred[b])
    return bool(
        into_a - beside_b - {b}  # R1: c -> a - b
        or any(graph.has_edge(a, c) and not graph.has_edge(c, a) for c in into_b)  # R2: a -> c -> b
        or any(not _adjacent(graph, c, d) for c, d in combinations(beside_a & into_b, 2))  # R3: a - c -> b, a - d -> b
        or any(
            _parents(graph, e) & beside_a - beside_b - {b} for e in into_b if _adjacent(graph, a, e)
        )  # R4: a - c -> e -> b, a - e
    )


def _parents(graph: nx.DiGraph, v: Hashable) -> set[Hashable]:
    return {u for u in graph.pred[v] if u not in graph.succ[v]}


def _neighbours(graph: nx.DiGraph, v: Hashable) -> set[Hashable]:
    return {u for u in graph.pred[v] if u in graph.succ[v]}


def _adjacent(graph: nx.DiGraph, u: Hashable, v: Hashable) -> bool:
    return bool(graph.has_edge(u, v) or graph.has_edge(v, u))
