"""Where the search goes once every path has ended and no alternative is owed: one function from the state to a node.

All strategies share the engine, so that model, tools, budgets and harvest are the same: "dars" and "linear" go nowhere
(the first expands decisions on its way), "restart" begins again at the root, "random_branch" returns to a step drawn at
random (the control that shows whether *key* decisions matter), "mcts" to the node that UCT selects.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from ..config import DarsConfig
from ..errors import TaskError
from ..tree import Node, Tree
from .state import PAUSED, SearchState

Strategy = Callable[[SearchState], int | None]
Value = Callable[[Node], float]


def make_strategy(config: DarsConfig, value: Value | None = None) -> Strategy:
    """The strategy that a configuration names.

    Parameters
    ----------
    value : of a leaf, in [0, 1], for "mcts": the share of visible tests that pass there, or a judgement.

    Raises
    ------
    TaskError
        "mcts" without a value.
    """
    if config.strategy == "restart":
        return lambda state: _again_at_root(state, config.restarts)
    if config.strategy == "random_branch":
        return lambda state: _random(state, config.branches, config.seed)
    if config.strategy == "mcts":
        if value is None:
            raise TaskError("the strategy mcts needs a value of leaves, such as the share of visible tests that pass")
        return lambda state: _uct(state.tree, value, config.exploration, config.max_children)
    return lambda state: None


def _again_at_root(state: SearchState, runs: int | None) -> int | None:
    """The root, until there are enough runs; a start without an action is the last one, since it takes no step."""
    root = state.tree.root
    over = root.terminal or "exhausted" in root.flags
    return None if over or (runs is not None and len(root.children) >= runs) else 0


def _random(state: SearchState, branches: int, seed: int) -> int | None:
    """A node drawn uniformly from those at which an action was taken once."""
    made = sum(len(node.children) > 1 or "exhausted" in node.flags for node in state.tree.nodes.values())
    once = [n.id for n in state.tree.nodes.values() if len(n.children) == 1 and "exhausted" not in n.flags]
    if made >= branches or not once:
        return None
    digest = hashlib.sha256(f"{seed},{made}".encode()).digest()
    return once[int.from_bytes(digest[:8], "big") % len(once)]


def _uct(tree: Tree, value: Value, exploration: float, max_children: int) -> int | None:
    """From the root to the child of the highest upper bound, until a node may have another child.

    Visits and values are those of the leaves below: mean value + exploration sqrt(ln parent's visits / visits).
    """
    visits, total, open_below = _statistics(tree, value, max_children)
    if not open_below[0]:
        return None
    at = tree.root
    while len(at.children) >= max_children or not _expandable(at):
        below = [tree.nodes[i] for i in at.children if open_below[i]]
        if not below:
            return None
        at = max(
            below,
            key=lambda n: (
                total[n.id] / visits[n.id] + exploration * math.sqrt(math.log(visits[n.parent or 0]) / visits[n.id]),
                -n.id,
            ),
        )
    return at.id


def _statistics(
    tree: Tree, value: Value, max_children: int
) -> tuple[dict[int, int], dict[int, float], dict[int, bool]]:
    """Visits, sum of values, and whether there is anything to return to at or below every node."""
    visits, total = dict.fromkeys(tree.nodes, 0), dict.fromkeys(tree.nodes, 0.0)
    open_below: dict[int, bool] = {}
    for leaf in tree.leaves():
        worth = value(leaf)
        for node in tree.path(leaf.id):
            visits[node.id] += 1
            total[node.id] += worth
    for node in reversed(list(tree.nodes.values())):  # children have larger ids
        here = _expandable(node) and len(node.children) < max_children
        open_below[node.id] = here or any(open_below[i] for i in node.children)
    return visits, total, open_below


def _expandable(node: Node) -> bool:
    """Whether another action may be taken at a node: one beside those taken, or the first after a pause."""
    return (bool(node.children) or node.exit == PAUSED) and not node.terminal and "exhausted" not in node.flags
