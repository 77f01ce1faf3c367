import json
from dataclasses import asdict
from itertools import combinations, product
from math import log2

import networkx as nx
import numpy as np
import pytest

from algocause.errors import DataError, LimitError
from algocause.search import BossState, Knowledge, arc_margin, best_dag, boss, exact_dag, score_table, screen
from algocause.search.boss import GrowShrink

PARTITIONS = [[[0, 1, 2]], [[0, 1], [2]], [[0, 2], [1]], [[0], [1, 2]], [[0], [1], [2]]]


class BicProblem:
    """A small code of linear data in three environments: BIC, the best of their five partitions, log2 d a parent."""

    def __init__(self, d, seed, degree=2.0, n=100):
        rng = np.random.default_rng([d, seed])
        slopes = np.triu(rng.random((d, d)) < degree / (d - 1), 1) * rng.uniform(0.5, 1.5, (d, d))
        place = rng.permutation(d)
        self.n, self.d, self.scatter, self.asked = n, d, [], 0
        for _ in range(3):
            shifted = rng.random(d) < 0.3
            W = slopes * np.where(shifted, rng.uniform(-1.2, 1.2, d), 1)
            X = rng.normal(size=(n, d)) * np.where(shifted, 1.7, 1) @ np.linalg.inv(np.eye(d) - W)
            self.scatter.append(np.cov(X[:, place], rowvar=False, bias=True) * n)
        self.covariance = sum(self.scatter) / (3 * n)

    def __call__(self, v, parents):
        self.asked += 1
        p = list(parents)

        def block(envs):
            S, n = sum(self.scatter[e] for e in envs), self.n * len(envs)
            explained = S[v, p] @ np.linalg.solve(S[np.ix_(p, p)], S[p, v]) if p else 0.0
            return n / 2 * log2((S[v, v] - explained) / n) + (len(p) + 2) / 2 * log2(n)

        return min(sum(block(b) + 1 for b in blocks) for blocks in PARTITIONS) + len(p) * log2(self.d)

    def of(self, dag):
        return sum(self(v, tuple(sorted(dag.predecessors(v)))) for v in dag)


def random_score(d, seed):
    table = {}
    rng = np.random.default_rng(seed)
    for v in range(d):
        for k in range(d):
            for s in combinations([u for u in range(d) if u != v], k):
                table[v, s] = rng.normal() * 10
    return lambda v, parents: table[v, parents]


def all_dags(d):
    pairs = list(combinations(range(d), 2))
    for arrows in product((None, 0, 1), repeat=len(pairs)):
        dag = nx.DiGraph()
        dag.add_nodes_from(range(d))
        dag.add_edges_from(p if a else p[::-1] for p, a in zip(pairs, arrows, strict=True) if a is not None)
        if nx.is_directed_acyclic_graph(dag):
            yield dag


DAGS = list(all_dags(4))


def bits_of(score, dag):
    return sum(score(v, tuple(sorted(dag.predecessors(v)))) for v in dag)


# ----------------------------------------------------------------------------------------- exact
@pytest.mark.parametrize("seed", range(8))
def test_exact_is_the_best_of_all_543_graphs(seed):
    assert len(DAGS) == 543
    score = random_score(4, seed)
    total, dag = exact_dag(score, 4)
    assert total == pytest.approx(min(bits_of(score, g) for g in DAGS))
    assert total == pytest.approx(bits_of(score, dag))
    total, dag = exact_dag(score, 4, max_parents=1)
    assert total == pytest.approx(min(bits_of(score, g) for g in DAGS if max(dict(g.in_degree).values()) <= 1))
    assert max(dict(dag.in_degree).values()) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_margin_is_the_loss_of_the_best_graph_without_the_edge(seed):
    score = random_score(4, seed)
    table = score_table(score, 4)
    best, dag = best_dag(table)
    for u, v in [(u, v) for u in range(4) for v in range(4) if u != v]:
        without = min(bits_of(score, g) for g in DAGS if not g.has_edge(u, v))
        assert arc_margin(table, u, v) == pytest.approx(without - best, abs=1e-9)
        assert arc_margin(table, u, v, best) >= 0
        if not dag.has_edge(u, v):
            assert arc_margin(table, u, v, best) == pytest.approx(0, abs=1e-9)


def test_equal_bits_take_the_smaller_parent_set():
    _, dag = exact_dag(lambda v, parents: 1.0, 5)
    assert dag.number_of_edges() == 0


