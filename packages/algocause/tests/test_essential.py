from itertools import combinations, product

import networkx as nx
import numpy as np
import pytest

from algocause.errors import DataError
from algocause.search import cpdag, essential_graph, meek_closure


def graph(d, edges, undirected=()):
    g = nx.DiGraph()
    g.add_nodes_from(range(d))
    g.add_edges_from(edges)
    g.add_edges_from(undirected)
    g.add_edges_from((v, u) for u, v in undirected)
    return g


def random_dag(rng, d, density):
    place = rng.permutation(d).tolist()
    return graph(d, [(place[i], place[j]) for i, j in combinations(range(d), 2) if rng.random() < density])


def random_partition(rng, n_envs):
    labels = rng.integers(0, 2 if rng.random() < 0.7 else n_envs, n_envs)
    return [[e for e in range(n_envs) if labels[e] == b] for b in sorted(set(labels.tolist()))]


def orientations(dag):
    """Every acyclic graph with the skeleton of dag."""
    edges = list(dag.edges)
    for flips in product((False, True), repeat=len(edges)):
        g = graph(len(dag), [e[::-1] if f else e for e, f in zip(edges, flips, strict=True)])
        if nx.is_directed_acyclic_graph(g):
            yield g


def v_structures(dag):
    return {
        (frozenset((a, b)), v)
        for v in dag
        for a, b in combinations(dag.predecessors(v), 2)
        if not (dag.has_edge(a, b) or dag.has_edge(b, a))
    }


def union(graphs):
    return {e for g in graphs for e in g.edges}


def augmented(dag, partitions, n_envs):
    """A node for every pair of environments, pointing to the variables whose mechanisms differ between the two."""
    g = dag.copy()
    block = {v: {e: i for i, b in enumerate(partitions[v]) for e in b} for v in dag}
    for e, f in combinations(range(n_envs), 2):
        g.add_edges_from((("env", e, f), v) for v in dag if block[v][e] != block[v][f])
    return g


@pytest.mark.parametrize("seed", range(120))
def test_essential_graph_is_the_union_of_the_interventional_equivalence_class(seed):
    rng = np.random.default_rng([1, seed])
    d, n_envs = int(rng.integers(2, 6)), int(rng.integers(1, 5))
    dag = random_dag(rng, d, rng.uniform(0.3, 1.0))
    partitions = {v: random_partition(rng, n_envs) for v in dag}
    mine = v_structures(augmented(dag, partitions, n_envs))
    equivalent = [g for g in orientations(dag) if v_structures(augmented(g, partitions, n_envs)) == mine]
    assert set(essential_graph(dag, partitions).edges) == union(equivalent)


@pytest.mark.parametrize("seed", range(40))
def test_essential_graph_is_the_union_of_the_representing_graphs_of_least_dimension(seed):
    # Theorems A and B on the population: linear Gaussian environments, whose covariances tell in every graph of the
    # Markov class which mechanisms are the same.
    rng = np.random.default_rng([2, seed])
    d, n_envs = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    dag = random_dag(rng, d, rng.uniform(0.3, 1.0))
    partitions = {v: random_partition(rng, n_envs) for v in dag}
    mechanism = {
        (v, i): (rng.uniform(0.5, 2), {u: rng.normal() for u in dag.predecessors(v)})
        for v in dag
        for i in range(len(partitions[v]))
    }
    covariances = []
    for e in range(n_envs):
        W, noise = np.zeros((d, d)), np.zeros(d)
        for v in dag:
            i = next(i for i, b in enumerate(partitions[v]) if e in b)
            noise[v], slopes = mechanism[v, i]
            for u, w in slopes.items():
                W[u, v] = w
        mix = np.linalg.inv(np.eye(d) - W)
        covariances.append(mix.T @ np.diag(noise) @ mix)

    def dimension(g):
        total = 0
        for v in g:
            p = sorted(g.predecessors(v))
            seen = []
            for C in covariances:
                w = np.linalg.solve(C[np.ix_(p, p)], C[p, v]) if p else np.zeros(0)
                found = np.array([*w, C[v, v] - C[v, p] @ w])
                if not any(np.allclose(found, other, atol=1e-7) for other in seen):
                    seen.append(found)
            total += len(seen) * (len(p) + 2)
        return total

    markov = [g for g in orientations(dag) if v_structures(g) == v_structures(dag)]
    dimensions = [dimension(g) for g in markov]
    assert min(dimensions) == sum(len(partitions[v]) * (dag.in_degree(v) + 2) for v in dag)
    shortest = [g for g, k in zip(markov, dimensions, strict=True) if k == min(dimensions)]
    assert set(essential_graph(dag, partitions).edges) == union(shortest)


@pytest.mark.parametrize("seed", range(40))
def test_cpdag_is_the_union_of_the_markov_class(seed):
    rng = np.random.default_rng([3, seed])
    dag = random_dag(rng, int(rng.integers(2, 6)), rng.uniform(0.3, 1.0))
    markov = [g for g in orientations(dag) if v_structures(g) == v_structures(dag)]
    assert set(cpdag(dag).edges) == union(markov)
    assert all(set(cpdag(g).edges) == union(markov) for g in markov)


@pytest.mark.parametrize(
    ("edges", "undirected", "compelled"),
    [
        ([(2, 0)], [(0, 1)], (0, 1)),  # R1: 2 -> 0 - 1
        ([(0, 2), (2, 1)], [(0, 1)], (0, 1)),  # R2: 0 -> 2 -> 1
        ([(2, 1), (3, 1)], [(0, 1), (0, 2), (0, 3)], (0, 1)),  # R3
        ([(2, 3), (3, 1)], [(0, 1), (0, 2), (0, 3)], (0, 1)),  # R4
    ],
    ids=["R1", "R2", "R3", "R4"],
)
def test_each_of_meek_s_rules(edges, undirected, compelled):
    before = graph(4, edges, undirected)
    after = meek_closure(before)
    assert set(before.edges) - set(after.edges) == {compelled[::-1]}


@pytest.mark.parametrize("seed", range(40))
def test_meek_s_rules_with_background_knowledge_are_sound_and_complete(seed):
    # Meek 1995: an edge is directed exactly where all graphs of the class that agree with the knowledge agree.
    rng = np.random.default_rng([4, seed])
    dag = random_dag(rng, 5, rng.uniform(0.5, 1.0))
    start = cpdag(dag)
    known = [e for e in dag.edges if start.has_edge(*e[::-1]) and rng.random() < 0.3]
    start.remove_edges_from([e[::-1] for e in known])
    agreeing = [
        g for g in orientations(dag) if v_structures(g) == v_structures(dag) and all(g.has_edge(*e) for e in known)
    ]
    assert set(meek_closure(start).edges) == union(agreeing)


def test_partitions_are_compared_as_sets():
    dag = graph(2, [(0, 1)])
    same = {0: (("a", "b"), ("c",)), 1: [{"c"}, {"b", "a"}]}
    assert set(essential_graph(dag, same).edges) == {(0, 1), (1, 0)}
    assert set(essential_graph(dag, same | {1: [["a"], ["b", "c"]]}).edges) == {(0, 1)}


def test_bad_input_is_named():
    with pytest.raises(DataError, match="no partition is given for 1"):
        essential_graph(graph(2, [(0, 1)]), {0: [[0]]})
    with pytest.raises(DataError, match="cycle"):
        cpdag(graph(2, [(0, 1), (1, 0)]))
