"""Trees as letters, and the search driven along them: for the rule of traversal alone, without models or workspaces.

Letters are kinds (c create, a append, e edit, s submit, o other); ``(x|y)`` is a first child and its alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..aci.base import Observation, Tool
from ..config import BudgetSection, CandidatesSection, DarsConfig, DedupeSection, FeedbackSection, PolicySection
from ..env.memory import MemoryEnvironment
from ..models.base import ModelRequest, ScriptedModel, ToolCall
from ..policy import ExpansionPolicy
from ..tree import Tree
from .engine import Engine
from .turns import Prompts

KINDS = {"o": "other", "c": "create", "a": "append", "e": "edit", "s": "submit"}


@dataclass(frozen=True)
class SkeletonTrace:
    """What a search along a skeleton did.

    n_steps, n_leaves : executed actions, nodes without children (the root, if there was no action).
    branches : (depth, kind) of every expansion, in the order in which they were opened.
    leaf_depths : in the order in which the leaves were made.
    replay_steps : actions that restoring by replay would have executed again.
    missing : alternatives that were owed, and that the skeleton does not have.
    """

    n_steps: int
    n_leaves: int
    branches: list[tuple[int, str]]
    leaf_depths: list[int]
    replay_steps: int
    missing: int
    tree: Tree = field(repr=False, compare=False)


@dataclass
class _Node:
    kind: str = ""
    children: list[_Node] = field(default_factory=list)


def simulate_skeleton(
    skeleton: str, policy: ExpansionPolicy, max_depth: int = 50, max_steps: int | None = None
) -> SkeletonTrace:
    """Drive the engine along a skeleton.

    Raises
    ------
    ValueError
        Malformed text; the position is named.

    Examples
    --------
    >>> trace = simulate_skeleton("oe(s|s)", ExpansionPolicy.paper())
    >>> trace.n_steps, trace.branches, trace.missing
    (4, [(1, 'edit'), (2, 'submit')], 1)
    """
    root = parse_skeleton(skeleton)
    count = _count(root)

    def follow(request: ModelRequest) -> ToolCall | str:
        node = root
        for index in request.path:
            node = node.children[index]
        index = 0 if request.role == "act" else request.sample + 1
        if index >= len(node.children):
            return "the script ends here"
        return ToolCall(node.children[index].kind, {"child": index})

    config = DarsConfig(
        policy=PolicySection(
            limits=dict(policy.limits),
            allowed_after={kind: sorted(kinds) for kind, kinds in policy.allowed_after.items()},
            num_expansions=policy.num_expansions,
        ),
        candidates=CandidatesSection(k=1, retries=0),
        feedback=FeedbackSection(enabled=False),
        dedupe=DedupeSection(actions=False, states=False),
        budget=BudgetSection(steps=count if max_steps is None else max_steps, depth=max_depth),
        harvest_unsubmitted=False,
    )
    tools = {kind: Tool(kind, {}, kind, lambda env, args, state: Observation("")) for kind in KINDS.values()}
    engine = Engine(ScriptedModel(follow), MemoryEnvironment({}), tools, Prompts(), config)
    engine.run()
    tree = engine.state.tree
    made = list(tree.nodes.values())[1:]
    leaves = tree.leaves()
    return SkeletonTrace(
        n_steps=len(made),
        n_leaves=len(leaves),
        branches=[(e.depth, e.kind) for e in engine.state.expansions],
        leaf_depths=[node.depth for node in leaves],
        replay_steps=sum(node.depth - 1 for node in made if node.child_index),
        missing=sum(node.flags.count("exhausted") for node in tree.nodes.values()),
        tree=tree,
    )


def parse_skeleton(text: str) -> _Node:
    """The tree of a skeleton; a group of alternatives ends the sequence it stands in."""
    root, end = _sequence(text, 0)
    if end != len(text):
        raise ValueError(f"position {end}: {text[end]!r} closes nothing")
    return root


def _sequence(text: str, at: int) -> tuple[_Node, int]:
    """A node with all that follows up to the next ``|`` or ``)``."""
    root = _Node()
    last = root
    while at < len(text) and text[at] not in "|)":
        if last.children and len(last.children) > 1:
            raise ValueError(f"position {at}: {text[at]!r} after a group of alternatives; nothing can follow it")
        if text[at] == "(":
            opened = at
            while True:
                branch, at = _sequence(text, at + 1)
                if len(branch.children) != 1:
                    raise ValueError(f"position {at}: an alternative has to begin with one letter")
                last.children.append(branch.children[0])
                if at >= len(text):
                    raise ValueError(f"position {opened}: '(' is never closed")
                if text[at] == ")":
                    break
            if len(last.children) < 2:
                raise ValueError(f"position {opened}: a group needs at least two alternatives")
            at += 1
        elif text[at] in KINDS:
            node = _Node(KINDS[text[at]])
            last.children.append(node)
            last, at = node, at + 1
        else:
            raise ValueError(f"position {at}: {text[at]!r} is not one of {', '.join(KINDS)}, '(', '|' or ')'")
    return root, at


def _count(node: _Node) -> int:
    total, stack = 0, [node]
    while stack:
        stack += (children := stack.pop().children)
        total += len(children)
    return max(total, 1) + 1
