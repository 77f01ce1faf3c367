"""The search (arXiv:2503.14269, section 3): walk a path to its end, then go back to the shallowest open decision.

One job is one path, from an unfinished node or from an alternative that is owed, to its end. A single worker takes jobs
in the canonical order; several take what no running job can still change, each with a workspace of its own. What
happens at a node depends on the path to it alone, so that without a binding budget the set of nodes is always the same.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ..aci.base import State, Tool
from ..aci.effects import contents, effect_kind
from ..config import DarsConfig
from ..env.base import Environment
from ..errors import EnvError, ModelError
from ..models.base import NOTHING, ChatModel, ModelRequest, ModelResponse, ToolCall, Usage, add_costs, answered
from ..policy import KINDS
from ..tree import Node, Tree
from .resample import Choice, Drawn, follows, resample
from .restore import execute, restore
from .state import PAUSED, SearchState
from .strategies import make_strategy
from .turns import Prompts, ask

Event = dict[str, Any]
Files = Mapping[str, bytes]
SENTINEL = "submit"  # the whole command, of an agent that has nothing but a shell


@dataclass
class Spent:
    """What a job used since its last event."""

    calls: int = 0
    usage: Usage = NOTHING
    cost_usd: float | None = 0.0
    cache_misses: Counter[str] = field(default_factory=Counter)

    def add(self, response: ModelResponse) -> None:
        """Count one response."""
        self.calls += 1
        self.usage += response.usage
        self.cost_usd = add_costs(self.cost_usd, response.cost_usd)
        if response.cache_miss:
            self.cache_misses[response.cache_miss] += 1

    def take(self) -> Event:
        """As fields of an event, and start again."""
        event: Event = {"calls": self.calls, "usage": list(self.usage), "cost_usd": self.cost_usd}
        if self.cache_misses:
            event["cache_misses"] = dict(self.cache_misses)
        self.calls, self.usage, self.cost_usd, self.cache_misses = 0, NOTHING, 0.0, Counter()
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
    value : value(leaf, spent) in [0, 1], for strategies that need one; ``spent`` takes every response of a model.
    interrupted : asked before every call of a model; True ends the search there.
    """

    model: ChatModel
    env: Environment
    tools: Mapping[str, Tool]
    prompts: Prompts
    config: DarsConfig = field(default_factory=DarsConfig)
    critic: ChatModel | None = None
    log: Callable[[Event], None] | None = None
    state: SearchState = field(default_factory=SearchState)
    value: Callable[[Node, Callable[[ModelResponse], None]], float] | None = None
    clock: Callable[[], float] = time.monotonic
    interrupted: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.policy = self.config.policy.build()
        self.strategy = make_strategy(self.config, None if self.value is None else self._value)
        self.state.order = self.config.order
        self.lock = threading.RLock()
        self._news: SimpleQueue[None] = SimpleQueue()
        self._spending: list[Spent] = []  # what no event has told yet counts against the budget too
        self.stopped = ""  # why no further model call may be made
        self._started = self.clock()
        root = self.state.tree.root
        if not root.state_hash:
            begun = {"snapshot": self.env.snapshot(), "state_hash": self.env.state_hash()}
            self.emit({"type": "root", **begun, "remaining": dict(self.policy.limits)})
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
                        future = pool.submit(self._job, job, env)
                        running[future] = (job, env)
                        future.add_done_callback(lambda _: self._news.put(None))
                    if not running:
                        return
                    self._news.get()  # a path ended, or an alternative is owed that may begin beside it
                    for done in [future for future in running if future.done()]:
                        free.append(running.pop(done)[1])
                        done.result()
        finally:
            for env in clones:
                env.close()

    def _next(self, running: Sequence[int]) -> int | None:
        """The node at which the next job begins: an unfinished one, else the first alternative owed.

        An alternative waits for all paths below its node if the model will be told how they ended.
        """
        with self.lock:
            if self.out_of_budget():
                return None
            tree = self.state.tree
            for node_id in self.state.forks:  # what a person asked for comes first
                if node_id not in running:
                    return node_id
            for node_id in self.state.open:
                if node_id not in running and not any(self._below(node_id, at) for at in running):
                    return node_id
            # Nodes made by a running job are open, or their ancestors are the job's.
            blocked = {n.id for i in (*running, *self.state.open) for n in tree.path(i)}
            for _, _, node_id in sorted(self.state.pending):
                alone = not follows(tree, node_id) and node_id not in running
                if node_id not in blocked or alone:
                    return node_id
            if running or self.state.pending:
                return None
            back = self.strategy(self.state)
            if back is not None:
                paused = tree.nodes[back].exit == PAUSED
                self.emit({"type": "reopen" if paused else "owe", "node": back})
            return back

    def _below(self, node_id: int, ancestor: int) -> bool:
        return any(node.id == ancestor for node in self.state.tree.path(node_id))

    # --- one path ---------------------------------------------------------------------------------------------------

    def _job(self, start: int, env: Environment) -> None:
        """From a node to the end of its path; a workspace that fails ends the path, not the search."""
        cur = self.state.tree.nodes[start]
        with self.spending() as spent:
            try:
                self._walk(cur, start, env, spent)
            except BaseException:
                self.stopped = self.stopped or "failed"  # no other path goes on
                raise

    def _walk(self, cur: Node, start: int, env: Environment, spent: Spent) -> None:
        try:
            tools: State = restore(self.state.tree, start, env, self.tools)
            files: Files = contents(env) if self.config.kind_source == "effect" else {}
            while not cur.terminal:
                if cur.depth >= self.config.budget.depth:
                    self._end(cur, "exit_depth", env, spent)
                    return
                if self._far(cur):
                    self.emit({"type": "pause", "node": cur.id}, spent)
                    return
                if self.out_of_budget():
                    return
                choice = self._choose(cur, env, spent)
                if choice is None:
                    return
                cur, tools, files = self._step(cur, choice, env, tools, files, spent)
        except EnvError as error:
            self._fail(cur, error, spent)
        except ModelError:
            self.emit({"type": "spent"}, spent)  # paid for, although the search ends here
            raise

    def _choose(self, cur: Node, env: Environment, spent: Spent) -> Choice | None:
        """The next action; None where the path ends, or an alternative is not to be had."""
        fork = self.state.forks.get(cur.id)
        if fork is not None and fork["action"]:
            given = fork["action"]
            response = answered(ToolCall(given["name"], given["input"]), _place(self.state.tree, cur), "fork")
            assert response.call is not None
            return Choice(response.call, list(response.content), flags=["forked"])
        if fork is not None and fork["hint"]:
            return self._act(cur, env, spent, fork["hint"])
        if not cur.children or self.config.strategy == "restart":  # independent of what was tried
            return self._act(cur, env, spent)
        return self._again(cur, env, spent)

    def _act(self, cur: Node, env: Environment, spent: Spent, hint: str = "") -> Choice | None:
        """The model's next action; None where the path ends without one."""
        start = len(cur.children) * 100  # samples of a new run from the same node are others
        response, exit = ask(
            self.model, self.prompts, self.state.tree, cur.id, self.config, spent.add, self.out_of_budget, start, hint
        )
        if response is None:
            if exit == "stopped":
                self.emit({"type": "spent"}, spent)
            elif cur.children:
                self.emit({"type": "exhausted", "node": cur.id, "rejected": [{"reason": exit}]}, spent)
            else:
                self._end(cur, exit, env, spent)
            return None
        assert response.call is not None
        return Choice(response.call, list(response.content), response.text, flags=["forked"] if hint else [])

    def _again(self, cur: Node, env: Environment, spent: Spent) -> Choice | None:
        """A replacement for the actions tried at ``cur``; None, with the slot dropped, where there is none."""
        drawn: Drawn = resample(
            self.model, self.critic or self.model, self.prompts, self.state.tree, cur.id, self.tools, self.config,
            spent.add, self.out_of_budget,
        )  # fmt: skip
        if drawn.choice is None:
            if drawn.stopped:
                self.emit({"type": "spent"}, spent)
            else:
                self.emit({"type": "exhausted", "node": cur.id, "rejected": drawn.rejected}, spent)
        return drawn.choice

    def _step(
        self, cur: Node, choice: Choice, env: Environment, tools: State, files: Files, spent: Spent
    ) -> tuple[Node, State, Files]:
        """Execute an action and make the node it leads to."""
        began = self.clock()
        call = choice.call
        tool = self.tools.get(call.name)
        kind = tool.kind if tool is not None else "other"
        by_effect = self.config.kind_source == "effect"
        with self.lock:
            index = len(cur.children)
        first = index == 0
        expands = first and self.config.strategy == "dars"
        worth = {k for k in KINDS if expands and self.policy.should_expand(k, cur.history, cur.remaining)}
        snapshot = ""
        # Before the action: the state an alternative has to start from. What an effect will be is not known yet.
        if (worth if by_effect else kind in worth) and not (cur.snapshot and env.knows(cur.snapshot)):
            snapshot = env.snapshot()
        seen = execute(self.tools, call, env, tools)
        if by_effect and kind != "submit":
            before, files = files, contents(env)
            sentinel = str(call.input.get("command", "")).strip() == SENTINEL
            kind = "submit" if sentinel else effect_kind(before, files)
        opens = kind in worth
        replaces = not first and self.config.strategy != "restart"
        history = cur.history if not replaces else (*cur.history, self.state.tree.nodes[cur.children[0]].kind)
        remaining = dict(cur.remaining)
        if opens:
            remaining[kind] -= 1
        terminal = kind == "submit"
        reached = env.snapshot() if env.cheap_snapshots else ""
        flags = [*choice.flags, *(["failed"] if seen.failed else []), *(["volatile"] if seen.volatile else [])]
        state_hash = env.state_hash()
        changed = state_hash != cur.state_hash  # else only what was seen is new, and that is on this path alone
        asked = cur.id in self.state.forks  # by a person
        if self.config.dedupe.states and replaces and changed and not (terminal or seen.failed or asked):
            siblings = (self.state.tree.nodes[i] for i in cur.children)
            if any(s.state_hash == state_hash and not s.terminal for s in siblings):
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
            made = self.emit({**event, "node": node.record()}, spent)
        assert made is not None
        return made, tools, files

    def _far(self, cur: Node) -> bool:
        """Whether a rollout of "mcts" is long enough."""
        limit = self.config.rollout
        began = self.state.began.get(cur.id, cur.depth)
        return self.config.strategy == "mcts" and limit is not None and cur.depth - began >= limit

    def _fail(self, cur: Node, error: EnvError, spent: Spent) -> None:
        """The workspace failed at a node: its path ends, or the alternative that was to begin there is dropped."""
        if cur.children:
            dropped = [{"reason": f"exit_env: {error}"}]
            self.emit({"type": "exhausted", "node": cur.id, "rejected": dropped}, spent)
        else:
            self.emit({"type": "end", "node": cur.id, "exit": "exit_env", "detail": str(error)}, spent)

    # --- states -----------------------------------------------------------------------------------------------------

    def unfinished(self, env: Environment) -> None:
        """Note at the ends of paths that the budget cut off, or that were paused, what had been changed there.

        This is not an event: a search that goes on goes on from these ends.
        """
        paused = [leaf.id for leaf in self.state.tree.leaves() if leaf.exit == PAUSED]
        for node_id in (*self.state.open, *paused):
            node = self.state.tree.nodes[node_id]
            node.exit = "exit_budget"
            if self.config.harvest_unsubmitted and node.depth:
                restore(self.state.tree, node_id, env, self.tools)
                node.patch = env.diff()

    def _end(self, node: Node, exit: str, env: Environment, spent: Spent) -> None:
        patch = env.diff() if self.config.harvest_unsubmitted else ""
        self.emit({"type": "end", "node": node.id, "exit": exit, "patch": patch}, spent)

    def _value(self, leaf: Node) -> float:
        """What a leaf is worth, asked once."""
        if leaf.id not in self.state.values:
            assert self.value is not None
            with self.spending() as spent:
                worth = self.value(leaf, spent.add)
                self.emit({"type": "value", "node": leaf.id, "value": worth}, spent)
        return self.state.values[leaf.id]

    # --- budget -----------------------------------------------------------------------------------------------------

    def out_of_budget(self) -> bool:
        """Whether no further call of a model may be made; ``stopped`` says why."""
        with self.lock:
            budget, state = self.config.budget, self.state
            steps, calls, cost = state.before
            calls -= sum(spent.calls for spent in self._spending)
            cost -= sum(spent.cost_usd or 0.0 for spent in self._spending)
            if self.stopped:
                return True
            if self.interrupted():
                self.stopped = "interrupted"
            elif state.steps - steps >= budget.steps:
                self.stopped = "steps"
            elif budget.calls is not None and state.calls - calls >= budget.calls:
                self.stopped = "calls"
            elif budget.cost_usd is not None and (state.cost_usd or 0.0) - cost >= budget.cost_usd:
                self.stopped = "cost"
            elif budget.wall_s is not None and self.clock() - self._started >= budget.wall_s:
                self.stopped = "wall time"
            return bool(self.stopped)

    @contextmanager
    def spending(self) -> Iterator[Spent]:
        """What counts the calls of one piece of work, against the budget from the first on."""
        spent = Spent()
        with self.lock:
            self._spending.append(spent)
        try:
            yield spent
        finally:
            with self.lock:
                self._spending = [other for other in self._spending if other is not spent]

    def emit(self, event: Event, spent: Spent | None = None) -> Node | None:
        """Log an event, with what was spent on it, and take it in; returns the node of a step."""
        with self.lock:
            event = event if spent is None else {**event, **spent.take()}
            if self.log is not None:
                self.log(event)
            made = self.state.apply(event)
        if event.get("pushed"):
            self._news.put(None)
        return made


def _place(tree: Tree, node: Node) -> ModelRequest:
    """The place of an action that nobody was asked for, from which its id is made."""
    return ModelRequest("act", tree.indices(node.id), len(node.children))
