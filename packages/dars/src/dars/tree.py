"""The tree of a search: user nodes (states after an observation) and the actions between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import TreeFormatError
from .models.base import NOTHING, Block, Usage
from .policy import ExpansionPolicy

SCHEMA_VERSION = 1
LETTERS = {"create": "c", "append": "a", "edit": "e", "submit": "s"}


@dataclass
class Node:
    """A user node, made by the action that led to it; the root has none.

    Attributes
    ----------
    kind, tool, args, thought, assistant : the action, and the assistant's turn verbatim.
    observation : what the model is shown, or the id of a blob that holds it.
    snapshot, state_hash : of the workspace after the action; snapshot is "" where none was taken.
    history : kinds of the first actions that alternatives above this node replaced.
    remaining : kind -> expansions left on this path.
    depth : actions from the root.
    terminal, exit : whether the path ends here, and how ("submit", "exit_depth", ...).
    state : what tools remember, plain values.
    patch : of an ended path.
    expansion : of an alternative: the prompt's hash, candidates, rejected ones, the critic's answer.
    rejected : where no further action was found: what was drawn and why it was not taken, or how drawing ended.
    """

    id: int
    parent: int | None = None
    child_index: int = 0
    kind: str = ""
    tool: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    thought: str = ""
    assistant: list[Block] = field(default_factory=list)
    observation: str = ""
    snapshot: str = ""
    state_hash: str = ""
    history: tuple[str, ...] = ()
    remaining: dict[str, int] = field(default_factory=dict)
    depth: int = 0
    terminal: bool = False
    exit: str = ""
    usage: Usage = NOTHING
    cost_usd: float | None = 0.0
    wall_s: float = 0.0
    t_start: float = 0.0
    flags: list[str] = field(default_factory=list)
    patch: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    expansion: dict[str, Any] | None = None
    rejected: list[dict[str, Any]] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain values, not copied; children are left out, since parents name them."""
        values = {name: getattr(self, name) for name in RECORDED}
        return {**values, "usage": list(self.usage), "history": list(self.history), "flags": list(self.flags)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Node:
        """Inverse of :meth:`record`."""
        values = {key: value for key, value in record.items() if key in RECORDED}
        values["usage"] = Usage(*values.get("usage", ()))
        values["history"] = tuple(values.get("history", ()))
        return cls(**values)


RECORDED = tuple(f.name for f in fields(Node) if f.name != "children")


class Tree:
    """Nodes by id, in the order in which they were made; node 0 is the root.

    Examples
    --------
    >>> tree = Tree()
    >>> tree.add(Node(1, parent=0, kind="other", depth=1)).id
    1
    """

    def __init__(self, nodes: Mapping[int, Node] | None = None, meta: Mapping[str, Any] | None = None) -> None:
        self.nodes: dict[int, Node] = dict(nodes or {0: Node(0)})
        self.meta: dict[str, Any] = dict(meta or {})

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def __len__(self) -> int:
        return len(self.nodes)

    def add(self, node: Node) -> Node:
        """Put a node below its parent."""
        if node.id in self.nodes or node.parent not in self.nodes:
            raise TreeFormatError(
                f"node {node.id} cannot go below {node.parent}: one is there already or the other missing"
            )
        self.nodes[node.id] = node
        self.nodes[node.parent].children.append(node.id)
        return node

    def children(self, node_id: int) -> list[Node]:
        """Children in the order of their index."""
        return [self.nodes[i] for i in self.nodes[node_id].children]

    def leaves(self) -> list[Node]:
        """Nodes without children, in order of their ids; the root only if it is alone."""
        return [node for node in self.nodes.values() if not node.children and (node.id or len(self.nodes) == 1)]

    def path(self, node_id: int) -> list[Node]:
        """From the root to a node, both included."""
        if node_id not in self.nodes:
            raise KeyError(f"there is no node {node_id}; ids run from 0 to {max(self.nodes)}")
        path = []
        at: int | None = node_id
        while at is not None:
            path.append(self.nodes[at])
            at = self.nodes[at].parent
        return path[::-1]

    def indices(self, node_id: int) -> tuple[int, ...]:
        """Child indices from the root to a node: its address, whatever the order in which nodes were made."""
        return tuple(node.child_index for node in self.path(node_id)[1:])

    def first_line(self, node_id: int) -> Iterator[Node]:
        """A node and its first children down to a leaf."""
        node = self.nodes[node_id]
        yield node
        while node.children:
            node = self.nodes[node.children[0]]
            yield node

    @property
    def critic_fallback_rate(self) -> float | None:
        """Share of the critic's choices in which no index could be read; None where it never had to choose."""
        drawn = [node for node in self.nodes.values() if len((node.expansion or {}).get("candidates", ())) > 1]
        return sum("critic_fallback" in node.flags for node in drawn) / len(drawn) if drawn else None

    # --- skeletons ------------------------------------------------------------------------------------------------

    def skeleton(self) -> str:
        """Kinds of the actions as letters, ``(first|alternative|...)`` where a node has several children."""

        def below(node_id: int) -> str:
            text = ""
            children = self.nodes[node_id].children
            while len(children) == 1:
                text += _letter(self.nodes[children[0]].kind)
                children = self.nodes[children[0]].children
            if children:
                text += "(" + "|".join(_letter(self.nodes[i].kind) + below(i) for i in children) + ")"
            return text

        return below(0)

    def prune(self, limits: Mapping[str, int]) -> Tree:
        """What the search would have visited with these limits: alternatives it would not have opened are cut off.

        limits : kind -> expansions on a path, as :class:`ExpansionPolicy` has them; kinds not named get none.
        """
        made = self.meta.get("policy")
        policy = ExpansionPolicy.paper() if made is None else ExpansionPolicy(**made)
        policy = ExpansionPolicy(dict(limits), policy.allowed_after, policy.num_expansions)
        pruned = Tree(meta={**self.meta, "limits": dict(limits)})
        pruned.nodes[0] = _bare(self.root, (), dict(policy.limits))
        stack = [0]
        while stack:
            at = pruned.nodes[stack.pop()]
            children = self.children(at.id)
            if not children:
                continue
            first = children[0]
            opens = policy.should_expand(first.kind, at.history, at.remaining)
            fewer = {**at.remaining, first.kind: at.remaining[first.kind] - 1} if opens else dict(at.remaining)
            kept = [pruned.add(_bare(first, at.history, fewer))]
            if opens:
                again = (*at.history, first.kind)
                kept += [pruned.add(_bare(c, again, dict(at.remaining))) for c in children[1 : policy.num_expansions]]
            stack += [node.id for node in kept]
        pruned.nodes = dict(sorted(pruned.nodes.items()))
        return pruned

    # --- files ----------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The whole tree as one JSON document."""
        value = {"schema_version": SCHEMA_VERSION, **self.meta, "nodes": [n.record() for n in self.nodes.values()]}
        return json.dumps(value, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Tree:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        TreeFormatError
            No JSON, another schema, or nodes that do not make a tree.
        """
        try:
            value = json.loads(text)
            version, records = value.pop("schema_version"), value.pop("nodes")
            if version != SCHEMA_VERSION:
                raise TreeFormatError(f"the tree has schema_version {version}; this version reads {SCHEMA_VERSION}")
            nodes = [Node.from_record(record) for record in records]
            tree = cls({0: nodes[0]}, value)
            if nodes[0].id != 0 or nodes[0].parent is not None:
                raise TreeFormatError("the first node has to be the root, node 0")
            for node in nodes[1:]:
                tree.add(node)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise TreeFormatError(f"this is no tree: {type(error).__name__}: {error}") from error
        return tree


def load_tree(path: str | Path) -> Tree:
    """Read ``tree.json``, or the folder that holds it."""
    file = Path(path)
    file = file / "tree.json" if file.is_dir() else file
    try:
        return Tree.from_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TreeFormatError(f"cannot read {file}: {error.strerror}") from error


def _letter(kind: str) -> str:
    return LETTERS.get(kind, "o")


def _bare(node: Node, history: tuple[str, ...], remaining: dict[str, int]) -> Node:
    values = {f.name: getattr(node, f.name) for f in fields(Node)}
    return Node(**{**values, "history": history, "remaining": remaining, "children": []})
