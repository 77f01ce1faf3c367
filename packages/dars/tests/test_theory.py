"""Closed forms against the engine itself: simulation, and enumeration of all outcomes."""

from itertools import product

import numpy as np
import pytest

from dars import theory
from dars.metrics import cost_curve, paired_bootstrap, pass_at_k
from dars.policy import ExpansionPolicy
from dars.search import simulate_skeleton

STAGES = ["create", "append", "edit", "submit"]
LETTER = {"create": "c", "append": "a", "edit": "e", "submit": "s"}
POLICIES = {
    "paper": ExpansionPolicy.paper(),
    "three": ExpansionPolicy(ExpansionPolicy.paper().limits, ExpansionPolicy.paper().allowed_after, 3),
    "twice": ExpansionPolicy(
        {"edit": 2, "append": 1, "submit": 1}, {"edit": ["edit", "submit"], "append": ["edit"]}, 2
    ),
}


def skeleton(stages, gaps, policy, history=(), remaining=None):
    """The tree that a search with these stages and gaps makes, written out by the definition."""
    remaining = dict(policy.limits) if remaining is None else remaining
    text = "o" * gaps[0]
    if not stages:
        return text
    kind = stages[0]
    opens = policy.should_expand(kind, history, remaining)
    fewer = {**remaining, kind: remaining[kind] - 1} if opens else remaining
    first = LETTER[kind] + skeleton(stages[1:], gaps[1:], policy, history, fewer)
    if not opens or policy.num_expansions == 1:
        return text + first
    other = LETTER[kind] + skeleton(stages[1:], gaps[1:], policy, (*history, kind), remaining)
    return text + "(" + "|".join([first] + [other] * (policy.num_expansions - 1)) + ")"


def test_reference_values():
    assert theory.leaf_count(STAGES) == 12
    assert theory.step_count(STAGES, [3, 0, 1, 6, 0]) == 67
    assert theory.replay_count(STAGES, [3, 0, 1, 6, 0]) == 101
    assert theory.success_probability(STAGES, [0.5] * 3 + [1], [0.5] * 3 + [1]) == pytest.approx(0.460693, abs=1e-6)
    assert theory.success_probability(STAGES, [0.6] * 3 + [1], [0.8] * 3 + [1]) == pytest.approx(0.791448, abs=1e-6)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "stages", [STAGES, ["edit", "edit", "submit"], ["append", "append", "edit", "edit", "submit"], []]
)
def test_counts_are_those_of_the_engine(name, stages):
    policy = POLICIES[name]
    gaps = [(3 * i + 1) % 4 for i in range(len(stages) + 1)]
    if stages and stages[-1] == "submit":
        gaps[-1] = 0
    trace = simulate_skeleton(skeleton(stages, gaps, policy), policy, max_depth=200)
    assert trace.missing == 0
    if stages:
        assert trace.n_leaves == theory.leaf_count(stages, policy)
    assert trace.n_steps == theory.step_count(stages, gaps, policy)
    assert trace.replay_steps == theory.replay_count(stages, gaps, policy)


@pytest.mark.parametrize("name", POLICIES)
def test_success_probability_is_the_sum_over_all_outcomes(name):
    """Every decision of the engine's tree is good or not; alternatives depend on their first choice."""
    policy = POLICIES[name]
    stages = ["append", "edit", "submit"] if policy.num_expansions == 3 else ["edit", "append", "edit", "submit"]
    p, bad, good = [0.7, 0.4, 0.9, 0.8], [0.6, 0.5, 0.3, 0.9], [0.2, 0.8, 0.6, 0.7]
    tree = simulate_skeleton(skeleton(stages, [0] * (len(stages) + 1), policy), policy, max_depth=99).tree
    nodes = list(tree.nodes.values())[1:]
    total = 0.0
    if len(nodes) > 16:
        rng = np.random.default_rng(0)
        hits = [_resolved(tree, nodes, p, bad, good, rng.random(len(nodes)))[0] for _ in range(20_000)]
        expected = theory.success_probability(stages, p[: len(stages)], bad[: len(stages)], good[: len(stages)], policy)
        assert abs(np.mean(hits) - expected) < 3.3 * (expected * (1 - expected) / len(hits)) ** 0.5
        return
    for outcome in product((0.0, 1.0), repeat=len(nodes)):
        resolved, weight = _resolved(tree, nodes, p, bad, good, outcome, exact=True)
        total += resolved * weight
    assert total == pytest.approx(
        theory.success_probability(stages, p[: len(stages)], bad[: len(stages)], good[: len(stages)], policy)
    )


def _resolved(tree, nodes, p, bad, good, draws, exact=False):
    ok, weight = {0: True}, 1.0
    right = {}
    for node, draw in zip(nodes, draws, strict=True):
        stage = node.depth - 1
        if node.child_index == 0:
            chance = p[stage]
        else:
            chance = (good if right[tree.nodes[node.parent].children[0]] else bad)[stage]
        is_good = draw < 0.5 if exact else draw < chance
        weight *= chance if is_good else 1 - chance
        right[node.id] = is_good
        ok[node.id] = ok[node.parent] and is_good
    return any(ok[leaf.id] for leaf in tree.leaves()), weight


def test_break_even_separates_trees_from_restarts():
    gaps, p = [3, 0, 1, 6, 0], [0.5, 0.5, 0.5, 1]
    q = theory.break_even_q(STAGES, gaps, p)
    runs = (67 - 11 + 11 * 4) / 14  # eleven alternatives, four calls each
    goal = theory.restart_success(0.125, runs)
    assert theory.success_probability(STAGES, p, [q] * 3 + [1]) == pytest.approx(goal)
    assert theory.break_even_q(STAGES, gaps, p, unit="steps") < q
    assert theory.break_even_q(STAGES, gaps, [0.95] * 3 + [1]) is None


def test_wrong_arguments_are_named():
    for call in (
        lambda: theory.step_count(STAGES, [1, 2]),
        lambda: theory.success_probability(STAGES, [0.5], [0.5]),
        lambda: theory.success_probability(["edit"], [1.5], [0.5]),
        lambda: theory.restart_success(2, 1),
        lambda: theory.break_even_q(["edit"], [0, 0], [0.5], unit="euros"),
        lambda: pass_at_k(5, 6, 1),
        lambda: pass_at_k(5, 2, 6),
        lambda: paired_bootstrap([1], [1, 2]),
    ):
        with pytest.raises(ValueError, match=r"gaps|p has|p holds|pi|unit|c is|k is|equally"):
            call()


def test_pass_at_k_is_the_mean_over_subsets():
    from itertools import combinations

    outcomes = [1, 0, 0, 1, 0, 0]
    for k in range(1, 7):
        subsets = list(combinations(outcomes, k))
        assert pass_at_k(6, 2, k) == pytest.approx(np.mean([any(s) for s in subsets]))


def test_bootstrap_covers_and_curve_rises():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        x = rng.normal(0.3, 1, 60)
        _, low, high = paired_bootstrap(x, np.zeros(60), n=500, seed=seed)
        inside += low <= 0.3 <= high
    assert 0.88 <= inside / 200 <= 0.99
    runs = [{"resolved_at": 5}, {"resolved_at": None}, {"resolved_at": 20}, {"resolved_at": 7}]
    assert cost_curve(runs, [4, 7, 50]).tolist() == [0, 0.5, 0.75]
