"""Trees that the authors of the paper released (``*.root``): system, demonstration, issue, then turns by turns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import TreeFormatError
from ..policy import ExpansionPolicy
from ..tree import Node, Tree
from .actions import assistant_turn, parse_action
from .files import Source, between, content, expecting, text_of

CAP = 50  # actions; their limit is 100 messages
INDEX = re.compile(r"<best_action_index>\s*\[?(-?\d+)\]?\s*</best_action_index>")
STATUS = "(Open file:"
OPEN = re.compile(r"^\(Open file: (.*)\)$", re.MULTILINE)

Turn = Mapping[str, Any]


def read_authors(source: Source) -> Tree:
    """A released tree.

    A user turn becomes a node, with the assistant turn before it as its action; nodes keep the order of ``node_id``.
    What the model was shown at a replacement, the candidates and the critic's answer go into ``expansion``. Costs are
    not in these files and stay unknown.

    Parameters
    ----------
    source : path of the file, or the object in it.

    Raises
    ------
    TreeFormatError
        The file cannot be read, or turns do not alternate.
    """
    name, value = content(source)
    with expecting(name):
        return _tree(value, name)


def _tree(value: Mapping[str, Any], name: str) -> Tree:
    root = value.get("root")
    if not isinstance(root, Mapping):
        raise TreeFormatError(f"{name} is no tree of the authors: it has no object under root")
    start = _turn(root, name)
    while len(_children(start, name)) == 1 and _children(start, name)[0].get("role") == "user":
        start = _children(start, name)[0]
    found = _collect(start, name)
    number = {place: i for i, (place, _, _, _) in enumerate(found)}
    meta = {key: value[key] for key in ("iterations", "node_count") if key in value}
    policy = asdict(ExpansionPolicy.paper())
    policy["allowed_after"] = {kind: sorted(after) for kind, after in policy["allowed_after"].items()}
    tree = Tree(meta={"format": "authors", "issue": between(text_of(start.get("content")), "pr_description"), **meta})
    tree.meta["policy"] = policy
    tree.root.remaining = _limits(start)
    tree.root.state = _open_file(start)
    for i, (_, above, said, seen) in enumerate(found[1:], start=1):
        if above not in number or number[above] >= i:
            raise TreeFormatError(f"{name}: the turn with node_id {seen.get('node_id')} comes before its parent")
        parent = tree.nodes[number[above]]
        tree.add(_node(i, parent, said, seen, name))
    return tree


def _collect(start: Turn, name: str) -> list[tuple[int, int, Turn, Turn]]:
    """(place, place of the parent, assistant turn, user turn) of all nodes by ``node_id``; places count the walk."""
    found: list[tuple[int, int, Turn, Turn]] = [(0, -1, {}, start)]
    stack = [(0, start)]
    while stack:
        place, user = stack.pop()
        for said in _children(user, name):
            if said.get("role") != "assistant":
                raise TreeFormatError(f"{name}: a {said.get('role')} turn where an assistant turn was expected")
            after = _children(said, name)
            if len(after) > 1 or (after and after[0].get("role") != "user"):
                raise TreeFormatError(f"{name}: an assistant turn is followed by something else than one user turn")
            seen = after[0] if after else {**said, "node_id": None, "content": "", "children": []}
            found.append((len(found), place, said, seen))
            stack.append((len(found) - 1, seen))

    def order(entry: tuple[int, int, Turn, Turn]) -> tuple[float, int]:
        number = entry[3].get("node_id")
        return (float(number) if isinstance(number, int) else float("inf"), entry[0])

    return [found[0], *sorted(found[1:], key=order)]


def _node(i: int, parent: Node, said: Turn, seen: Turn, name: str) -> Node:
    text = text_of(said.get("action"))
    action = parse_action(text)
    thought = text_of(said.get("thought")).strip().removeprefix("DISCUSSION").strip()
    observation = text_of(seen.get("content"))
    depth = parent.depth + 1
    exit = ""
    if seen.get("is_terminal"):
        word = text.split(None, 1)[0] if text.split() else ""
        exit = word if word.startswith("exit_") else "submit"  # theirs end at any action that contains the word
    elif depth >= CAP and not seen.get("children"):
        exit = "exit_depth"
    expansion = _expansion(said, name)
    fallback = bool(expansion and expansion["critic"]["fallback"])
    ends = observation.partition(STATUS)[0].strip("\n") if exit else ""
    return Node(
        i, parent.id, len(parent.children), action.kind, action.tool, action.args, thought,
        assistant_turn(thought, action, i), observation, history=tuple(seen.get("expansion_history") or ()),
        remaining=_limits(seen), depth=depth, terminal=bool(exit), exit=exit, cost_usd=None,
        flags=["critic_fallback"] if fallback else [], patch=f"{ends}\n" if ends.startswith("diff --git ") else "",
        state=_open_file(seen), expansion=expansion,
    )  # fmt: skip


def _expansion(said: Turn, name: str) -> dict[str, Any] | None:
    drawn = said.get("expansion_candidates")
    if not drawn:
        return None
    if not all(isinstance(entry, (list, tuple)) and len(entry) >= 2 for entry in drawn):
        raise TreeFormatError(f"{name}: expansion_candidates has to hold lists of thought, action and output")
    candidates = []
    for thought, text, *_ in drawn:
        action = parse_action(text_of(text))
        candidates.append({"tool": action.tool, "args": action.args, "text": text_of(thought).strip()})
    reply = text_of(said.get("critic_response"))
    answered = INDEX.search(reply)
    index = int(answered[1]) if answered else -1
    valid = 0 <= index < len(drawn)
    return {
        "candidates": candidates,
        "rejected": [],
        "critic": {"reply": reply, "index": index if valid else 0, "fallback": bool(reply) and not valid},
        "feedback": text_of(said.get("expansion_prompt")),
    }


def _turn(value: Any, name: str) -> Turn:
    if not isinstance(value, Mapping) or value.get("role") not in ("system", "user", "assistant"):
        raise TreeFormatError(f"{name}: every turn has to be an object with the role system, user or assistant")
    return value


def _children(turn: Turn, name: str) -> list[Turn]:
    below = turn.get("children") or []
    if not isinstance(below, list):
        raise TreeFormatError(f"{name}: children of a turn have to be a list")
    return [_turn(child, name) for child in below]


def _limits(turn: Turn) -> dict[str, int]:
    return {str(kind): int(left) for kind, left in (turn.get("_action_expansion_limit") or {}).items()}


def _open_file(turn: Turn) -> dict[str, str]:
    found = OPEN.findall(text_of(turn.get("content")))
    return {"open": found[-1]} if found and found[-1] != "n/a" else {}
