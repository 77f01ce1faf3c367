"""Requests: the path as messages, what of it is left out, and asking until an action comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import DarsConfig, HistorySection
from ..models.base import Block, ChatModel, Message, ModelRequest, ModelResponse
from ..tree import Node, Tree

FORMAT_REPLIES = 3
ELIDED = "[observation left out: {lines} lines]"


@dataclass(frozen=True)
class Prompts:
    """What every request begins with.

    Attributes
    ----------
    system, issue : texts.
    tools : declarations, sorted by name, the same in all requests of a search: a prefix cache compares bytes.
    """

    system: str = ""
    issue: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    render: Callable[..., str] = field(default=lambda template, **values: "")


def messages(tree: Tree, node_id: int, prompts: Prompts, history: HistorySection) -> list[Message]:
    """The path to a node: the issue, then an assistant turn with one tool call and its result for every action."""
    path = tree.path(node_id)[1:]
    shown = elide([node.observation for node in path], history)
    out: list[Message] = [{"role": "user", "content": [{"type": "text", "text": prompts.issue}]}]
    for node, text in zip(path, shown, strict=True):
        out.append({"role": "assistant", "content": list(node.assistant)})
        result: Block = {"type": "tool_result", "tool_use_id": _call_id(node), "content": text or "(no output)"}
        content = [result]
        kept = (node.expansion or {}).get("kept_feedback")
        if kept:  # belongs to the turn before the alternative
            out[-2] = {**out[-2], "content": [*out[-2]["content"], {"type": "text", "text": kept}]}
        out.append({"role": "user", "content": content})
    return out


def lasting(tree: Tree, node_id: int, config: DarsConfig) -> int | None:
    """Index of the message up to which a cache should last until alternatives are drawn: a function of the path alone.

    That is the node's own last message while its first action may still open an expansion, since what is cached for a
    short time cannot be made to last later; else the last message of the deepest expanded decision above it.
    """
    if config.strategy != "dars" or config.policy.num_expansions < 2:
        return None
    policy = config.policy.build()
    path = tree.path(node_id)
    node = path[-1]
    if not node.children and any(node.remaining.get(kind, 0) > 0 for kind in policy.allowed(node.history)):
        return 2 * node.depth
    for above, below in zip(path[-2::-1], path[:0:-1], strict=True):
        if below.child_index == 0 and policy.should_expand(below.kind, above.history, above.remaining):
            return 2 * above.depth
    return None


def with_text(turns: Sequence[Message], text: str) -> list[Message]:
    """The same with a further block of text after everything else of the last user turn."""
    last = {**turns[-1], "content": [*turns[-1]["content"], {"type": "text", "text": text}]}
    return [*turns[:-1], last]


def elide(observations: Sequence[str], history: HistorySection) -> list[str]:
    """Observations of a path as they are sent; a pure function of the path, so that siblings share their prefix.

    "last_n" keeps the last n (the paper's; one old message changes at every step). "blockwise" waits until more than
    ``high`` tokens (four characters each) are shown, and then leaves out the oldest down to ``low`` in one go.
    """
    if history.mode == "full":
        return list(observations)
    out = list(observations)
    if history.mode == "last_n":
        for i in range(len(out) - history.n):
            out[i] = _marker(out[i])
        return out
    start, total = 0, 0
    for i, text in enumerate(observations):
        total += len(text) // 4
        if total > history.high:
            while start < i and total > history.low:
                total -= len(observations[start]) // 4
                out[start] = _marker(observations[start])
                start += 1
    return out


def ask(
    model: ChatModel,
    prompts: Prompts,
    tree: Tree,
    node_id: int,
    config: DarsConfig,
    spent: Callable[[ModelResponse], None],
    stop: Callable[[], bool],
    sample: int = 0,
    hint: str = "",
) -> tuple[ModelResponse | None, str]:
    """The next action at a node, or the reason why the path ends ("exit_format", ...; "stopped": the budget did).

    Replies without a tool call are asked again, at most ``FORMAT_REPLIES`` in all; the corrections are in those
    requests only and never become part of the path; nor does a ``hint``, which stands after the last turn. A reply that
    was cut off is asked for once more, with twice the tokens. The temperature is 0 (the paper's) but for "restart",
    whose runs would all be the same.
    """

    def shown(history: HistorySection) -> list[Message]:
        turns = messages(tree, node_id, prompts, history)
        return with_text(turns, hint) if hint else turns

    turns, place, until = shown(config.history), tree.indices(node_id), lasting(tree, node_id, config)
    limit, grown, compacted = config.max_tokens, False, False
    warm = config.strategy == "restart" and model.capabilities.temperature
    temperature = config.candidates.temperature if warm else model.greedy
    extra: list[Message] = []
    replies = 0
    while replies < FORMAT_REPLIES:
        if stop():
            return None, "stopped"
        response = model.complete(
            ModelRequest(
                "act", place, sample, prompts.system, [*turns, *extra], prompts.tools, limit, temperature,
                long_lived=until,
            )
        )  # fmt: skip
        spent(response)
        sample += 1
        if response.call is not None and response.stop != "max_tokens":
            return response, ""
        if response.stop == "refusal":
            return None, "exit_refusal"
        if response.stop == "max_tokens":
            if grown:
                return None, "exit_format"
            limit, grown = 2 * limit, True
            continue
        if response.stop == "context":
            if compacted:
                return None, "exit_context"
            turns = shown(HistorySection(mode="last_n", n=1))
            compacted = True
            continue
        replies += 1
        said = list(response.content) or [{"type": "text", "text": "(nothing)"}]
        extra = [
            {"role": "assistant", "content": said},
            {"role": "user", "content": [{"type": "text", "text": "Answer with exactly one tool call."}]},
        ]
    return None, "exit_format"


def _marker(text: str) -> str:
    return ELIDED.format(lines=text.count("\n") + 1)


def _call_id(node: Node) -> str:
    return next((str(block["id"]) for block in node.assistant if block.get("type") == "tool_use"), f"node_{node.id}")
