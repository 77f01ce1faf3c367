"""Trees as letters for the experiments: one that the authors released, and those that a rule makes, written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..policy import ExpansionPolicy
from ..tree import LETTERS

STAGES = ("create", "append", "edit", "submit")
GAPS = (3, 0, 1, 6, 0)  # of the reference values

# Kinds of the actions of one of the trees released with arXiv:2503.14269, and what its releases with fewer limits have:
# kinds with a limit of 1 -> (steps, leaves).
RELEASED = (
    "ooo(c(ao(eoeeoeo(s|s)|eoeeoeo(s|s))|c(aoeoeoooeecao(s|s)|aoeoooeo(s|s)))|"
    "c(ao(eoooeeoeo(s|s)|eoeo(s|s))|aooeeoeeoeeoeeoeoeoeoooooooeoeeeeooeoeoeeoeoeeoo))"
)
RELEASED_STEPS, RELEASED_LEAVES, RELEASED_SUBMITTED, RELEASED_REPLAY = 116, 13, 12, 110
RELEASED_BRANCHES = [
    (3, "create"), (4, "append"), (6, "edit"), (13, "submit"), (4, "append"), (6, "edit"), (15, "submit"),
    (5, "append"), (18, "submit"), (13, "submit"), (13, "submit"), (10, "submit"),
]  # fmt: skip
RELEASED_PRUNINGS = {
    (): (14, 1), ("create",): (27, 2), ("append",): (38, 3), ("edit",): (22, 2), ("submit",): (15, 2),
    ("create", "append"): (97, 5), ("edit", "submit"): (24, 4), STAGES: (116, 13),
}  # fmt: skip


def staged(
    stages: Sequence[str],
    gaps: Sequence[int],
    policy: ExpansionPolicy,
    history: tuple[str, ...] = (),
    remaining: Mapping[str, int] | None = None,
) -> str:
    """The tree of a search that goes through these stages on every path, by the definition of the rule."""
    left = dict(policy.limits) if remaining is None else dict(remaining)
    text = "o" * gaps[0]
    if not stages:
        return text
    kind = stages[0]
    opens = policy.num_expansions > 1 and policy.should_expand(kind, history, left)
    fewer = {**left, kind: left[kind] - 1} if opens else left
    first = LETTERS[kind] + staged(stages[1:], gaps[1:], policy, history, fewer)
    if not opens:
        return text + first
    other = LETTERS[kind] + staged(stages[1:], gaps[1:], policy, (*history, kind), left)
    return text + "(" + "|".join([first, *[other] * (policy.num_expansions - 1)]) + ")"


def random_policy(rng: np.random.Generator, most: int = 1) -> ExpansionPolicy:
    """Limits up to ``most``, two or three children, any kinds after any."""
    limits = {kind: int(rng.integers(most + 1)) for kind in STAGES}
    after = {kind: [other for other in STAGES if rng.random() < 0.4] for kind in STAGES}
    return ExpansionPolicy(limits, after, int(rng.integers(2, 4)))


def random_skeleton(rng: np.random.Generator, policy: ExpansionPolicy, depth: int = 12) -> str:
    """A search in which every action is of a random kind; it ends with a submission or after ``depth`` actions."""

    def below(left: int, history: tuple[str, ...], remaining: Mapping[str, int]) -> str:
        if left == 0:
            return ""
        kind = str(rng.choice([*STAGES, "other", "other", "other", "other"]))
        opens = policy.should_expand(kind, history, remaining)
        first = after(kind, left, history, {**remaining, kind: remaining[kind] - 1} if opens else remaining)
        if not opens:
            return first
        others = [
            after(str(rng.choice([*STAGES, "other"])), left, (*history, kind), remaining)
            for _ in range(policy.num_expansions - 1)
        ]
        return "(" + "|".join([first, *others]) + ")"

    def after(kind: str, left: int, history: tuple[str, ...], remaining: Mapping[str, int]) -> str:
        return LETTERS.get(kind, "o") + ("" if kind == "submit" else below(left - 1, history, remaining))

    return below(depth, (), dict(policy.limits))