def test_one_variable_has_no_parents():
    assert exact_dag(lambda v, parents: 3.0, 1)[0] == 3.0
    assert boss(lambda v, parents: 3.0, 1)[0] == 3.0


def test_exact_says_its_limits():
    with pytest.raises(LimitError, match="20 variables"):
        exact_dag(lambda v, parents: 0.0, 21)
    with pytest.raises(LimitError, match="max_parents"):
        exact_dag(lambda v, parents: 0.0, 18)


def test_batches_and_single_scores_give_the_same_graph():
    problem = BicProblem(5, 0)

    def batch(requests):
        return [problem(*r) for r in requests]

    def never(v, parents):
        raise AssertionError

    for search in (exact_dag, boss):
        total, dag = search(problem, 5)
        again, same = search(never, 5, batch=batch)
        assert total == again
        assert set(dag.edges) == set(same.edges)


# ----------------------------------------------------------------------------------------- boss
def test_boss_is_never_below_exact_and_mostly_equal():
    equal = []
    for seed in range(60):
        problem = BicProblem(8, seed, degree=(2.0, 4.0)[seed % 2])
        cache = {}
        total, dag = boss(problem, 8, cache=cache, random_state=seed)
        assert dag.graph["converged"]
        assert total == pytest.approx(problem.of(dag), abs=1e-6)
        exact = exact_dag(lambda v, p, problem=problem, cache=cache: cache.get((v, p)) or problem(v, p), 8)[0]
        assert total >= exact - 1e-6
        equal.append(total <= exact + 1e-6)
    assert np.mean(equal) >= 0.95


def test_grow_shrink_is_the_greedy_algorithm_for_every_set_of_predecessors():
    score = random_score(6, 3)

    def plain(v, within):
        parents = ()
        while True:
            options = [tuple(sorted((*parents, u))) for u in within if u not in parents]
            best = min(options, key=lambda s: score(v, s), default=None)
            if best is None or score(v, best) >= score(v, parents):
                break
            parents = best
        while parents:
            best = min(combinations(parents, len(parents) - 1), key=lambda s: score(v, s))
            if score(v, best) >= score(v, parents):
                break
            parents = best
        return score(v, parents), parents

    rng = np.random.default_rng(0)
    full = [63 ^ 1 << v for v in range(6)]
    grow_shrink = GrowShrink(score, None, {}, full, [0] * 6, 6)
    for v in range(6):
        others = [u for u in range(6) if u != v]
        sets = [s for k in range(6) for s in combinations(others, k)]
        for i in rng.permutation(len(sets)):  # whatever was asked before
            assert grow_shrink(v, sum(1 << u for u in sets[i])) == plain(v, sets[i])


def test_boss_is_deterministic_and_resumes_to_the_same_result():
    problem = BicProblem(10, 1, degree=4.0)
    states = []
    total, dag = boss(problem, 10, n_restarts=2, random_state=4, on_move=states.append)
    assert boss(problem, 10, n_restarts=2, random_state=4)[1].graph == dag.graph
    for i in np.linspace(0, len(states) - 1, 6).astype(int):
        stored = BossState(**json.loads(json.dumps(asdict(states[i]))))
        again, same = boss(problem, 10, n_restarts=2, random_state=99, state=stored)
        assert again == pytest.approx(total, abs=1e-9)
        assert list(same.edges) == list(dag.edges)
        assert same.graph == dag.graph


def test_time_limit_returns_a_graph_and_says_so():
    problem = BicProblem(10, 0)
    total, dag = boss(problem, 10, time_limit_s=0.0)
    assert not dag.graph["converged"]
    assert total == pytest.approx(problem.of(dag))


def test_restarts_and_patience_never_lengthen_the_result():
    problem = BicProblem(9, 5, degree=4.0)
    short = [boss(problem, 9, patience=p)[0] for p in (0, 5, 20)]
    assert short == sorted(short, reverse=True)
    assert boss(problem, 9, patience=0, n_restarts=4)[0] <= short[0]


def test_scores_asked_once_are_cached():
    problem = BicProblem(7, 0)
    cache = {}
    boss(problem, 7, cache=cache)
    assert problem.asked == len(cache) > 0
    boss(problem, 7, cache=cache)
    assert problem.asked == len(cache)


