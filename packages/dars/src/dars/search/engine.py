"""The search (arXiv:2503.14269, section 3): walk a path to its end, then go back to the shallowest open decision.

One job is one path, from an unfinished node or from an alternative that is owed, to its end. A single worker takes jobs
in the canonical order; several take what no running job can still change, each with a workspace of its own. What
happens at a node depends on the path to it alone, so that without a binding budget the set of nodes is always the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from ..aci.base import Observation, State, Tool
from ..config import DarsConfig
from ..env.base import Environment
from ..errors import EnvError
from ..models.base import NOTHING, ChatModel, ModelResponse, ToolCall, Usage, add_costs
from ..tree import Node
from .resample import Choice, Drawn, resample
from .state import SearchState
from .strategies import Value, make_strategy
from .turns import Prompts, ask

Event = dict[str, Any]


@dataclass
class Spent:
    """What a job used since its last event."""

    calls: int = 0
    usage: Usage = NOTHING
    cost_usd: float | None = 0.0

    def add(self, response: ModelResponse) -> None:
        """Count one response."""
        self.calls += 1
        self.usage += response.usage
        self.cost_usd = add_costs(self.cost_usd, response.cost_usd)

    def take(self) -> Event:
        """As fields of an event, and start again."""
        event: Event = {"calls": self.calls, "usage": list(self.usage), "cost_usd": self.cost_usd}
        self.calls, self.usage, self.cost_usd = 0, NOTHING, 0.0
        return event


@dataclass
class Engine:
    """One search.

    Attributes
    ----------
    tools : by name, those that the model may call.
    prompts : the texts of requests.
    critic : chooses among candidates; None: the model itself.
    log : takes every event before it counts; what it raises ends the search.
    value : of a leaf, for strategies that need one.
    """

    model: ChatModel
    env: Environment
    tools: Mapping[str, Tool]
    prompts: Prompts
    config: DarsConfig = field(default_factory=DarsConfig)
    critic: ChatModel | None = None
    log: Callable[[Event], None] | None = None
    state: SearchState = field(default_factory=SearchState)
    value: Value | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.policy = self.config.policy.build()
        self.strategy = make_strategy(self.config, self.value)
        self.state.order = self.config.order
        self.lock = threading.RLock()
        self.stopped = ""  # why no further model call may be made
        self._started = self.clock()
        root = self.state.tree.root
        if not root.state_hash:
            begun = {"snapshot": self.env.snapshot(), "state_hash": self.env.state_hash()}
            self._emit({"type": "root", **begun, "remaining": dict(self.policy.limits)})
        elif not self.env.knows(root.snapshot):
            if self.env.state_hash() != root.state_hash:
                raise EnvError("the workspace is not as it was when the search began: give it the original files")
            root.snapshot = self.env.snapshot()

    # --- order ----------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Search until nothing is left or the budget ends; returns why ("done", "steps", "calls", ...)."""
        workers = max(1, self.config.workers)
        if workers == 1:
            while (job := self._next(())) is not None:
                self._job(job, self.env)
        else:
            self._run_many(workers)
        return self.stopped or "done"

    def _run_many(self, workers: int) -> None:
        free = [self.env, *(self.env.clone() for _ in range(workers - 1))]
        clones = free[1:]
        running: dict[Future[None], tuple[int, Environment]] = {}
        try:
            with ThreadPoolExecutor(workers) as pool:
                while True:
                    while free and (job := self._next([node for node, _ in running.values()])) is not None:
                        env = free.pop()
                        running[pool.submit(self._job, job, env)] = (job, env)
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        free.append(running.pop(done)[1])
                        done.result()
        finally:
            for env in clones:
                env.close()

    def _next(self, running: Sequence[int]) -> int | None:
        """The node at which the next job begins: an unfinished one, else the first alternative owed.

        An alternative waits for all paths below its node, since the model will be told how they ended.
        """
        with self.lock:
            if self._out_of_budget():
                return None
            tree = self.state.tree
            for node_id in self.state.open:
                if node_id not in running and not any(self._below(node_id, at) for at in running):
                    return node_id
            # Nodes made by a running job are open, or their ancestors are the job's.
            blocked = {n.id for i in (*running, *self.state.open) for n in tree.path(i)}
            for _, _, node_id in sorted(self.state.pending):
                if node_id not in blocked:
                    return node_id
            if running or self.state.pending:
                return None
            back = self.strategy(self.state)
            if back is not None:
                self._emit({"type": "owe", "node": back})
            return back

    def _below(self, node_id: int, ancestor: int) -> bool:
        return any(node.id == ancestor for node in self.state.tree.path(node_id))

    # --- one path ---------------------------------------------------------------------------------------------------

    def _job(self, start: int, env: Environment) -> None:
        """From a node to the end of its path."""
        spent = Spent()
        cur: Node | None = self.state.tree.nodes[start]
        tools: State = self._restore(start, env)
        while cur is not None and not cur.terminal:
            if cur.depth >= self.config.budget.depth:
                self._end(cur, "exit_depth", env, spent)
                return
            if self._stop():
                return
            anew = not cur.children or self.config.strategy == "restart"  # independent of what was tried
            choice = self._act(cur, env, spent) if anew else self._again(cur, env, spent)
            if choice is None:
                return
            cur, tools = self._step(cur, choice, env, tools, spent)

    def _act(self, cur: Node, env: Environment, spent: Spent) -> Choice | None:
        """The model's next action; None where the path ends without one."""
        start = len(cur.children) * 100  # samples of a new run from the same node are others
        response, exit = ask(
            self.model, self.prompts, self.state.tree, cur.id, self.config, spent.add, self._stop, start
        )
        if response is None:
            if exit == "stopped":
                self._emit({"type": "spent", **spent.take()})
            else:
                self._end(cur, exit, env, spent)
            return None
        assert response.call is not None
        return Choice(response.call, list(response.content), response.text)

    def _again(self, cur: Node, env: Environment, spent: Spent) -> Choice | None:
        """A replacement for the actions tried at ``cur``; None, with the slot dropped, where there is none."""
        drawn: Drawn = resample(
            self.model, self.critic or self.model, self.prompts, self.state.tree, cur.id, self.tools, self.config,
            spent.add, self._stop,
        )  # fmt: skip
        if drawn.choice is None:
            if drawn.stopped:
                self._emit({"type": "spent", **spent.take()})
            else:
                self._emit({"type": "exhausted", "node": cur.id, "rejected": drawn.rejected, **spent.take()})
        return drawn.choice

    def _step(
        self, cur: Node, choice: Choice, env: Environment, tools: State, spent: Spent
    ) -> tuple[Node | None, State]:
        """Execute an action and make the node it leads to."""
        began = self.clock()
        call = choice.call
        tool = self.tools.get(call.name)
        kind = tool.kind if tool is not None else "other"
        with self.lock:
            index = len(cur.children)
        first = index == 0
        opens = (
            first
            and self.config.strategy == "dars"
            and self.config.kind_source == "tool"
            and self.policy.should_expand(kind, cur.history, cur.remaining)
        )
        snapshot = ""
        if opens and not (cur.snapshot and env.knows(cur.snapshot)):
            snapshot = env.snapshot()  # before the action: the state an alternative has to start from
        seen = self._execute(tool, call, env, tools)
        if self.config.kind_source == "effect" and kind != "submit":
            kind = "other"  # kinds by effect are not told apart yet
        replaces = not first and self.config.strategy != "restart"
        history = cur.history if not replaces else (*cur.history, self.state.tree.nodes[cur.children[0]].kind)
        remaining = dict(cur.remaining)
        if opens:
            remaining[kind] -= 1
        terminal = kind == "submit"
        reached = env.snapshot() if env.cheap_snapshots else ""
        flags = [*choice.flags, *(["failed"] if seen.failed else []), *(["volatile"] if seen.volatile else [])]
        state_hash = env.state_hash()
        if self.config.dedupe.states and replaces and not terminal:
            siblings = (self.state.tree.nodes[i] for i in cur.children)
            if any(s.state_hash == state_hash and not s.terminal for s in siblings) and not seen.failed:
                flags.append("transposed")
        node = Node(
            id=-1, parent=cur.id, child_index=index, kind=kind, tool=call.name, args=dict(call.input),
            thought=choice.text, assistant=choice.content, observation=seen.text, snapshot=reached,
            state_hash=state_hash, state=dict(tools), history=history,
            remaining=remaining, depth=cur.depth + 1, terminal=terminal or "transposed" in flags,
            exit="submit" if terminal else "transposed" if "transposed" in flags else "", flags=flags,
            usage=spent.usage, cost_usd=spent.cost_usd, wall_s=self.clock() - began, t_start=began,
            patch=env.diff() if terminal else "", expansion=choice.expansion,
        )  # fmt: skip
        event: Event = {
            "type": "step", "pushed": self.policy.num_expansions - 1 if opens else 0, "parent_snapshot": snapshot,
        }  # fmt: skip
        with self.lock:
            node.id = len(self.state.tree)  # ids count the nodes
            made = self._emit({**event, "node": node.record(), **spent.take()})
        return made, tools

    def _execute(self, tool: Tool | None, call: ToolCall, env: Environment, tools: State) -> Observation:
        if tool is None:
            known = ", ".join(sorted(self.tools))
            return Observation(f"There is no tool {call.name!r}; there are {known}.", failed=True)
        try:
            return tool.run(env, call.input, tools)
        except EnvError as error:
            return Observation(str(error), failed=True)

    # --- states -----------------------------------------------------------------------------------------------------

    def _restore(self, node_id: int, env: Environment) -> State:
        """Put the workspace into the state of a node; from the nearest snapshot above, actions below it run again."""
        path = self.state.tree.path(node_id)
        known = max(i for i, node in enumerate(path) if node.snapshot and env.knows(node.snapshot))
        env.restore(path[known].snapshot)
        tools: State = dict(path[known].state)
        for node in path[known + 1 :]:
            self._execute(self.tools.get(node.tool), ToolCall(node.tool, node.args), env, tools)
        return tools

    def _end(self, node: Node, exit: str, env: Environment, spent: Spent) -> None:
        patch = env.diff() if self.config.harvest_unsubmitted else ""
        self._emit({"type": "end", "node": node.id, "exit": exit, "patch": patch, **spent.take()})

    # --- budget -----------------------------------------------------------------------------------------------------

    def _stop(self) -> bool:
        with self.lock:
            return self._out_of_budget()

    def _out_of_budget(self) -> bool:
        budget, state = self.config.budget, self.state
        if not self.stopped:
            if state.steps >= budget.steps:
                self.stopped = "steps"
            elif budget.calls is not None and state.calls >= budget.calls:
                self.stopped = "calls"
            elif budget.cost_usd is not None and (state.cost_usd or 0.0) >= budget.cost_usd:
                self.stopped = "cost"
            elif budget.wall_s is not None and self.clock() - self._started >= budget.wall_s:
                self.stopped = "wall time"
        return bool(self.stopped)

    def _emit(self, event: Event) -> Node | None:
        with self.lock:
            if self.log is not None:
                self.log(event)
            return self.state.apply(event)
