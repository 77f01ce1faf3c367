"""One node in full as plain text, and what sets two siblings apart."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import TreeFormatError
from ..tree import Node, Tree
from .common import action_text, ending, file_of, money, node_of


def node_text(tree: Tree, node_id: int) -> str:
    """Everything that is known of a node.

    Raises
    ------
    TreeFormatError
        There is no such node.
    """
    node = node_of(tree, node_id)
    title = f"node {node.id} · {node.kind or 'root'} · depth {node.depth}"
    title += f" · {ending(node)}" if node.terminal or not node.children else ""
    facts = [
        ("path", " › ".join(str(n.id) for n in tree.path(node_id))),
        ("siblings", ", ".join(str(i) for i in _siblings(tree, node) if i != node.id)),
        ("children", ", ".join(map(str, node.children))),
        ("flags", ", ".join(node.flags)),
        ("file", file_of(node)),
        ("replaced above", ", ".join(node.history)),
        ("expansions left", ", ".join(f"{kind} {left}" for kind, left in node.remaining.items())),
        ("snapshot", node.snapshot),
        ("state hash", node.state_hash),
        ("drawn from", (node.expansion or {}).get("prompt_hash", "")),
        ("tokens", ", ".join(f"{n.replace('_', ' ')} {v}" for n, v in node.usage._asdict().items() if v)),
        ("cost", money(node.cost_usd)),
        ("time", f"{node.wall_s:.2f} s"),
    ]
    parts = [title, "\n".join(f"{name:<16} {value}" for name, value in facts if value)]
    issue = str(tree.meta.get("issue", "")) if node.parent is None else ""
    sections = [("issue", issue), ("action", "" if node.parent is None else _action(node)), ("thought", node.thought)]
    sections += [("thinking", thinking(node)), ("observation", node.observation)]
    sections += _expansion(node.expansion) if node.expansion else []
    sections.append(("no other action found", _rejected(node.rejected)))
    sections.append(("patch", node.patch))
    parts += [f"── {name} " + "─" * max(1, 76 - len(name)) + f"\n{body.rstrip()}" for name, body in sections if body]
    return "\n\n".join(parts) + "\n"


def sibling_diff(tree: Tree, a: int, b: int) -> str:
    """Two children of one node as unified diffs: of their actions, and of the patches that their first lines end in.

    Raises
    ------
    TreeFormatError
        There is no such node, or they have different parents.
    """
    one, other = node_of(tree, a), node_of(tree, b)
    if one.parent is None or one.parent != other.parent or a == b:
        raise TreeFormatError(f"nodes {a} and {b} are no siblings: name two children of one node")
    ends = [list(tree.first_line(node.id))[-1] for node in (one, other)]
    parts = [
        f"nodes {a} and {b}, both after node {one.parent}",
        _diff(action_text(one.tool, one.args), action_text(other.tool, other.args), f"action {a}", f"action {b}"),
        f"{a} leads to node {ends[0].id}: {ending(ends[0])}\n{b} leads to node {ends[1].id}: {ending(ends[1])}",
        _diff(ends[0].patch, ends[1].patch, f"patch of {ends[0].id}", f"patch of {ends[1].id}"),
    ]
    return "\n\n".join(parts) + "\n"


def thinking(node: Node) -> str:
    """The model's thinking before the action, where it was shown."""
    return "\n\n".join(str(block["thinking"]) for block in node.assistant if block.get("thinking"))


def _siblings(tree: Tree, node: Node) -> list[int]:
    return [] if node.parent is None else tree.nodes[node.parent].children


def _action(node: Node) -> str:
    if isinstance(node.args.get("old"), str) and isinstance(node.args.get("new"), str):
        rest = {name: value for name, value in node.args.items() if name not in ("old", "new")}
        lines = difflib.unified_diff(node.args["old"].split("\n"), node.args["new"].split("\n"), lineterm="", n=1000)
        return "\n".join([action_text(node.tool, rest), *list(lines)[3:]])
    return action_text(node.tool, node.args)


def _expansion(expansion: dict[str, Any]) -> list[tuple[str, str]]:
    critic = expansion.get("critic") or {}
    out = []
    for i, candidate in enumerate(expansion.get("candidates") or ()):
        chosen = " (chosen)" if i == critic.get("index") else ""
        body = action_text(str(candidate.get("tool", "")), candidate.get("args") or {})
        out.append((f"candidate {i}{chosen}", "\n\n".join(part for part in (candidate.get("text", ""), body) if part)))
    out.append(("rejected candidates", _rejected(expansion.get("rejected") or ())))
    note = "\n(no index could be read: the first candidate was taken)" if critic.get("fallback") else ""
    out.append(("critic", f"{critic.get('reply') or ''}{note}"))
    out.append(("feedback shown before", str(expansion.get("feedback", ""))))
    return out


def _rejected(entries: Sequence[Mapping[str, Any]]) -> str:
    told = [(entry.get("reason", ""), entry.get("tool") or entry.get("text", "")) for entry in entries]
    return "\n".join(f"- {reason}: {what}" if what else f"- {reason}" for reason, what in told)


def _diff(one: str, other: str, name: str, other_name: str) -> str:
    if one == other:
        return f"{name} and {other_name} are the same"
    return "\n".join(difflib.unified_diff(one.splitlines(), other.splitlines(), name, other_name, lineterm=""))
