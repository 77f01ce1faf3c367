"""E1: the rule of traversal on released data, and the closed forms against the engine and flipped coins.

The maps of where trees beat restarts at equal calls are drawn from the closed forms, losses included.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import theory
from ..plan import costs
from ..policy import ExpansionPolicy
from ..search import simulate_skeleton
from ..tree import Tree
from .plots import draw_break_even
from .profiles import Profile
from .report import DERIVED, RELEASED, Artifact, Claim, Experiment, Metric, binomial_interval
from .skeletons import (
    GAPS,
    RELEASED_BRANCHES,
    RELEASED_LEAVES,
    RELEASED_PRUNINGS,
    RELEASED_REPLAY,
    RELEASED_STEPS,
    RELEASED_SUBMITTED,
    STAGES,
    random_policy,
    random_skeleton,
    staged,
)
from .skeletons import RELEASED as TREE

ALL = ExpansionPolicy.paper()
LONG_GAPS = (40, 0, 1, 6, 0)
K = 3
P = np.arange(1, 10) / 10
DEEP = 10_000  # no path is cut


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """All claims of the rule and the theory."""
    experiment = Experiment()
    _released(experiment)
    _identities(experiment, rng, profile.random_trees)
    _success(experiment, rng, profile.flips)
    _break_even(experiment, profile.map_points, out)
    return experiment


# --- released data ----------------------------------------------------------------------------------------------------


def _released(experiment: Experiment) -> None:
    trace = simulate_skeleton(TREE, ALL)
    submitted = sum(node.exit == "submit" for node in trace.tree.leaves())
    found = [trace.n_steps, trace.n_leaves, submitted, trace.replay_steps, *trace.branches]
    known = [RELEASED_STEPS, RELEASED_LEAVES, RELEASED_SUBMITTED, RELEASED_REPLAY, *RELEASED_BRANCHES]
    wrong = sum(a != b for a, b in zip(found, known, strict=False)) + abs(len(found) - len(known))
    whole, pruned, published = trace.tree, 0, 0
    for size in range(len(STAGES) + 1):
        for kinds in combinations(STAGES, size):
            limits = dict.fromkeys(kinds, 1)
            searched = simulate_skeleton(TREE, ExpansionPolicy(limits, ALL.allowed_after))
            pruned += whole.prune(limits).skeleton() == searched.tree.skeleton()
            published += RELEASED_PRUNINGS.get(kinds) == (searched.n_steps, searched.n_leaves)
    steps_per_leaf, restarts = trace.n_steps / trace.n_leaves, sum(trace.leaf_depths) / trace.n_leaves
    experiment.claims += [
        Claim(
            id="released-tree", measured=wrong, op="==", value=0, n=len(known), source=RELEASED,
            statement="Driven along a released tree, the engine takes the same steps and opens the same expansions.",
            paper="116 steps, 13 leaves, 12 submitted, 12 expansions in order", unit="differences",
        ),
        Claim(
            id="released-prunings", measured=published, op="==", value=len(RELEASED_PRUNINGS),
            n=len(RELEASED_PRUNINGS), source=RELEASED, paper="(steps, leaves) of the trees with fewer limits",
            statement="With limits on some kinds only, it visits as many steps and leaves as the released trees have.",
        ),
        Claim(
            id="sixteen-prunings", measured=pruned, op="==", value=16, n=16, source=DERIVED,
            statement="For all 16 sets of kinds, cutting the tree afterwards gives what searching with them gives.",
        ),
        Claim(
            id="replay-identity-released", measured=trace.n_steps + trace.replay_steps, op="==",
            value=sum(trace.leaf_depths), n=trace.n_leaves, source=DERIVED, paper="116 + 110 = 226",
            statement="Steps and the steps that a replay would repeat are together the depths of all leaves.",
            unit="steps",
        ),
        Claim(
            id="steps-per-leaf", measured=steps_per_leaf / restarts, op="<=", value=0.7, n=trace.n_leaves,
            statement="A candidate costs at most 0.7 of the steps that it costs by restarts (the released tree).",
            paper="qualitative: cheaper than restarts", source="arXiv:2503.14269; threshold set by this package",
            note=f"{steps_per_leaf:.1f} steps a leaf against {restarts:.1f}; steps only, see the claims on equal calls",
        ),
    ]  # fmt: skip


# --- counts -----------------------------------------------------------------------------------------------------------


def _identities(experiment: Experiment, rng: np.random.Generator, trees: int) -> None:
    broken, steps = 0, 0
    for _ in range(trees):
        policy = random_policy(rng)
        trace = simulate_skeleton(random_skeleton(rng, policy), policy)
        broken += trace.n_steps + trace.replay_steps != sum(trace.leaf_depths) or trace.missing > 0
        steps += trace.n_steps
    wrong = 0
    for _ in range(trees):
        policy, stages, gaps = _random_path(rng)
        trace = simulate_skeleton(staged(stages, gaps, policy), policy, max_depth=DEEP)
        found = (trace.n_leaves, trace.n_steps, trace.replay_steps)
        wrong += found != (
            theory.leaf_count(stages, policy), theory.step_count(stages, gaps, policy),
            theory.replay_count(stages, gaps, policy),
        )  # fmt: skip
    experiment.claims += [
        Claim(
            id="replay-identity-random", measured=broken, op="==", value=0, n=trees, source=DERIVED,
            statement="The same identity holds on random trees under random policies.", unit="trees that break it",
            note=f"{steps / trees:.0f} steps a tree on average",
        ),
        Claim(
            id="theory-counts", measured=wrong, op="==", value=0, n=trees, source=DERIVED,
            statement="Leaves, steps and replayed steps in closed form are those of the engine, on random paths and "
            "policies.",
            unit="paths that differ",
        ),
    ]  # fmt: skip


def _random_path(rng: np.random.Generator) -> tuple[ExpansionPolicy, list[str], list[int]]:
    stages = [str(kind) for kind in rng.choice(STAGES[:3], size=int(rng.integers(1, 5)))] + ["submit"]
    gaps = [int(gap) for gap in rng.integers(0, 4, size=len(stages))] + [0]
    return random_policy(rng, most=2 if len(stages) < 4 else 1), stages, gaps


# --- success ----------------------------------------------------------------------------------------------------------

Rates = Sequence[float]


def flip(tree: Tree, p: Rates, bad: Rates, good: Rates, flips: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(flips,) whether any leaf resolves, if every node's action is good by chance; no gaps: depth d is stage d - 1."""
    alive = {0: np.ones(flips, dtype=bool)}
    right: dict[int, NDArray[np.bool_]] = {}
    for node in list(tree.nodes.values())[1:]:
        stage, parent = node.depth - 1, node.parent or 0
        first = tree.nodes[parent].children[0]
        chance = p[stage] if node.id == first else np.where(right[first], good[stage], bad[stage])
        right[node.id] = rng.random(flips) < chance
        alive[node.id] = alive[parent] & right[node.id]
    return np.any([alive[leaf.id] for leaf in tree.leaves()], axis=0)


