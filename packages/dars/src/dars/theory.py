"""Closed forms of the search: how many leaves, steps and replayed steps, and how likely a task is resolved.

A run goes through *stages*, the kinds of its key decisions in order, with gaps of other actions around them. State of
the recursion: the stage i, the expansions R left of every kind, and the history h of replaced kinds; E says whether
stage i is expanded in that state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .policy import ExpansionPolicy

State = tuple[tuple[tuple[str, int], ...], tuple[str, ...]]
T = TypeVar("T")


def leaf_count(stages: Sequence[str], policy: ExpansionPolicy | None = None) -> int:
    """Leaves of the tree.

    Examples
    --------
    >>> leaf_count(["create", "append", "edit", "submit"])
    12
    """
    N = _policy(policy).num_expansions

    def combine(i: int, first: int, alternative: int | None) -> int:
        return first + (0 if alternative is None else (N - 1) * alternative)

    return _fold(stages, policy, 1, combine)


def step_count(stages: Sequence[str], gaps: Sequence[int], policy: ExpansionPolicy | None = None) -> int:
    """Executed actions of the whole tree.

    Parameters
    ----------
    gaps : other actions before each stage and after the last, one more than stages.

    Examples
    --------
    >>> step_count(["create", "append", "edit", "submit"], [3, 0, 1, 6, 0])
    67
    """
    _check(stages, gaps=gaps)
    N = _policy(policy).num_expansions

    def combine(i: int, first: int, alternative: int | None) -> int:
        return gaps[i] + 1 + first + (0 if alternative is None else (N - 1) * (1 + alternative))

    return _fold(stages, policy, gaps[-1], combine)


def replay_count(stages: Sequence[str], gaps: Sequence[int], policy: ExpansionPolicy | None = None) -> int:
    """Actions that are executed again if a state is restored by replaying the path that led to it."""
    _check(stages, gaps=gaps)
    N = _policy(policy).num_expansions
    depth = [i + sum(gaps[: i + 1]) for i in range(len(stages))]

    def combine(i: int, first: int, alternative: int | None) -> int:
        return first + (0 if alternative is None else (N - 1) * (depth[i] + alternative))

    return _fold(stages, policy, 0, combine)


def success_probability(
    stages: Sequence[str],
    p: Sequence[float],
    q_bad: Sequence[float],
    q_good: Sequence[float] | None = None,
    policy: ExpansionPolicy | None = None,
) -> float:
    """Probability that any leaf resolves the task; a leaf does iff all its decisions are good, independently.

    Parameters
    ----------
    p : probability that the first choice at each stage is good.
    q_bad, q_good : that an alternative is good, given that the first choice was bad or good; q_good None: as q_bad.

    Examples
    --------
    >>> round(success_probability(["create", "append", "edit", "submit"], [.5, .5, .5, 1], [.5, .5, .5, 1]), 6)
    0.460693
    """
    q_good = q_bad if q_good is None else q_good
    _check(stages, p=p, q_bad=q_bad, q_good=q_good)
    return float(success_of(stages, p, q_bad, q_good, policy))


def success_of(
    stages: Sequence[str], p: Sequence[Any], q_bad: Sequence[Any], q_good: Sequence[Any], policy: ExpansionPolicy | None
) -> Any:
    """:func:`success_probability` of numbers, or of arrays of one shape at once; they are not checked."""
    N = _policy(policy).num_expansions

    def combine(i: int, first: Any, alternative: Any) -> Any:
        if alternative is None:
            return p[i] * first
        after_good = 1 - (1 - first) * (1 - q_good[i] * alternative) ** (N - 1)
        after_bad = 1 - (1 - q_bad[i] * alternative) ** (N - 1)
        return p[i] * after_good + (1 - p[i]) * after_bad

    return _fold(stages, policy, 1.0, combine)


def tree_cost(
    stages: Sequence[str],
    gaps: Sequence[int],
    action: Callable[[int], float],
    alternative: Callable[[int], float],
    policy: ExpansionPolicy | None = None,
) -> float:
    """Cost of the whole tree, in whatever unit its two prices have.

    Parameters
    ----------
    action, alternative : depth of a node -> cost of its first action, and of another one drawn there.

    Examples
    --------
    >>> tree_cost(["edit"], [2, 1], lambda depth: 1, lambda depth: 4)  # ooeo, then 4 calls for another edit, and o
    9.0
    """
    _check(stages, gaps=gaps)
    N = _policy(policy).num_expansions
    ends = [i + sum(gaps[: i + 1]) for i in range(len(stages))]  # depth of the node at which stage i is decided

    def combine(i: int, first: float, other: float | None) -> float:
        before = sum(action(ends[i] - back) for back in range(1, gaps[i] + 1))
        more = 0.0 if other is None else (N - 1) * (alternative(ends[i]) + other)
        return before + action(ends[i]) + first + more

    last = ends[-1] + 1 if ends else 0
    return _fold(stages, policy, float(sum(action(last + k) for k in range(gaps[-1]))), combine)


def restart_success(pi: float, k: float) -> float:
    """Probability that any of k independent runs resolves a task that one resolves with probability ``pi``.

    k may be fractional, for comparison at an equal budget.
    """
    if not 0 <= pi <= 1:
        raise ValueError(f"pi is {pi!r}; it has to lie in [0, 1]")
    if k < 0:
        raise ValueError(f"k is {k!r}; it has to be at least 0")
    return float(1 - (1 - pi) ** k)


def break_even_q(
    stages: Sequence[str],
    gaps: Sequence[int],
    p: Sequence[float],
    k_samples: int = 3,
    policy: ExpansionPolicy | None = None,
    unit: str = "calls",
) -> float | None:
    """Smallest q of the alternatives at which the tree resolves as often as restarts of the same cost.

    Alternatives are good with probability q at every stage that can be expanded, but never less than p of stages with
    p = 1 (nothing is to be gained there), whatever the first choice was.

    Parameters
    ----------
    k_samples : K, candidates drawn for an alternative; with the critic it costs K + 1 calls.
    unit : "steps" (executed actions), "calls" (model responses), or "tokens" (input re-read by every call, in units of
        one step's text, the shared prefix counted once where it is cached at a tenth).

    Returns
    -------
    q in [0, 1], or None if even q = 1 does not suffice.

    Raises
    ------
    ValueError
        Lengths that do not fit, an unknown unit.
    """
    _check(stages, gaps=gaps, p=p)
    if unit not in ("calls", "steps", "tokens"):
        raise ValueError(f"unit {unit!r} is not calls, steps or tokens")
    pi = 1.0
    for value in p:
        pi *= value
    runs = _tree_cost(stages, gaps, k_samples, policy, unit) / _run_cost(sum(gaps) + len(stages), unit)
    goal = restart_success(pi, runs)

    def reached(q: float) -> float:
        alternatives = [max(q, 1.0) if value == 1 else q for value in p]
        return success_probability(stages, p, alternatives, policy=policy) - goal

    if reached(1.0) < 0:
        return None
    if reached(0.0) >= 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):  # reached() grows with q
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= 0 else (middle, high)
    return high


CACHED = 0.1  # price of a cached token, in units of a fresh one


def _run_cost(length: int, unit: str) -> float:
    """Cost of one run of ``length`` actions from the root."""
    if unit != "tokens":
        return float(length)
    return sum(1 + CACHED * depth for depth in range(length))


def _tree_cost(
    stages: Sequence[str], gaps: Sequence[int], k_samples: int, policy: ExpansionPolicy | None, unit: str
) -> float:
    if unit == "steps":
        return float(step_count(stages, gaps, policy))
    calls = k_samples + (1 if k_samples > 1 else 0)

    def read(depth: int) -> float:
        return 1.0 if unit == "calls" else 1 + CACHED * depth

    return tree_cost(stages, gaps, read, lambda depth: calls * read(depth), policy)


# --- the recursion ------------------------------------------------------------------------------------------------


def _fold(
    stages: Sequence[str], policy: ExpansionPolicy | None, leaf: T, combine: Callable[[int, T, T | None], T]
) -> T:
    """combine(i, value of the first choice, value below an alternative or None), from the last stage to the first."""
    chosen = _policy(policy)
    known: dict[tuple[int, State], T] = {}

    def value(i: int, state: State) -> T:
        if i == len(stages):
            return leaf
        if (i, state) not in known:
            remaining, history = dict(state[0]), state[1]
            kind = stages[i]
            if chosen.should_expand(kind, history, remaining):
                fewer = tuple(sorted({**remaining, kind: remaining[kind] - 1}.items()))
                alternative = value(i + 1, (state[0], (*history, kind)))
                known[i, state] = combine(i, value(i + 1, (fewer, history)), alternative)
            else:
                known[i, state] = combine(i, value(i + 1, state), None)
        return known[i, state]

    return value(0, (tuple(sorted(chosen.limits.items())), ()))


def _policy(policy: ExpansionPolicy | None) -> ExpansionPolicy:
    return ExpansionPolicy.paper() if policy is None else policy


def _check(stages: Sequence[str], gaps: Sequence[int] | None = None, **probabilities: Sequence[float]) -> None:
    if gaps is not None:
        if len(gaps) != len(stages) + 1:
            raise ValueError(f"gaps has {len(gaps)} numbers; {len(stages)} stages need {len(stages) + 1}")
        if any(int(gap) != gap or gap < 0 for gap in gaps):
            raise ValueError(f"gaps holds {list(gaps)}; they have to be non-negative integers")
    for name, values in probabilities.items():
        if len(values) != len(stages):
            raise ValueError(f"{name} has {len(values)} numbers; there are {len(stages)} stages")
        if any(not 0 <= value <= 1 for value in values):
            raise ValueError(f"{name} holds {list(values)}; probabilities lie in [0, 1]")
