"""The planner: closed form against flipped coins, where it spends a budget, and rates learnt from trees."""

from itertools import product

import numpy as np
import pytest

from dars import theory
from dars.config import DarsConfig
from dars.errors import TaskError
from dars.models import read_rows
from dars.plan import Beta, OnlinePlan, Prices, Rates, costs, estimate, plan, worthwhile
from dars.policy import KINDS, ExpansionPolicy
from dars.search import simulate_skeleton
from dars.tree import Node, Tree

STAGES = ("create", "append", "edit", "submit")
SHORT, LONG = (0, 0, 1, 2, 0), (60, 0, 1, 6, 0)
PAPER = ExpansionPolicy.paper()


def rates(create, append, edit, submit):
    return dict(zip(STAGES, (create, append, edit, submit), strict=True))


def flipped(rng, policy, p, bad, good, stages=STAGES, history=(), remaining=None, alive=True):
    """(skeleton, whether each leaf resolves in order of a walk) of one search in which every decision is a coin."""
    remaining = dict(policy.limits) if remaining is None else remaining
    if not stages:
        return "", [alive]
    kind, rest = stages[0], stages[1:]
    opens = policy.should_expand(kind, history, remaining) and policy.num_expansions > 1
    fewer = {**remaining, kind: remaining[kind] - 1} if opens else remaining
    right = rng.random() < p[kind]
    letter = kind[0]
    text, leaves = flipped(rng, policy, p, bad, good, rest, history, fewer, alive and right)
    if not opens:
        return letter + text, leaves
    parts = [letter + text]
    for _ in range(policy.num_expansions - 1):
        again = rng.random() < (good if right else bad)[kind]
        text, more = flipped(rng, policy, p, bad, good, rest, (*history, kind), remaining, alive and again)
        parts.append(letter + text)
        leaves = leaves + more
    return f"({'|'.join(parts)})", leaves


def labelled(rng, policy, p, bad, good, stages=STAGES):
    """A tree of the engine, and the ids of its leaves that resolve."""
    text, resolves = flipped(rng, policy, p, bad, good, stages)
    tree = simulate_skeleton(text, policy).tree
    leaves = sorted(tree.leaves(), key=lambda leaf: tree.indices(leaf.id))  # as the walk met them
    return tree, [leaf.id for leaf, yes in zip(leaves, resolves, strict=True) if yes]


# --- plans ----------------------------------------------------------------------------------------------------------


def test_success_of_a_plan_is_the_share_of_flipped_searches_that_resolve():
    p, q = rates(0.5, 0.6, 0.4, 0.9), rates(0.7, 0.5, 0.6, 0.8)
    rng = np.random.default_rng(0)
    for limits, number in ((STAGES, 2), (("create", "edit"), 3), (("submit",), 2)):
        policy = ExpansionPolicy(dict.fromkeys(limits, 1), PAPER.allowed_after, number)
        budget = theory.step_count(STAGES, SHORT, policy)  # pays one tree of this policy
        found = next(x for x in plan(budget, STAGES, SHORT, p, q, unit="steps")
                     if (set(x.limits), x.num_expansions, x.k) == (set(limits), number, 1))  # fmt: skip
        assert found.runs == 1
        n = 4000
        share = np.mean([any(flipped(rng, policy, p, q, q)[1]) for _ in range(n)])
        assert abs(share - found.success) < 3.5 * (found.success * (1 - found.success) / n) ** 0.5


def test_average_over_a_beta_is_that_of_an_exact_integral():
    """One stage, two children: success is linear in p and q, so that only the means matter; a square is not."""
    p, q = {"edit": Beta(3, 5)}, {"edit": Beta(2, 2)}
    found = plan(2, ["edit"], [0, 0], p, q, draws=200_000)
    tree = next(x for x in found if x.strategy == "dars" and x.k == 1 and x.num_expansions == 2)
    assert tree.success == pytest.approx(1 - (1 - 3 / 8) * (1 - 1 / 2), abs=2e-3)
    again = next(x for x in found if x.strategy == "restart")
    second_moment = 5 * 6 / (8 * 9)  # of 1 - p under Beta(5, 3)
    assert again.success == pytest.approx(1 - second_moment, abs=2e-3)
    assert again.success < 1 - (1 - 3 / 8) ** 2  # two runs share the rate: less than at its mean


