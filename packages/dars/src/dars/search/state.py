"""The state of a search as a fold over its events: what is written to the log is all that a resumed run needs.

Events
------
root : the state in which the search begins.
step : a node was made. ``pushed`` alternatives are then owed at its parent (it opened an expansion).
owe : a strategy goes back to ``node``; one alternative is then owed there.
exhausted : no new alternative could be found at ``node``; one that was owed is dropped, and
    what was ``rejected`` stays with the node.
end : the path ends at ``node`` without a further action, for the reason ``exit``.
pause : the path ends at ``node`` for now; a strategy may go on there.
reopen : a path that was paused goes on at ``node``.
fork : a person goes back to ``node``, with a ``hint`` or an ``action``; the budget counts anew from here.
value : what the leaf ``node`` is worth to a strategy.
spent : a model call that led to no node (format errors, failed draws).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import TreeFormatError
from ..models.base import NOTHING, Usage, add_costs
from ..tree import Node, Tree

PAUSED = "paused"
Pending = tuple[int, int, int]  # (priority, seq, node): the smallest comes first


@dataclass
class Expansion:
    """A decision that was expanded: at which node, how deep, and the kind of the first action."""

    node: int
    depth: int
    kind: str


@dataclass
class SearchState:
    """Everything that decides what happens next.

    Attributes
    ----------
    pending : alternatives owed.
    open : nodes whose path is not finished, in the order in which they were made.
    steps, calls, usage, cost_usd : spent so far; cost_usd is None once a price was unknown.
    before : (steps, calls, cost_usd) at the last fork, which do not count against its budget.
    forks : node -> {"hint", "action"} that a person gave for the next action there.
    began : unfinished node -> depth at which the walk to it began.
    values : node -> what a leaf was found to be worth.
    cache_misses : the provider's reasons why a prefix was not reused, and how often.
    """

    tree: Tree = field(default_factory=Tree)
    order: str = "shallowest"
    pending: list[Pending] = field(default_factory=list)
    open: dict[int, None] = field(default_factory=lambda: {0: None})
    expansions: list[Expansion] = field(default_factory=list)
    seq: int = 0
    steps: int = 0
    calls: int = 0
    usage: Usage = NOTHING
    cost_usd: float | None = 0.0
    before: tuple[int, int, float] = (0, 0, 0.0)
    forks: dict[int, dict[str, Any]] = field(default_factory=dict)
    began: dict[int, int] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    cache_misses: Counter[str] = field(default_factory=Counter)

    def apply(self, event: Mapping[str, Any]) -> Node | None:
        """Take one event in; returns the node of a step."""
        self.calls += int(event.get("calls", 0))
        self.usage += Usage(*event.get("usage", ()))
        self.cost_usd = add_costs(self.cost_usd, event.get("cost_usd", 0.0))
        self.cache_misses.update(event.get("cache_misses", {}))
        kind = event["type"]
        if kind == "step":
            return self._step(event)
        if kind == "root":
            root = self.tree.root
            root.snapshot, root.state_hash = event["snapshot"], event["state_hash"]
            root.remaining = {name: int(left) for name, left in event["remaining"].items()}
            return None
        if kind == "owe":
            self._owe(self.tree.nodes[int(event["node"])])
        elif kind == "exhausted":
            node = self.tree.nodes[int(event["node"])]
            self._drop(node.id)
            self.forks.pop(node.id, None)
            node.flags.append("exhausted")
            node.rejected = [*node.rejected, *event.get("rejected", ())]
        elif kind == "end":
            node = self.tree.nodes[int(event["node"])]
            node.exit, node.terminal = str(event["exit"]), True
            node.patch = event.get("patch", node.patch)
            self.open.pop(node.id, None)
            self.forks.pop(node.id, None)
        elif kind == "pause":
            self.tree.nodes[int(event["node"])].exit = PAUSED
            self.open.pop(int(event["node"]), None)
            self.forks.pop(int(event["node"]), None)
        elif kind == "reopen":
            self._reopen(self.tree.nodes[int(event["node"])])
        elif kind == "fork":
            self._fork(self.tree.nodes[int(event["node"])], event)
        elif kind == "value":
            self.values[int(event["node"])] = float(event["value"])
        elif kind != "spent":
            raise TreeFormatError(f"unknown event {kind!r}")
        return None

    def _step(self, event: Mapping[str, Any]) -> Node:
        node = Node.from_record(event["node"])
        parent = self.tree.nodes[node.parent or 0]
        if event.get("parent_snapshot"):
            parent.snapshot = event["parent_snapshot"]
        if node.child_index:
            self._drop(parent.id)
        self.open.pop(parent.id, None)
        self.forks.pop(parent.id, None)
        began = self.began.pop(parent.id, parent.depth)
        self.tree.add(node)
        for _ in range(int(event.get("pushed", 0))):
            self._owe(parent)
        if event.get("pushed"):
            self.expansions.append(Expansion(parent.id, parent.depth, node.kind))
        if not node.terminal:
            self.open[node.id] = None
            self.began[node.id] = parent.depth if node.child_index else began
        self.steps += 1
        return node

    def _reopen(self, node: Node) -> None:
        node.exit, node.terminal, node.patch = "", False, ""
        self.open[node.id] = None
        self.began[node.id] = node.depth

    def _fork(self, node: Node, event: Mapping[str, Any]) -> None:
        self.before = (self.steps, self.calls, self.cost_usd or 0.0)
        self.forks[node.id] = {"hint": event.get("hint"), "action": event.get("action")}
        if node.children:
            self._owe(node)
        else:  # of an unfinished path too a new walk begins here, lest it pause before what was asked for is done
            self._reopen(node)

    def _owe(self, node: Node) -> None:
        priority = {"shallowest": node.depth, "deepest": -node.depth, "breadth": 0}[self.order]
        self.pending.append((priority, self.seq, node.id))
        self.seq += 1

    def _drop(self, node_id: int) -> None:
        owed = min((entry for entry in self.pending if entry[2] == node_id), default=None)
        if owed is None:
            raise TreeFormatError(f"an alternative at node {node_id} that was never owed")
        self.pending.remove(owed)
