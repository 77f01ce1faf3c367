"""What every view says about a node (its action as text, its file, the size of its patch), and the totals of a tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

from ..errors import TreeFormatError
from ..models.base import NOTHING, Usage, add_costs
from ..patches import changes
from ..tree import Node, Tree


class Totals(NamedTuple):
    """Of a whole tree; ``cost_usd`` is None where the price of a model is unknown."""

    steps: int
    leaves: int
    expansions: int
    usage: Usage
    cost_usd: float | None
    wall_s: float


def totals(tree: Tree) -> Totals:
    """Sums over the nodes; calls that led to no node are not in them."""
    made = [node for node in tree.nodes.values() if node.parent is not None]
    nothing: float | None = 0.0
    return Totals(
        steps=len(made),
        leaves=sum(not node.children for node in made),
        expansions=sum(is_decision(node) for node in tree.nodes.values()),
        usage=sum((node.usage for node in made), NOTHING),
        cost_usd=reduce(add_costs, (node.cost_usd for node in made), nothing),
        wall_s=sum(node.wall_s for node in made),
    )


def is_decision(node: Node) -> bool:
    """Whether the search went back to a node, even if it found nothing else to do there."""
    return len(node.children) > 1 or "exhausted" in node.flags


def node_of(tree: Tree, node_id: int) -> Node:
    """A node by its id; TreeFormatError where there is none."""
    if node_id not in tree.nodes:
        raise TreeFormatError(f"there is no node {node_id}: ids of this tree run from 0 to {max(tree.nodes)}")
    return tree.nodes[node_id]


def file_of(node: Node) -> str:
    """The file that an action is about: the one it names, else the open one; "" for other actions."""
    if node.kind in ("other", "submit", ""):
        return str(node.args.get("path", ""))
    return str(node.args.get("path") or node.state.get("open") or "")


def action_text(tool: str, args: Mapping[str, Any]) -> str:
    """An action, every argument under its name and texts as they are."""
    lines = [tool or "(the issue)"]
    for name, value in args.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines += [f"{name}:", *(f"  {line}" for line in text.split("\n"))] if "\n" in text else [f"{name}: {text}"]
    return "\n".join(lines)


def patch_size(patch: str) -> tuple[int, int] | None:
    """(added, removed) lines; None for what is no unified diff, as imported trees may hold."""
    try:
        found = changes(patch)
    except ValueError:
        return None
    return sum(change.added for change in found), sum(change.removed for change in found)


def ending(node: Node) -> str:
    """How a path ended, and the size of its patch."""
    how = node.exit or "unfinished"
    if not node.patch:
        return how
    size = patch_size(node.patch)
    return f"{how}  +{size[0]} −{size[1]}" if size else f"{how}  (its patch is no diff)"


def money(cost_usd: float | None) -> str:
    """US dollars, four digits below a cent's worth."""
    if cost_usd is None:
        return "cost unknown"
    return f"${cost_usd:.2f}" if cost_usd >= 1 or not cost_usd else f"${cost_usd:.4f}"