def test_restarts_win_where_alternatives_are_worse_and_little_is_shared():
    found = plan(60, STAGES, SHORT, rates(0.6, 0.6, 0.6, 1.0), rates(0.3, 0.3, 0.3, 1.0))
    assert found[0].strategy == "restart"


def test_trees_win_where_alternatives_are_better_and_the_prefix_is_long():
    found = plan(250, STAGES, LONG, rates(0.3, 0.3, 0.3, 1.0), rates(0.8, 0.8, 0.8, 1.0))
    assert found[0].strategy == "dars"
    assert found[0].success > 1.5 * next(x for x in found if x.strategy == "restart").success


def test_more_candidates_pay_only_where_the_critic_tells_them_apart():
    args = (300, STAGES, LONG, rates(0.3, 0.3, 0.3, 1.0), rates(0.3, 0.3, 0.3, 1.0))
    assert plan(*args)[0].k == 1
    assert plan(*args, critic=1.0)[0].k > 1


def test_no_plan_costs_more_than_the_budget_and_the_better_come_first():
    for budget, unit in product((30, 70, 200), ("calls", "steps")):
        found = plan(budget, STAGES, (3, 0, 1, 6, 0), rates(0.5, 0.5, 0.5, 1), rates(0.6, 0.6, 0.6, 1), unit=unit)
        assert all(x.cost <= budget and x.runs >= 1 for x in found)
        assert [x.success for x in found] == sorted((x.success for x in found), reverse=True)
        assert len({(x.strategy, tuple(x.limits), x.num_expansions, x.k) for x in found}) == len(found)
    paper = next(x for x in plan(200, STAGES, (3, 0, 1, 6, 0), rates(0.5, 0.5, 0.5, 1), rates(0.5, 0.5, 0.5, 1))
                 if len(x.limits) == 4 and (x.num_expansions, x.k) == (2, 3))  # fmt: skip
    assert paper.cost == 67 - 11 + 11 * 4  # eleven alternatives of four calls each


def test_dollars_are_those_of_the_tokens_of_every_call():
    row = read_rows()["claude-sonnet-5-5"]
    prices = Prices(row, prefix=5000, step=1000, output=200, feedback=3000)
    first, again = costs("usd", 3, prices)
    read = 5000 + 7 * 1000
    assert first(7) == pytest.approx((2 * (0.1 * read + 1.25 * 1000) + 10 * 200) / 1e6)
    three = 3 * (2 * 0.1 * read + 10 * 200) + 2 * (1.25 + 0.2) * 3000
    assert again(7) == pytest.approx((three + 2 * (3000 + 600) + 10 * 200) / 1e6)
    found = plan(0.5, STAGES, SHORT, rates(0.5, 0.5, 0.5, 1), rates(0.5, 0.5, 0.5, 1), unit="usd", prices=prices)
    linear = next(x for x in found if x.strategy == "linear")
    assert linear.cost == pytest.approx(sum(first(depth) for depth in range(7)))


def test_settings_of_every_plan_make_a_configuration():
    for found in plan(200, STAGES, SHORT, rates(0.5, 0.5, 0.5, 1), rates(0.6, 0.6, 0.6, 1)):
        config = DarsConfig.model_validate(found.settings())
        assert config.strategy == found.strategy
        if found.strategy == "dars":
            assert config.policy.build().limits == found.limits


def test_wrong_arguments_are_named():
    good = rates(0.5, 0.5, 0.5, 0.5)
    for call, error in (
        (lambda: plan(5, STAGES, SHORT, good, good), TaskError),
        (lambda: plan(99, STAGES, SHORT, {"edit": 0.5}, good), ValueError),
        (lambda: plan(99, STAGES, SHORT, good, {**good, "edit": 1.5}), ValueError),
        (lambda: plan(99, STAGES, SHORT[:3], good, good), ValueError),
        (lambda: plan(99, STAGES, SHORT, good, good, unit="usd"), TaskError),
        (lambda: plan(99, STAGES, SHORT, good, good, unit="euros"), ValueError),
        (lambda: estimate([]), TaskError),
        (lambda: estimate([(simulate_skeleton("es", PAPER).tree, [1])]), TaskError),
    ):
        with pytest.raises(error, match=r"does not pay|no rate|has to lie|gaps|prices|euros|no labelled|not leaves"):
            call()