def _success(experiment: Experiment, rng: np.random.Generator, flips: int) -> None:
    three = ExpansionPolicy(ALL.limits, ALL.allowed_after, 3)
    twice = ExpansionPolicy({"edit": 2, "submit": 1}, {"edit": ["edit", "submit"]}, 2)
    half, better = [0.5, 0.5, 0.5, 1.0], [0.8, 0.8, 0.8, 1.0]
    mixed, worse = [0.3, 0.7, 0.4, 0.9], [0.2, 0.5, 0.6, 0.5]
    cases = [
        (STAGES, ALL, half, half, half),
        (STAGES, ALL, [0.6, 0.6, 0.6, 1.0], better, better),
        (STAGES, ALL, mixed, worse, better),
        (STAGES, three, mixed, worse, better),
        (("edit", "append", "edit", "submit"), twice, mixed, better, worse),
    ]
    outside, furthest = 0, 0.0
    for stages, policy, p, bad, good in cases:
        tree = simulate_skeleton(staged(stages, [0] * (len(stages) + 1), policy), policy).tree
        hits = int(flip(tree, p, bad, good, flips, rng).sum())
        exact = theory.success_probability(stages, p, bad, good, policy)
        low, high = binomial_interval(hits, flips, level=0.999)
        outside += not low <= exact <= high
        furthest = max(furthest, abs(hits / flips - exact))
    experiment.claims.append(
        Claim(
            id="theory-success",
            measured=outside,
            op="==",
            value=0,
            n=flips,
            source=DERIVED,
            statement="The success probability in closed form lies in the 99.9 % interval of flipped searches.",
            unit="cases outside",
            note=f"{len(cases)} cases, {flips} searches each; furthest {furthest:.4f}",
        )
    )  # fmt: skip


