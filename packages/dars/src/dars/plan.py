"""Where to spend a budget: which decisions to expand and how often, or whether to start again, as past trees suggest.

Rates of good decisions are Beta distributions, learnt from trees whose leaves are known to resolve their task or not;
plans are ranked by the closed form of :mod:`dars.theory`, averaged over these distributions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median_low
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from . import theory
from .errors import TaskError
from .models.registry import CACHE_READ, CACHE_WRITE_5M, Row
from .policy import KINDS, ExpansionPolicy
from .tree import Node, Tree

KEY_KINDS = tuple(kind for kind in KINDS if kind != "other")
UNITS = ("calls", "steps", "usd")
NUM_EXPANSIONS = (2, 3)
CANDIDATES = (1, 2, 3, 5)
DRAWS = 512
CONVERGED = 1e-5  # rates move less than this in a round
SLIP = 1e-6  # probability that a path of good decisions fails all the same: keeps every observation possible


class Beta(NamedTuple):
    """A distribution of a probability: ``good`` - 1 and ``bad`` - 1 cases seen, and a uniform prior."""

    good: float = 1.0
    bad: float = 1.0

    @property
    def mean(self) -> float:
        return self.good / (self.good + self.bad)

    def seen(self, good: float, bad: float) -> Beta:
        """After further cases; they may be fractions."""
        return Beta(self.good + good, self.bad + bad)


Rate = float | Beta


@dataclass(frozen=True)
class Rates:
    """What past trees say.

    Attributes
    ----------
    stages, gaps : the usual path, as :mod:`dars.theory` has it.
    p : kind -> rate at which the first choice is good.
    q_bad, q_good : kind -> rate at which an alternative is good, after a first choice that was bad or good.
    """

    stages: tuple[str, ...]
    gaps: tuple[int, ...]
    p: Mapping[str, Rate]
    q_bad: Mapping[str, Rate]
    q_good: Mapping[str, Rate]


Labelled = tuple[Tree, Collection[int]]  # and the ids of its leaves that resolve the task


def estimate(trees: Iterable[Labelled], rounds: int = 1000) -> Rates:
    """Rates of good decisions from trees of which it is known which leaves resolve.

    Decisions are the expanded ones and the first action of every kind on a path. Whether one was good is not seen, only
    whether some leaf below it resolves. Counting that (``rounds=0``) estimates the chance that the *subtree* resolves:
    it is right for the last decision of a path on which all others are good; elsewhere it is too low, as a good choice
    below or above a bad one counts as bad. The rounds that follow (expectation-maximisation under the model of
    :mod:`dars.theory`) count a decision only as far as everything above it was good, and as good with the probability
    that it was, given all leaves. What no leaf tells apart stays undetermined: linear runs determine the product of p
    alone. The Beta distributions take expected counts for observed ones and are therefore rather too narrow.

    Parameters
    ----------
    trees : (tree, ids of the leaves that resolve).
    rounds : at most; they end once no rate moves any more.

    Raises
    ------
    TaskError
        No tree; an id that is no leaf's.
    """
    known = [(tree, frozenset(resolved)) for tree, resolved in trees]
    if not known:
        raise TaskError("there is no labelled tree to learn rates from")
    for tree, resolved in known:
        wrong = resolved - {leaf.id for leaf in tree.leaves()}
        if wrong:
            raise TaskError(f"nodes {sorted(wrong)} are said to resolve, but they are not leaves of their tree")
    counts = _Counts()
    alike: dict[Any, list[Any]] = {}  # what two trees that say the same have in common -> how many, and one of them
    for tree, resolved in known:
        decisions = _decisions(tree)
        _count(tree, resolved, decisions, counts)
        said = tuple((n.id, n.parent, n.kind, n.child_index, n.history) for n in tree.nodes.values())
        alike.setdefault((said, resolved), [0, tree, resolved, decisions])[0] += 1
    for _ in range(rounds):
        rates, counts = counts.posteriors(), _Counts()
        for number, tree, resolved, decisions in alike.values():
            _expect(tree, resolved, decisions, rates, counts, number)
        if _distance(rates, counts.posteriors()) < CONVERGED:
            break
    stages, gaps = _usual_path([tree for tree, _ in known])
    return Rates(stages, gaps, *counts.posteriors())


# --- plans ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prices:
    """What a call reads and writes, for costs in US dollars; the defaults are tokens of a middling run.

    Attributes
    ----------
    row : of the model, from :func:`dars.models.read_rows`.
    prefix : tools, system and issue, cached.  step : of one action and its observation.
    output : of one answer.  feedback : of what is told about earlier attempts.
    """

    row: Row
    prefix: int = 6_000
    step: int = 1_200
    output: int = 250
    feedback: int = 8_000


class Costs(NamedTuple):
    """Depth of a node -> cost of its first action, and of another action drawn there (critic included)."""

    action: Callable[[int], float]
    alternative: Callable[[int], float]


def costs(unit: str, k: int = 3, prices: Prices | None = None) -> Costs:
    """Costs in a unit.

    Parameters
    ----------
    unit : "calls" (an alternative takes k, and one of the critic if k > 1), "steps" (executed actions), or "usd".
    k : candidates drawn for an alternative.
    prices : for "usd". Everything above a node is read from the cache; what is new is written to it.

    Raises
    ------
    ValueError
        Unknown unit, k < 1.
    TaskError
        "usd" without prices.
    """
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r} is not one of {', '.join(UNITS)}")
    if k < 1:
        raise ValueError(f"k is {k}; it has to be at least 1")
    if unit == "steps":
        return Costs(lambda depth: 1.0, lambda depth: 1.0)
    if unit == "calls":
        return Costs(lambda depth: 1.0, lambda depth: float(k + (k > 1)))
    if prices is None or prices.row.input is None or prices.row.output is None:
        raise TaskError("costs in usd need the prices of a model: name one that the registry has a price for")
    given, row_in, row_out = prices, prices.row.input / 1e6, prices.row.output / 1e6

    def above(depth: int) -> float:
        return row_in * CACHE_READ * (given.prefix + given.step * depth)

    def action(depth: int) -> float:
        return above(depth) + row_in * CACHE_WRITE_5M * given.step + row_out * given.output

    def alternative(depth: int) -> float:
        told = CACHE_WRITE_5M + CACHE_READ * (k - 1)  # the first candidate writes it, the others read it
        drawn = k * (above(depth) + row_out * given.output) + row_in * told * given.feedback
        judged = row_in * (given.feedback + k * given.output) + row_out * given.output
        return drawn + (judged if k > 1 else 0.0)

    return Costs(action, alternative)


@dataclass(frozen=True)
class Plan:
    """One way to spend a budget.

    Attributes
    ----------
    strategy : "dars", "restart" or "linear".
    limits, num_expansions, k : of the policy and the candidates; restarts and linear runs expand nothing.
    cost : of one tree, in the unit of the budget.
    runs : trees that the budget pays, in general not a whole number; 1 for linear.
    success : probability that any leaf of any of them resolves; a fraction of a tree counts as independent restarts do.
    """

    strategy: str
    limits: Mapping[str, int]
    num_expansions: int
    k: int
    cost: float
    runs: float
    success: float

    def settings(self) -> dict[str, Any]:
        """As a configuration has them; trees beyond the first are searches of their own, with other seeds."""
        if self.strategy != "dars":
            whole = {"restarts": max(1, int(self.runs))} if self.strategy == "restart" else {}
            return {"strategy": self.strategy, **whole}
        policy = {"limits": dict(self.limits), "num_expansions": self.num_expansions}
        return {"strategy": "dars", "policy": policy, "candidates": {"k": self.k}}


def plan(
    budget: float,
    stages: Sequence[str],
    gaps: Sequence[int],
    p: Mapping[str, Rate],
    q: Mapping[str, Rate],
    q_good: Mapping[str, Rate] | None = None,
    unit: str = "calls",
    prices: Prices | None = None,
    critic: float = 0.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Plan]:
    """Plans that the budget pays, the likeliest to resolve first, the cheaper tree first among equals.

    Candidates are all limits up to the number of stages of each kind, 2 and 3 children, and K of 1, 2, 3 and 5, with
    what may follow an alternative as in the paper; restarts; and one linear run. All but the last spend the budget
    whole, if need be by fractions of independent trees.

    Parameters
    ----------
    budget, unit, prices : see :func:`costs`.
    stages, gaps : the path that is expected, as in :mod:`dars.theory`.
    p, q, q_good : kind -> rate; q after a bad first choice, q_good (None: q) after a good one, both for a single
        candidate. A Beta is averaged over with ``draws`` samples, the same for all plans. It says how well a rate is
        known, or how much tasks differ in it; either way all runs of one task share it.
    critic : share of the way from a random choice among K candidates to a perfect one that the critic makes. With 0,
        which is all that past trees support unless they show otherwise, K = 1 is the best.

    Raises
    ------
    ValueError
        A kind without a rate; rates outside [0, 1]; see also :mod:`dars.theory`.
    TaskError
        The budget does not pay one linear run.
    """
    if not 0 <= critic <= 1:
        raise ValueError(f"critic is {critic!r}; it has to lie in [0, 1]")
    first, bad, good = _samples(stages, (p, q, q if q_good is None else q_good), draws, seed)
    single = _tree_costs(stages, gaps, costs(unit, 1, prices), None)
    if single > budget:
        raise TaskError(f"a budget of {budget:g} {unit} does not pay one run, which costs {single:g}")
    alone = math.prod(first)
    found = [
        Plan("linear", {}, 1, 1, single, 1.0, _mean(alone)),
        Plan("restart", {}, 1, 1, single, budget / single, _mean(1 - (1 - alone) ** (budget / single))),
    ]
    for limits, number, k in product(_limits(stages), NUM_EXPANSIONS, CANDIDATES):
        policy = _policy(limits, number)
        cost = _tree_costs(stages, gaps, costs(unit, k, prices), policy)
        if cost > budget:
            continue
        after_bad, after_good = ([q1 + critic * (1 - (1 - q1) ** k - q1) for q1 in rates] for rates in (bad, good))
        failed = 1 - theory.success_of(stages, first, after_bad, after_good, policy)
        runs = budget / cost
        found.append(Plan("dars", limits, number, k, cost, runs, _mean(1 - failed**runs)))
    return sorted(found, key=lambda plan: (-plan.success, plan.cost, plan.k))


# --- while trees come in ----------------------------------------------------------------------------------------------


def worthwhile(
    kinds: Iterable[str], rates: Rates, costs: Costs, num_expansions: int = 2, draws: int = DRAWS, seed: int = 0
) -> frozenset[str]:
    """Kinds of which expanding gains more per unit of cost than starting again.

    The gain of a kind is what expanding it alone, once on a path, adds to the success of one linear run, per added
    cost; that of starting again is what a second linear run adds, per its cost. Both are averaged over the rates.
    """
    stages, gaps = rates.stages, rates.gaps
    first, bad, good = _samples(stages, (rates.p, rates.q_bad, rates.q_good), draws, seed)
    single = _tree_costs(stages, gaps, costs, None)
    alone = math.prod(first)
    again = _mean(alone * (1 - alone)) / single
    worth = set()
    for kind in set(kinds) & set(stages):
        policy = _policy({kind: 1}, num_expansions)
        gain = _mean(theory.success_of(stages, first, bad, good, policy) - alone)
        if gain > again * (_tree_costs(stages, gaps, costs, policy) - single):
            worth.add(kind)
    return frozenset(worth)


@dataclass
class OnlinePlan:
    """Rates that are learnt between the tasks of a batch, and what is still worth expanding.

    Nothing of the engine changes: give each task ``policy()`` and hand its tree to ``add`` once its leaves are judged.
    A kind that is no longer expanded is not measured any more, either; kinds not yet seen have a uniform rate.

    Attributes
    ----------
    costs : see :func:`costs`.
    base : the policy of which limits are dropped; its number of children is kept.
    trees : seen so far.
    """

    costs: Costs
    base: ExpansionPolicy = field(default_factory=ExpansionPolicy.paper)
    trees: list[Labelled] = field(default_factory=list)

    def add(self, tree: Tree, resolved: Collection[int]) -> Self:
        """Learn from a tree and the ids of its leaves that resolve."""
        self.trees.append((tree, resolved))
        return self

    def kinds_worth_expanding(self) -> frozenset[str]:
        """Those of the base policy; all of them before the first tree."""
        kinds = frozenset(kind for kind, limit in self.base.limits.items() if limit)
        if not self.trees:
            return kinds
        rates = estimate(self.trees)
        unseen = kinds - set(rates.stages)
        return unseen | worthwhile(kinds, rates, self.costs, self.base.num_expansions)

    def policy(self) -> ExpansionPolicy:
        """The base policy without the limits of kinds that are not worth it."""
        worth = self.kinds_worth_expanding()
        limits = {kind: limit for kind, limit in self.base.limits.items() if kind in worth}
        return ExpansionPolicy(limits, self.base.allowed_after, self.base.num_expansions)


# --- parts of plans ---------------------------------------------------------------------------------------------------


def _policy(limits: Mapping[str, int], number: int) -> ExpansionPolicy:
    return ExpansionPolicy(limits, ExpansionPolicy.paper().allowed_after, number)


def _limits(stages: Sequence[str]) -> list[dict[str, int]]:
    """Every limit from 0 to the number of stages of a kind; more would change nothing."""
    counts = Counter(stages)
    every = product(*(range(count + 1) for count in counts.values()))
    return [{k: n for k, n in zip(counts, limits, strict=True) if n} for limits in every if any(limits)]


def _tree_costs(stages: Sequence[str], gaps: Sequence[int], costs: Costs, policy: ExpansionPolicy | None) -> float:
    """Of one tree; of a linear run without a policy."""
    return theory.tree_cost(stages, gaps, *costs, policy or _policy({}, 1))


def _samples(
    stages: Sequence[str], rates: Sequence[Mapping[str, Rate]], draws: int, seed: int
) -> list[list[NDArray[np.float64]]]:
    """For each mapping and each stage (draws,) rates; stages of one kind share theirs."""
    rng = np.random.default_rng(seed)
    out = []
    for mapping in rates:
        drawn: dict[str, NDArray[np.float64]] = {}
        for kind in dict.fromkeys(stages):
            if kind not in mapping:
                raise ValueError(f"there is no rate for {kind!r}; there are those of {', '.join(mapping) or 'nothing'}")
            rate = mapping[kind]
            if not isinstance(rate, Beta) and not 0 <= rate <= 1:
                raise ValueError(f"the rate of {kind} is {rate!r}; it has to lie in [0, 1] or be a Beta")
            drawn[kind] = rng.beta(*rate, draws) if isinstance(rate, Beta) else np.full(1, float(rate))
        out.append([drawn[kind] for kind in stages])
    return out


def _mean(values: Any) -> float:
    return float(np.mean(values))


# --- decisions of a tree ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decision:
    kind: str
    alternatives: tuple[int, ...] = ()


def _decisions(tree: Tree) -> dict[int, _Decision]:
    """Id of the node that a first choice made -> the decision; expanded ones and the first of their kind on a path."""
    found: dict[int, _Decision] = {}
    above: dict[int, frozenset[str]] = {0: frozenset()}  # kinds on the path to a node
    for node in tree.nodes.values():
        children = tree.children(node.id)
        others = tuple(child.id for child in children if _replaces(child, node))
        for child in children:
            new = child.kind in KEY_KINDS and child.kind not in above[node.id]
            if child.id not in others and (new or (others and child.child_index == 0)):
                found[child.id] = _Decision(child.kind, others if child.child_index == 0 else ())
            above[child.id] = above[node.id] | {child.kind}
            if child.id in others:  # whatever it is, it stands for the action that it replaces
                above[child.id] |= {children[0].kind}
    return found


def _replaces(child: Node, parent: Node) -> bool:
    """Whether a child is an alternative; the runs of restarts are children of the root too, but none of these."""
    return child.child_index > 0 and len(child.history) > len(parent.history)


Posteriors = tuple[dict[str, Beta], dict[str, Beta], dict[str, Beta]]


class _Counts:
    """Good and bad cases by kind, of first choices and of alternatives after a bad and a good one."""

    def __init__(self) -> None:
        self.p, self.q_bad, self.q_good = ({kind: Beta() for kind in KINDS} for _ in range(3))  # any may be expanded

    @staticmethod
    def add(rates: dict[str, Beta], kind: str, good: float, bad: float) -> None:
        rates[kind] = rates[kind].seen(good, bad)

    def posteriors(self) -> Posteriors:
        return self.p, self.q_bad, self.q_good


def _distance(before: Posteriors, after: Posteriors) -> float:
    return max(abs(a[k].mean - b[k].mean) for a, b in zip(before, after, strict=True) for k in KINDS)


def _count(tree: Tree, resolved: frozenset[int], decisions: Mapping[int, _Decision], counts: _Counts) -> None:
    """A choice is good iff some leaf below it resolves."""
    works = {node.id for leaf in resolved for node in tree.path(leaf)}
    for first, decision in decisions.items():
        good = first in works
        counts.add(counts.p, decision.kind, good, not good)
        for other in decision.alternatives:
            rates = counts.q_good if good else counts.q_bad
            counts.add(rates, decision.kind, other in works, other not in works)


def _expect(
    tree: Tree,
    resolved: frozenset[int],
    decisions: Mapping[int, _Decision],
    rates: Posteriors,
    counts: _Counts,
    number: int = 1,
) -> None:
    """Expected counts of ``number`` such trees: likelihoods go up, probabilities that a path is good come down."""
    works = {node.id for leaf in resolved for node in tree.path(leaf)}
    alive: dict[int, float] = {}  # likelihood of the leaves below a node if all up to it was good
    dead = {i: float(i not in works) for i in tree.nodes}  # and if it was not
    p, q_bad, q_good = ({kind: rate.mean for kind, rate in one.items()} for one in rates)

    def other_good(decision: _Decision, other: int, q: Mapping[str, float]) -> tuple[float, float]:
        """Joint likelihoods of an alternative being good, and bad."""
        return q[decision.kind] * alive[other], (1 - q[decision.kind]) * dead[other]

    def sides(first: int, decision: _Decision) -> tuple[float, float]:
        """Joint likelihoods of the first choice being good, and bad."""
        good, bad = p[decision.kind] * alive[first], (1 - p[decision.kind]) * dead[first]
        for other in decision.alternatives:
            good *= sum(other_good(decision, other, q_good))
            bad *= sum(other_good(decision, other, q_bad))
        return good, bad

    for node in reversed(list(tree.nodes.values())):  # children have larger ids
        lines = [child for child in tree.children(node.id) if not _replaces(child, node)]
        alive[node.id] = math.prod(
            sum(sides(child.id, decisions[child.id])) if child.id in decisions else alive[child.id] for child in lines
        )
        if not node.children:
            alive[node.id] = 1 - SLIP if node.id in resolved else SLIP

    reached = {0: float(number)}  # in how many of them all up to a node was good
    for node in tree.nodes.values():
        here = reached[node.id]
        for child in tree.children(node.id):
            reached.setdefault(child.id, here)
            if child.id not in decisions:
                continue
            decision = decisions[child.id]
            good, bad = sides(child.id, decision)
            share = good / (good + bad)
            counts.add(counts.p, decision.kind, here * share, here * (1 - share))
            reached[child.id] = here * share
            for other in decision.alternatives:
                reached[other] = 0.0
                for q, into, weight in ((q_good, counts.q_good, share), (q_bad, counts.q_bad, 1 - share)):
                    yes, no = other_good(decision, other, q)
                    after = yes / (yes + no) if weight else 0.0
                    counts.add(into, decision.kind, here * weight * after, here * weight * (1 - after))
                    reached[other] += here * weight * after


def _usual_path(trees: Sequence[Tree]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The commonest stages on the first lines of trees, and the median gaps of the trees that have them."""
    found: dict[tuple[str, ...], list[list[int]]] = {}
    for tree in trees:
        decisions = _decisions(tree)
        stages, gaps = [], [0]
        for node in list(tree.first_line(0))[1:]:
            if node.id in decisions:
                stages.append(node.kind)
                gaps.append(0)
            else:
                gaps[-1] += 1
        found.setdefault(tuple(stages), []).append(gaps)
    usual = max(found, key=lambda stages: (len(found[stages]), len(stages)))
    return usual, tuple(median_low(column) for column in zip(*found[usual], strict=True))
