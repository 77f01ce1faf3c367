"""The declared causal order: a chain of blocks of variables, causes before effects (spec 2.1, 2.6).

A graph is a DAG over blocks. ``a -> b`` makes a cause of b; ``a -- b`` puts a and b into one block, whose
variables are modelled jointly. Four names stand for the graphs that people use most; everything else
is written as a string, an edge list or an ``nx.DiGraph``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import networkx as nx

from .errors import GraphError

NAMED_GRAPHS = ("causal", "anticausal", "causal-star", "anticausal-star")

GraphLike: TypeAlias = "str | nx.DiGraph | Iterable[tuple[str, ...]] | BlockGraph"


@dataclass(frozen=True)
class BlockGraph:
    """Blocks in topological order with the parents of each.

    Attributes
    ----------
    blocks : tuple of tuples of variable names; earlier blocks never depend on later ones.
    parents : for each block the variables, all in earlier blocks, that its mechanism may depend on.
    """

    blocks: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[str, ...], ...]

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(v for block in self.blocks for v in block)

    def block_of(self, variable: str) -> int:
        return next(i for i, block in enumerate(self.blocks) if variable in block)

    def direction(self, target: str) -> str | None:
        """Say "causal" for {X} -> target, "anticausal" for target -> {X} (X one block), else None."""
        if len(self.blocks) != 2 or (target,) not in self.blocks:
            return None
        first, second = self.blocks
        if set(self.parents[1]) != set(first):
            return None
        return "causal" if second == (target,) else "anticausal"

    def is_root(self, target: str) -> bool:
        """Whether the target has no causes and shares no block: then p(x | y) is a mechanism that label shift keeps."""
        own = self.block_of(target)
        return len(self.blocks) > 1 and self.blocks[own] == (target,) and not self.parents[own]

    def to_networkx(self) -> nx.DiGraph:
        """Directed edges between variables; members of one block carry the same ``block`` attribute."""
        graph = nx.DiGraph()
        for i, (block, parents) in enumerate(zip(self.blocks, self.parents, strict=True)):
            graph.add_nodes_from(block, block=i)
            graph.add_edges_from((p, v) for p in parents for v in block)
        return graph


def resolve_graph(graph: GraphLike, variables: Sequence[str], target: str | None = None) -> BlockGraph:
    """Turn any accepted description into a :class:`BlockGraph` over exactly ``variables``.

    Parameters
    ----------
    graph : one of ``NAMED_GRAPHS`` (these need ``target``), a string such as ``"x1->y; y->x2; x3--x4"``, an
        ``nx.DiGraph`` (an edge with attribute ``undirected=True`` joins a block), or an edge list of ``(a, b)``
        or ``(a, "--", b)`` tuples, with ``(a,)`` for a variable without edges.
    variables : every variable that the graph has to place, in the order that breaks ties.
    target : the variable Y of the named graphs.

    Raises
    ------
    GraphError
        On a cycle, an unknown or unplaced variable, or ``--`` inside a directed path.
    """
    names = tuple(variables)
    if isinstance(graph, str):
        if graph in NAMED_GRAPHS:
            return _named(graph, names, target)
        if "->" not in graph and "--" not in graph and "<-" not in graph:
            raise GraphError(
                f"unknown graph {graph!r}: use one of {', '.join(NAMED_GRAPHS)}, or edges such as 'x1->y; y->x2; "
                "x3--x4'"
            )
        return _from_edges(*_parse(graph), names)
    return _from_edges(*_from_list(edge_list(graph)), names)


def edge_list(graph: BlockGraph | nx.DiGraph | Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A graph object as the edge list that :func:`resolve_graph` reads back."""
    if isinstance(graph, BlockGraph):
        nodes: list[tuple[str, ...]] = [(v,) for v in graph.variables]
        nodes += [(p, v) for block, pa in zip(graph.blocks, graph.parents, strict=True) for v in block for p in pa]
        return nodes + [(b[0], "--", v) for b in graph.blocks for v in b[1:]]
    if isinstance(graph, nx.DiGraph):
        edges = graph.edges(data="undirected", default=False)
        return [*((v,) for v in graph.nodes), *((a, "--", b) if u else (a, b) for a, b, u in edges)]
    try:
        return [tuple(edge) for edge in graph]
    except TypeError:
        raise GraphError(
            f"cannot read a graph from {type(graph).__name__}: give a name, a string, edges or a DiGraph"
        ) from None