# --- rates from trees -------------------------------------------------------------------------------------------------


def test_counts_of_a_single_decision_are_those_of_its_leaves():
    """Nothing above or below can hide it: one first choice of three is good, one alternative after each."""
    tree = simulate_skeleton("oo(s|s)", ExpansionPolicy({"submit": 1}, {}, 2)).tree
    first, other = sorted(leaf.id for leaf in tree.leaves())
    for rounds in (0, 100):
        found = estimate([(tree, [first]), (tree, [other]), (tree, [])], rounds)
        assert (found.stages, found.gaps) == (("submit",), (2, 0))
        assert found.p["submit"] == pytest.approx(Beta(2, 3), abs=1e-4)
        assert found.q_bad["submit"] == pytest.approx(Beta(2, 2), abs=1e-4)
        assert found.q_good["submit"] == pytest.approx(Beta(1, 2), abs=1e-4)


def test_rates_behind_flipped_trees_are_found():
    """Posterior means of many searches are near the truth; plain counts are not, and too low as is said."""
    rng = np.random.default_rng(1)
    p, bad, good = rates(1, 1, 0.4, 0.7), rates(1, 1, 0.6, 0.3), rates(1, 1, 0.5, 0.7)
    trees = [labelled(rng, PAPER, p, bad, good, STAGES[2:]) for _ in range(1500)]
    found, counted = estimate(trees), estimate(trees, rounds=0)
    for kind in STAGES[2:]:
        assert found.p[kind].mean == pytest.approx(p[kind], abs=0.04)
        assert found.q_bad[kind].mean == pytest.approx(bad[kind], abs=0.08)
        assert found.q_good[kind].mean == pytest.approx(good[kind], abs=0.08)
    subtree = 0.4 * (0.7 + 0.3 * 0.3)  # the edit is good, and one of two submissions below it
    assert counted.p["edit"].mean == pytest.approx(subtree, abs=0.04)
    assert counted.p["submit"].mean < p["submit"] - 0.1
    assert found.stages == STAGES[2:]


def test_rates_of_long_paths_predict_how_often_searches_resolve():
    """With four stages some rates trade off against each other, but not what follows from them."""
    rng = np.random.default_rng(1)
    p, bad, good = rates(0.6, 0.5, 0.4, 0.8), rates(0.5, 0.7, 0.6, 0.3), rates(0.7, 0.6, 0.5, 0.7)
    trees = [labelled(rng, PAPER, p, bad, good) for _ in range(250)]
    found = estimate(trees)
    learnt, true = ([[r[k] for k in STAGES] for r in each] for each in (
        [{k: rate.mean for k, rate in r.items()} for r in (found.p, found.q_bad, found.q_good)], (p, bad, good)
    ))  # fmt: skip
    for kinds in (("edit",), STAGES):
        policy = ExpansionPolicy(dict.fromkeys(kinds, 1), PAPER.allowed_after)
        truth = theory.success_probability(STAGES, *true, policy=policy)
        assert theory.success_probability(STAGES, *learnt, policy=policy) == pytest.approx(truth, abs=0.07)