# --- trees against restarts at equal calls ----------------------------------------------------------------------------


def advantage(p: NDArray[np.float64], q: NDArray[np.float64], gaps: Sequence[int]) -> NDArray[np.float64]:
    """Success of the paper's tree less that of restarts of the same number of calls; p, q of all but the submission."""
    price = costs("calls", K)
    linear = ExpansionPolicy({}, {}, 1)
    runs = theory.tree_cost(STAGES, gaps, *price) / theory.tree_cost(STAGES, gaps, *price, linear)
    one = np.ones_like(p * q)
    tree = theory.success_of(STAGES, [p * one] * 3 + [one], [q * one] * 3 + [one], [q * one] * 3 + [one], ALL)
    return np.asarray(tree - (1 - (1 - (p * one) ** 3) ** runs))


def _break_even(experiment: Experiment, points: int, out: Path) -> None:
    same, same_long = advantage(P, P, GAPS), advantage(P, P, LONG_GAPS)
    best_hard, best_easy = (float(advantage(np.array(p), np.array(1.0), GAPS)) for p in (0.3, 0.9))
    setting = f"paper's policy, K = {K}, gaps {', '.join(map(str, GAPS))}"
    experiment.claims += [
        Claim(
            id="equal-calls-same-odds", measured=float(same.max()), op="<", value=0, n=len(P), source=DERIVED,
            statement="At equal calls DARS loses to restarts when alternatives are as good as first tries and the "
            "prefix is short.",
            note=f"largest difference over p = 0.1…0.9; {setting}",
        ),
        Claim(
            id="equal-calls-long-prefix", measured=float(same_long.min()), op=">", value=0, n=len(P), source=DERIVED,
            statement="At equal calls and with alternatives as good as first tries, it wins when the shared prefix is "
            "long.",
            note=f"smallest difference over p = 0.1…0.9; {LONG_GAPS[0]} actions before the first key decision",
        ),
        Claim(
            id="equal-calls-hard", measured=best_hard, op=">", value=0, n=1, source=DERIVED,
            statement="At equal calls it wins on hard tasks (p = 0.3) if feedback makes alternatives good.",
            note=f"q = 1; {setting}",
        ),
        Claim(
            id="equal-calls-easy", measured=best_easy, op="<", value=0, n=1, source=DERIVED,
            statement="At equal calls it loses on easy tasks (p = 0.9), however good the alternatives.",
            note=f"q = 1; {setting}",
        ),
    ]  # fmt: skip
    for p in (0.2, 0.3, 0.5):
        even = theory.break_even_q(STAGES, GAPS, [p, p, p, 1.0], K)
        if even is not None:
            experiment.metrics.append(Metric(f"break-even q at p = {p}, equal calls", even, "", "lower"))
    grid = np.linspace(0.02, 0.98, points)
    maps = {f"prefix of {gaps[0]} actions": advantage(grid[None, :], grid[:, None], gaps) for gaps in (GAPS, LONG_GAPS)}
    if draw_break_even(grid, maps, out / "break_even.png"):
        experiment.artifacts.append(Artifact("break_even.png", "Where trees beat restarts at equal calls"))