def _named(graph: str, names: tuple[str, ...], target: str | None) -> BlockGraph:
    if target is None or target not in names:
        raise GraphError(f"graph {graph!r} needs a target among {_listed(names)}; got {target!r}")
    x = tuple(v for v in names if v != target)
    if not x:
        return BlockGraph(((target,),), ((),))
    if graph == "causal":
        return BlockGraph((x, (target,)), ((), x))
    if graph == "anticausal":
        return BlockGraph(((target,), x), ((), (target,)))
    singles = tuple((v,) for v in x)
    if graph == "causal-star":
        return BlockGraph((*singles, (target,)), (*(() for _ in x), x))
    return BlockGraph(((target,), *singles), ((), *((target,) for _ in x)))


def _parse(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    directed, undirected, mentioned = [], [], []
    for statement in filter(None, (s.strip() for s in re.split(r"[;\n]", text))):
        tokens = [t.strip() for t in re.split(r"(<-|->|--)", statement)]
        if len(tokens) % 2 == 0 or any(not t for t in tokens):
            raise GraphError(
                f"cannot read {statement!r} in the graph: write edges as 'a->b' or 'a--b', separated by ';'"
            )
        mentioned += tokens[::2]
        for a, arrow, b in zip(tokens[:-2:2], tokens[1::2], tokens[2::2], strict=True):
            if arrow == "--":
                undirected.append((a, b))
            else:
                directed.append((a, b) if arrow == "->" else (b, a))
    return directed, undirected, mentioned


def _from_list(edges: Iterable[tuple[str, ...]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    directed, undirected, mentioned = [], [], []
    for edge in edges:
        match edge:
            case (str(a),):
                mentioned.append(a)
                continue
            case (str(a), str(b)):
                directed.append((a, b))
            case (str(a), "->", str(b)):
                directed.append((a, b))
            case (str(a), "--", str(b)):
                undirected.append((a, b))
            case _:
                raise GraphError(f"cannot read edge {edge!r}: use (cause, effect) or (a, '--', b)")
        mentioned += [edge[0], edge[-1]]
    return directed, undirected, mentioned


def _from_edges(
    directed: Sequence[tuple[str, str]],
    undirected: Sequence[tuple[str, str]],
    mentioned: Sequence[str],
    names: tuple[str, ...],
) -> BlockGraph:
    unknown = sorted(set(mentioned) - set(names))
    if unknown:
        raise GraphError(f"the graph names {_listed(unknown)}, but the variables are {_listed(names)}")
    missing = [v for v in names if v not in set(mentioned)]
    if missing:
        raise GraphError(
            f"the graph does not place {_listed(missing)}: add it to the graph or leave it out of the moments"
        )
    for a, b in (*directed, *undirected):
        if a == b:
            raise GraphError(f"the graph has an edge from {a} to itself")

    skeleton = nx.Graph()
    skeleton.add_nodes_from(names)
    skeleton.add_edges_from(undirected)
    position = {v: i for i, v in enumerate(names)}
    components = [tuple(sorted(c, key=position.__getitem__)) for c in nx.connected_components(skeleton)]
    home = {v: i for i, block in enumerate(components) for v in block}
    dag = nx.DiGraph()
    dag.add_nodes_from(range(len(components)))
    for a, b in directed:
        if home[a] == home[b]:
            raise GraphError(
                f"{a}->{b} runs inside the block {{{', '.join(components[home[a]])}}} that '--' makes: remove one of "
                "them"
            )
        dag.add_edge(home[a], home[b])
    try:
        order = list(nx.lexicographical_topological_sort(dag, key=lambda i: position[components[i][0]]))
    except nx.NetworkXUnfeasible:
        cycle = nx.find_cycle(dag)
        path = " -> ".join("--".join(components[i]) for i, _ in cycle) + " -> " + "--".join(components[cycle[0][0]])
        raise GraphError(f"the graph has a cycle: {path}") from None
    parents = {i: {a for a, b in directed if home[b] == i} for i in order}
    return BlockGraph(
        tuple(components[i] for i in order),
        tuple(tuple(sorted(parents[i], key=position.__getitem__)) for i in order),
    )


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    shown = ", ".join(str(n) for n in names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