def test_expected_counts_are_those_of_all_explanations():
    """One round on one small tree against the enumeration of every assignment of good and bad."""
    from dars.plan import _Counts, _decisions, _expect  # the step that the rounds repeat

    tree = simulate_skeleton("(e(s|s)|e(s|s))", PAPER).tree
    prior = tuple({kind: Beta(a, b) for kind in KINDS} for a, b in ((2, 1), (1, 3), (3, 2)))
    nodes = list(tree.nodes.values())[1:]
    for resolved in ([], [leaf.id for leaf in tree.leaves()][:1], [leaf.id for leaf in tree.leaves()][1:3]):
        counts = _Counts()
        _expect(tree, frozenset(resolved), _decisions(tree), prior, counts)
        expected, total = {}, 0.0
        for outcome in product((True, False), repeat=len(nodes)):
            right = dict(zip((n.id for n in nodes), outcome, strict=True))
            alive, weight, cases = {0: True}, 1.0, []
            for node in nodes:
                first = tree.nodes[node.parent].children[0]
                which = 0 if node.child_index == 0 else 2 if right[first] else 1
                chance = prior[which][tree.nodes[first].kind].mean
                weight *= chance if right[node.id] else 1 - chance
                alive[node.id] = alive[node.parent] and right[node.id]
                if alive[node.parent]:
                    cases.append((which, tree.nodes[first].kind, right[node.id]))
            if {leaf.id for leaf in tree.leaves() if alive[leaf.id]} != set(resolved):
                continue
            total += weight
            for case in cases:
                expected[case] = expected.get(case, 0.0) + weight
        for which, one in enumerate(counts.posteriors()):
            for kind in ("edit", "submit"):
                assert one[kind].good - 1 == pytest.approx(expected.get((which, kind, True), 0) / total, abs=1e-4)
                assert one[kind].bad - 1 == pytest.approx(expected.get((which, kind, False), 0) / total, abs=1e-4)


def test_runs_of_restarts_are_first_choices_not_alternatives():
    tree = Tree()
    for start in range(3):
        tree.add(Node(2 * start + 1, parent=0, child_index=start, kind="edit", depth=1))
        tree.add(Node(2 * start + 2, parent=2 * start + 1, kind="submit", depth=2, exit="submit"))
    found = estimate([(tree, [2])], rounds=0)
    assert found.p["edit"] == Beta(2, 3)
    assert found.q_bad["edit"] == found.q_good["edit"] == Beta(1, 1)


def test_usual_path_is_the_commonest_with_its_median_gaps():
    texts = ["oceos", "oooceos", "oooooceooos", "es"]
    found = estimate([(simulate_skeleton(text, ExpansionPolicy({}, {}, 1)).tree, []) for text in texts])
    assert found.stages == ("create", "edit", "submit")
    assert found.gaps == (3, 0, 1, 0)


# --- while trees come in ----------------------------------------------------------------------------------------------


def test_worthwhile_are_kinds_that_gain_more_than_restarts_at_the_same_price():
    """Each kind by hand: restarts and trees of equal expected price, from the closed form."""
    p, q = rates(0.5, 0.9, 0.3, 0.95), rates(0.2, 0.9, 0.7, 0.05)
    known = Rates(STAGES, (9, 0, 1, 6, 0), p, q, q)
    found = worthwhile(STAGES, known, costs("calls", 1))
    alone = 0.5 * 0.9 * 0.3 * 0.95
    for i, kind in enumerate(STAGES):
        policy = ExpansionPolicy({kind: 1}, {}, 2)
        gain = theory.success_probability(STAGES, list(p.values()), list(q.values()), policy=policy) - alone
        calls = theory.step_count(STAGES, known.gaps, policy) - theory.step_count(
            STAGES, known.gaps, ExpansionPolicy({}, {})
        )
        assert calls == 20 - [9, 10, 12, 19][i]
        assert (kind in found) == (gain / calls > alone * (1 - alone) / 20)
    assert "edit" in found
    assert "submit" not in found


def test_online_plan_stops_a_kind_whose_alternatives_never_help():
    rng = np.random.default_rng(2)
    p = rates(0.5, 0.9, 0.4, 0.9)
    q = rates(0.6, 0.6, 0.7, 0.0)
    online = OnlinePlan(costs("calls", 1))
    assert online.policy() == PAPER
    for _ in range(40):
        policy = online.policy()
        online.add(*labelled(rng, policy, p, q, q))
    assert "edit" in online.kinds_worth_expanding()
    assert "submit" not in online.kinds_worth_expanding()
    assert set(online.policy().limits) == online.kinds_worth_expanding()
