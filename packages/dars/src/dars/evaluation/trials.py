"""One strategy on one MutBench task: searched in memory, counted in calls, graded by the hidden tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..aci.registry import registry
from ..bench.execute import COMMAND
from ..bench.memory import memory_environment
from ..bench.outcomes import Outcomes
from ..candidates import harvest
from ..config import DarsConfig
from ..env.apply import applied
from ..models.base import ChatModel, ModelRequest, ModelResponse
from ..models.repair import RepairModel
from ..prompts import make_prompts
from ..reviewer import Case
from ..search.engine import Engine
from ..search.state import SearchState
from ..search.values import passing_share
from ..task import Task
from ..tree import Tree

RECORDED = 4  # seeds, from 0, of whose searches the shipped table holds the outcomes: others would have to be executed
CHARS_PER_TOKEN = 4
TOOLS = registry(test_command=COMMAND)  # their index of symbols is one for all searches


@dataclass(frozen=True)
class Strategy:
    """What is compared: settings of the search, all else being equal.

    Attributes
    ----------
    settings : fields of :class:`~dars.DarsConfig`.
    again : whether another search with another seed begins when one has ended before the budget.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    again: bool = True


@dataclass(frozen=True)
class Trial:
    """What came of one budget.

    Attributes
    ----------
    resolved_at : calls when the first resolving candidate was submitted; None if none was.
    calls, steps, leaves : of all searches, up to then if it stopped there.
    tokens : read and written if nothing were cached, four characters each.
    expansions : decisions that were expanded.
    """

    resolved_at: int | None
    calls: int
    steps: int
    leaves: int
    tokens: int
    expansions: int

    def within(self, budget: float) -> bool:
        """Whether it was resolved within a number of calls."""
        return self.resolved_at is not None and self.resolved_at <= budget


class Candidates(NamedTuple):
    """The end of one search, ready for a review; ``resolved`` for each candidate."""

    case: Case
    resolved: tuple[bool, ...]


@dataclass
class Counting(ChatModel):
    """A model that counts the tokens of what it is asked and answers."""

    inner: ChatModel
    tokens: int = 0

    def __post_init__(self) -> None:
        self.name, self.capabilities = self.inner.name, self.inner.capabilities

    def complete(self, request: ModelRequest) -> ModelResponse:
        """The inner model's answer."""
        response = self.inner.complete(request)
        written = sum(len(str(block)) for block in response.content)
        read = len(request.system) + sum(_length(message["content"]) for message in request.messages)
        self.tokens += (read + written) // CHARS_PER_TOKEN
        return response


def drawn_seeds(rng: np.random.Generator, n: int) -> list[int]:
    """n different seeds of those whose outcomes are recorded, in order; ValueError if there are not so many."""
    return sorted(int(seed) for seed in rng.choice(RECORDED, size=n, replace=False))


def trial(
    outcomes: Outcomes,
    strategy: Strategy,
    seed: int,
    budget: int,
    model: Mapping[str, Any] | None = None,
    to_the_end: bool = False,
) -> Trial:
    """Search until a submitted candidate resolves the task, or so many calls were made.

    Parameters
    ----------
    model : parameters of :class:`~dars.models.RepairModel`.
    to_the_end : go on after it was resolved.
    """
    resolved_at: int | None = None
    calls = steps = leaves = tokens = expansions = 0
    seeds = itertools.count(1000 * seed)
    while calls < budget and (resolved_at is None or to_the_end):
        asked = Counting(RepairModel(seed=next(seeds), **(model or {})))
        engine = _engine(outcomes, asked, strategy, seed, budget - calls)
        found = _watched(engine, outcomes, to_the_end)
        engine.run()
        state = engine.state
        if found and resolved_at is None:
            resolved_at = calls + found[0]
        calls, steps, tokens = calls + state.calls, steps + state.steps, tokens + asked.tokens
        leaves, expansions = leaves + len(state.tree.leaves()), expansions + len(state.expansions)
        if not strategy.again:
            break
    return Trial(resolved_at, calls, steps, leaves, tokens, expansions)


def _watched(engine: Engine, outcomes: Outcomes, to_the_end: bool) -> list[int]:
    """Calls at which resolving candidates were submitted, filled while the engine runs; the first one may end it."""
    found: list[int] = []

    def look(event: dict[str, Any]) -> None:
        submitted = event["type"] == "step" and event["node"]["exit"] == "submit" and event["node"]["patch"]
        if submitted and resolves(outcomes, submitted):
            found.append(engine.state.calls + event["calls"])

    engine.log = look
    if not to_the_end:
        engine.interrupted = lambda: bool(found)
    return found


def searched(outcomes: Outcomes, strategy: Strategy, seed: int, budget: int) -> Tree:
    """The tree of one search."""
    engine = _engine(outcomes, RepairModel(seed=1000 * seed), strategy, seed, budget)
    engine.run()
    return engine.state.tree


def candidates(outcomes: Outcomes, strategy: Strategy, seed: int, budget: int) -> Candidates:
    """One search to its end, and which of its candidates resolve the task."""
    engine = _engine(outcomes, RepairModel(seed=1000 * seed), strategy, seed, budget)
    engine.run()
    env, tree = engine.env, engine.state.tree
    engine.unfinished(env)
    env.restore(tree.root.snapshot)
    found = harvest(tree, env.list_files())
    resolved = tuple(resolves(outcomes, candidate.patch) for candidate in found)
    return Candidates(Case(task_of(outcomes), found, tree, env, tree.root.snapshot), resolved)


def resolves(outcomes: Outcomes, patch: str) -> bool:
    """Whether all tests pass, hidden ones too, once a patch is applied."""
    return outcomes.resolved(applied(outcomes.base, patch))


def resolving(outcomes: Outcomes, tree: Tree) -> list[int]:
    """Leaves of a tree whose patch resolves the task."""
    return [leaf.id for leaf in tree.leaves() if leaf.patch and resolves(outcomes, leaf.patch)]


def task_of(outcomes: Outcomes) -> Task:
    """The task as reviewers see it; its repository is in memory."""
    task = outcomes.task
    return Task(None, task.issue, task.id, image="memory", test_command=COMMAND, visible_tests=task.visible)


def _engine(outcomes: Outcomes, model: ChatModel, strategy: Strategy, seed: int, calls: int) -> Engine:
    budget = {"steps": 10 * calls, "depth": 50, "calls": calls}
    config = DarsConfig.model_validate({"seed": seed, "budget": budget, **strategy.settings})
    env = memory_environment(outcomes.task, outcomes)
    state = SearchState(order=config.order)
    prompts = make_prompts(outcomes.task.issue, list(TOOLS.values()), COMMAND, config.prompts_dir)
    value = passing_share(state.tree, env.clone(), TOOLS, COMMAND) if config.strategy == "mcts" else None
    return Engine(model, env, TOOLS, prompts, config, state=state, value=value)


def _length(content: Any) -> int:
    return len(content) if isinstance(content, str) else sum(len(str(block)) for block in content)
