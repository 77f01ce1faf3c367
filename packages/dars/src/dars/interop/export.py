"""A tree in formats that other programs read."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

from ..errors import TaskError
from ..models.base import NOTHING, add_costs
from ..tree import Node, Tree
from ..viz import html
from ..viz.common import node_of

FORMATS = ("json", "html", "traj", "dot")


def export(tree: Tree, format: str, leaf: int | None = None) -> str:
    """The tree as text.

    Parameters
    ----------
    format : "json" (the whole tree), "html" (the viewer), "traj" (one path, as SWE-agent writes it), "dot" (Graphviz).
    leaf : where the path of "traj" ends; None for the first submitted leaf with a patch, else the first leaf.

    Raises
    ------
    TaskError
        Another format.
    TreeFormatError
        There is no such node.
    """
    if format == "json":
        return tree.to_json()
    if format == "html":
        return html(tree, title=str(tree.meta.get("id", "dars")))
    if format == "traj":
        return json.dumps(_trajectory(tree, _end(tree) if leaf is None else leaf), ensure_ascii=False, indent=1)
    if format == "dot":
        return _dot(tree)
    raise TaskError(f"there is no format {format!r}; there are {', '.join(FORMATS)}")


def _end(tree: Tree) -> int:
    leaves = sorted(tree.leaves(), key=lambda node: node.id)
    return next((leaf.id for leaf in leaves if leaf.exit == "submit" and leaf.patch), leaves[0].id)


def command(node: Node) -> str:
    """An action as a command: the word, then its arguments; those of a shell as they are."""
    if set(node.args) == {"command"} and isinstance(node.args["command"], str):
        return node.args["command"]
    return f"{node.tool} {json.dumps(node.args, ensure_ascii=False)}" if node.args else node.tool


def _trajectory(tree: Tree, leaf: int) -> dict[str, Any]:
    path = tree.path(node_of(tree, leaf).id)[1:]
    steps, history = [], [{"role": "user", "content": str(tree.meta.get("issue", "")), "agent": "main"}]
    for node in path:
        text = command(node)
        response = f"{node.thought}\n```\n{text}\n```".lstrip()
        steps.append(
            {
                "action": text, "observation": node.observation, "response": response, "thought": node.thought,
                "execution_time": node.wall_s, "state": {"open_file": node.state.get("open", "")},
            }
        )  # fmt: skip
        history += [
            {"role": "assistant", "content": response, "thought": node.thought, "action": text, "agent": "main"},
            {"role": "user", "content": node.observation, "agent": "main"},
        ]
    usage = sum((node.usage for node in path), NOTHING)
    nothing: float | None = 0.0
    exit = path[-1].exit if path else ""
    info = {
        "exit_status": "submitted" if exit == "submit" else exit,
        "submission": path[-1].patch if path else "",
        "model_stats": {
            "instance_cost": reduce(add_costs, (node.cost_usd for node in path), nothing),
            "tokens_sent": usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h,
            "tokens_received": usage.output,
            "api_calls": len(path),
        },
    }
    return {"environment": "dars", "trajectory": steps, "history": history, "info": info}


def _dot(tree: Tree) -> str:
    lines = ["digraph dars {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    for node in tree.nodes.values():
        label = "issue" if node.parent is None else f"#{node.id} {node.tool}" + (f"\n{node.exit}" if node.exit else "")
        lines.append(f"  n{node.id} [label={json.dumps(label, ensure_ascii=False)}];")
        if node.parent is not None:
            style = " [style=dashed]" if node.child_index else ""
            lines.append(f"  n{node.parent} -> n{node.id}{style};")
    return "\n".join([*lines, "}"]) + "\n"
