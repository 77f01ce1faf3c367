"""What a leaf is worth to a tree search that values its leaves ("mcts"): visible tests that pass, or a judgement."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

from ..aci.testing import PYTEST, run_suite
from ..config import DarsConfig
from ..env.base import Environment
from ..models.base import ChatModel, ModelRequest, ModelResponse
from ..tree import Node, Tree
from .restore import Tools, restore
from .turns import Prompts, messages, with_text

Spend = Callable[[ModelResponse], None]


def passing_share(
    tree: Tree, env: Environment, tools: Tools, command: str | None = None, visible: Sequence[str] = ()
) -> Callable[[Node, Spend], float]:
    """value(leaf): the share of tests that pass in its state; 0 where none could be run.

    visible : the tests to run; all if there are none. ``env`` is used up: give a clone.
    """
    known: dict[str, float] = {}

    def value(leaf: Node, spent: Spend) -> float:
        if leaf.state_hash not in known:
            restore(tree, leaf.id, env, tools)
            done, cases = run_suite(env, {}, command or PYTEST, shlex.join(visible))
            ran = [case for case in cases or () if case.outcome != "skipped"]
            passed = sum(case.outcome == "passed" for case in ran)
            known[leaf.state_hash] = passed / len(ran) if ran else float(cases is None and done.returncode == 0)
        return known[leaf.state_hash]

    return value


def judged(tree: Tree, model: ChatModel, prompts: Prompts, config: DarsConfig) -> Callable[[Node, Spend], float]:
    """value(leaf): the model's 0 to 100 for the path that led there, as a share; 0 where it gives no number."""

    def value(leaf: Node, spent: Spend) -> float:
        turns = with_text(messages(tree, leaf.id, prompts, config.history), prompts.render("value"))
        place = tree.indices(leaf.id)
        response = model.complete(
            ModelRequest("review", place, 0, prompts.system, turns, prompts.tools, config.max_tokens, model.greedy)
        )
        spent(response)
        found = re.search(r"<score>\s*(\d{1,3})\s*</score>", response.text)
        return min(int(found[1]), 100) / 100 if found else 0.0

    return value