def test_candidates_bound_the_parents_until_blankets_widen_them():
    problem = BicProblem(8, 2)
    seen = []
    candidates = [[(v + 1) % 8, (v + 2) % 8] for v in range(8)]
    total, dag = boss(problem, 8, candidates=candidates, on_move=seen.append, patience=0)
    assert seen[0].candidates == [sorted(c) for c in candidates]
    assert seen[-1].widened
    for v in dag:
        assert set(candidates[v]) <= set(seen[-1].candidates[v])
        assert set(dag.predecessors(v)) <= set(seen[-1].candidates[v])
    assert total == pytest.approx(problem.of(dag))


def test_screening_finds_parents_whose_marginal_effect_cancels():
    # Z = X - Y with X = Y + noise of its own: Z is almost independent of Y, not given X.
    rng = np.random.default_rng(0)
    n, d = 2000, 8
    E = rng.normal(size=(n, d))
    E[:, 1] += E[:, 0]
    E[:, 2] += E[:, 1] - E[:, 0] * (1 + 1e-3)
    C = np.cov(E, rowvar=False)

    def score(v, parents):
        p = list(parents)
        rest = C[v, v] - (C[v, p] @ np.linalg.solve(C[np.ix_(p, p)], C[p, v]) if p else 0)
        return n / 2 * log2(rest) + len(p) / 2 * log2(n)

    assert abs(C[0, 2]) / np.sqrt(C[0, 0] * C[2, 2]) < 0.05
    found = screen(score, C, top=2)
    assert 0 in found[2]
    assert 1 in found[2]
    assert all(len(c) <= 4 and v not in c for v, c in enumerate(found))
    assert boss(score, d, candidates=found)[0] == pytest.approx(exact_dag(score, d)[0])


@pytest.mark.parametrize("max_parents", [0, 1, 2])
def test_boss_keeps_to_max_parents(max_parents):
    _, dag = boss(BicProblem(8, 3, degree=5.0), 8, max_parents=max_parents)
    assert max(dict(dag.in_degree).values()) <= max_parents


def test_bad_arguments_are_named():
    problem = BicProblem(4, 0)
    with pytest.raises(DataError, match="candidates"):
        boss(problem, 4, candidates=[[1]])
    with pytest.raises(DataError, match="order"):
        boss(problem, 4, order=[0, 1, 2, 2])


# ------------------------------------------------------------------------------------- knowledge
def keeps(dag, required=(), forbidden=(), tiers=()):
    tier = {v: t for t, group in enumerate(tiers) for v in group}
    return (
        all(dag.has_edge(*e) for e in required)
        and not any(dag.has_edge(*e) for e in forbidden)
        and all(tier[u] <= tier[v] for u, v in dag.edges if u in tier and v in tier)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "known",
    [
        {"required": [(3, 0), (0, 1)]},
        {"forbidden": [(0, 1), (1, 0), (2, 3)]},
        {"tiers": [[2], [0, 3], [1]]},
        {"required": [(2, 1)], "forbidden": [(0, 3)], "tiers": [[2, 3], [0]]},
    ],
)
def test_searches_keep_to_what_is_known_and_lose_nothing_else(known, seed):
    score = random_score(4, seed)
    best = min(bits_of(score, g) for g in DAGS if keeps(g, **known))
    total, dag = exact_dag(score, 4, knowledge=Knowledge(**known))
    assert keeps(dag, **known)
    assert total == pytest.approx(best)
    total, dag = boss(score, 4, knowledge=Knowledge(**known), random_state=seed)
    assert keeps(dag, **known)
    assert total >= best - 1e-9


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"required": [("a", "z")]}, "'z', which is not a variable"),
        ({"forbidden": [("a", "a")]}, "to itself"),
        ({"required": [("a", "b")], "forbidden": [("a", "b")]}, "forbidden too"),
        ({"required": [("a", "b")], "tiers": [["b"], ["a"]]}, "earlier tier"),
        ({"required": [("a", "b"), ("b", "c"), ("c", "a")]}, "cycle"),
        ({"tiers": [["a"], ["b", "a"]]}, "tier 1 and in tier 2"),
        ({"tiers": [["q"]]}, "tier 1 names 'q'"),
    ],
)
def test_contradictions_are_named(known, message):
    with pytest.raises(DataError, match=message):
        Knowledge(**known).masks("abc")


def test_more_required_parents_than_allowed_is_an_error():
    for search in (exact_dag, boss):
        with pytest.raises(DataError, match=r"variable 2 .*max_parents = 1"):
            search(random_score(4, 0), 4, max_parents=1, knowledge=Knowledge(required=[(0, 2), (1, 2)]))
