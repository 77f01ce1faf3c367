"""How far a graph that was found is from the true one. In both, a pair of opposite arcs is an undirected edge."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import combinations
from typing import Any

import networkx as nx
import numpy as np

from .errors import AlgocauseError, DataError


def shd(true: nx.DiGraph, est: nx.DiGraph, half_undirected: bool = False) -> float:
    """Structural Hamming distance: pairs of nodes whose edge differs, 1 each.

    half_undirected : a directed edge against an undirected one counts one half.
    """
    _same_nodes(true, est)
    distance = 0.0
    for u, v in combinations(true, 2):
        a, b = _marks(true, u, v), _marks(est, u, v)
        if a != b:
            half = half_undirected and any(a) and any(b) and (all(a) or all(b))
            distance += 0.5 if half else 1.0
    return distance


def orientation_accuracy(true: nx.DiGraph, est: nx.DiGraph) -> float:
    """Mean over the edges of the graph `true`: 1 for the right direction, ½ for undirected, 0 otherwise.

    NaN if there are no edges.
    """
    _same_nodes(true, est)
    points = [0.5 * (1 + est.has_edge(u, v) - est.has_edge(v, u)) * _joined(est, u, v) for u, v in true.edges]
    return float(np.mean(points)) if points else float("nan")


def skeleton_f1(true: nx.DiGraph, est: nx.DiGraph) -> float:
    """F1 score of the adjacent pairs; 1 if there are none in both."""
    _same_nodes(true, est)
    return _f1({frozenset(edge) for edge in true.edges}, {frozenset(edge) for edge in est.edges})


def target_f1(true: Mapping[Any, Iterable[Any]], est: Mapping[Any, Iterable[Any]]) -> float:
    """F1 score of the intervention targets {environment: nodes}, over all pairs; 1 if there are none in both."""
    return _f1(*({(env, node) for env, nodes in targets.items() for node in nodes} for targets in (true, est)))


def sid(true: nx.DiGraph, est: nx.DiGraph) -> int:
    """Structural intervention distance of two directed acyclic graphs (Peters and Bühlmann 2015), by gadjid.

    The number of ordered pairs (i, j) for which adjusting for the parents of i in est misstates the effect of i on j.
    """
    _same_nodes(true, est)
    for name, graph in (("true", true), ("estimated", est)):
        if not nx.is_directed_acyclic_graph(graph):
            raise DataError(
                f"sid is defined for directed acyclic graphs; the {name} graph has undirected edges or cycles"
            )
    try:
        import gadjid
    except ImportError:
        raise AlgocauseError("sid needs the package gadjid: pip install 'algocause[bench]'") from None
    nodes = list(true)
    matrices = [nx.to_numpy_array(g, nodelist=nodes, weight=None).astype(np.int8) for g in (true, est)]
    _, mistakes = gadjid.sid(*matrices, edge_direction="from row to column")
    return int(mistakes)


def _f1(true: set[Any], est: set[Any]) -> float:
    return 2 * len(true & est) / (len(true) + len(est)) if true or est else 1.0


def _marks(graph: nx.DiGraph, u: Hashable, v: Hashable) -> tuple[bool, bool]:
    return graph.has_edge(u, v), graph.has_edge(v, u)


def _joined(graph: nx.DiGraph, u: Hashable, v: Hashable) -> bool:
    return any(_marks(graph, u, v))


def _same_nodes(true: nx.DiGraph, est: nx.DiGraph) -> None:
    alone = set(true) ^ set(est)
    if alone:
        shown = ", ".join(sorted(map(repr, alone))[:5])
        raise DataError(f"the graphs have different nodes: {len(alone)} are in one of them alone ({shown})")
