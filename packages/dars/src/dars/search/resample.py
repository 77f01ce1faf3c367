"""Another action where one was tried: tell what followed, draw candidates, drop repetitions, let a critic choose."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..aci.base import Tool
from ..config import DarsConfig
from ..models.base import Block, ChatModel, Message, ModelRequest, ModelResponse, ToolCall
from ..tree import Node, Tree
from .turns import Prompts, messages, with_text

ANSWER = {
    "type": "object",
    "properties": {
        "scores": {"type": "array", "items": {"type": "integer"}},
        "notes": {"type": "array", "items": {"type": "string"}},
        "index": {"type": "integer"},
    },
    "required": ["scores", "notes", "index"],
    "additionalProperties": False,
}


@dataclass
class Choice:
    """An action to execute, with the assistant's turn it came in."""

    call: ToolCall
    content: list[Block]
    text: str = ""
    expansion: dict[str, Any] | None = None
    flags: list[str] = field(default_factory=list)


@dataclass
class Drawn:
    """What came of drawing: a choice, or none since all were rejected or the budget ended (``stopped``)."""

    choice: Choice | None
    rejected: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False


def resample(
    model: ChatModel,
    critic: ChatModel,
    prompts: Prompts,
    tree: Tree,
    node_id: int,
    tools: Mapping[str, Tool],
    config: DarsConfig,
    spent: Callable[[ModelResponse], None],
    stop: Callable[[], bool],
) -> Drawn:
    """A replacement for the actions tried at a node.

    Samples are numbered through all alternatives of the node: those of alternative j begin at
    (j - 1) k (1 + retries), so that they are a function of the path and not of the order of the search.
    """
    node = tree.nodes[node_id]
    tried = tree.children(node_id)
    place = tree.indices(node_id)

    def condense(one: Mapping[str, Any], number: int) -> str:
        if stop():
            return ""
        text = prompts.render("summary", issue=prompts.issue, attempt=one)
        asked: list[Message] = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        response = model.complete(
            ModelRequest(
                "summarize", place, number, messages=asked, max_tokens=config.max_tokens, temperature=model.greedy
            )
        )
        spent(response)
        return response.text

    def counted(response: ModelResponse) -> bool:
        spent(response)
        return not stop()

    told = feedback(prompts, tree, node_id, config, condense if config.feedback.summarize else None)
    turns = messages(tree, node_id, prompts, config.history)
    turns = with_text(turns, told) if told else turns
    identity = prompt_hash(prompts.system, turns)
    seen = {canonical(ToolCall(child.tool, child.args), tools) for child in tried}
    candidates: list[tuple[ToolCall, ModelResponse]] = []
    rejected: list[dict[str, Any]] = []
    k, rounds = config.candidates.k, 1 + config.candidates.retries
    start = (len(tried) - 1) * k * rounds
    limit = config.max_tokens
    for again in range(rounds):
        if stop():
            return Drawn(None, rejected, stopped=True)
        requests = []
        for i in range(k):
            asked = turns
            if (config.candidates.diversity and not model.capabilities.temperature and k > 1) or again:
                asked = with_text(turns, prompts.render("diversity", number=i + 1, of=k, again=again > 0) or "")
            requests.append(
                ModelRequest(
                    "candidate", place, start + again * k + i, prompts.system, asked, prompts.tools,
                    limit, config.candidates.temperature if model.capabilities.temperature else None,
                    long_lived=2 * node.depth,
                )
            )  # fmt: skip
        responses = model.complete_many(requests, more=counted)
        if len(responses) < k:
            return Drawn(None, rejected, stopped=True)
        for response in responses:
            if response.stop == "max_tokens":  # of a call too the end may be missing
                limit = 2 * config.max_tokens
                rejected.append({"reason": "cut off at the limit of tokens", "text": response.text[:200]})
                continue
            if response.call is None:
                rejected.append({"reason": "no tool call", "text": response.text[:200]})
                continue
            key = canonical(response.call, tools)
            if config.dedupe.actions and key in seen:
                rejected.append({"reason": "repeats an earlier action", "tool": response.call.name})
                continue
            candidates.append((response.call, response))
        if candidates:
            break
    if not candidates:
        return Drawn(None, rejected)
    verdict = _judge(critic, prompts, tree, node, candidates, config, spent, stop)
    if verdict is None:  # drawn again when the search goes on: what is chosen must not depend on when it was cut off
        return Drawn(None, rejected, stopped=True)
    call, response = candidates[verdict["index"]]
    expansion = {
        "prompt_hash": identity,
        "candidates": [{"tool": c.name, "args": c.input, "text": r.text} for c, r in candidates],
        "rejected": rejected,
        "critic": verdict,
        **({"feedback": told} if told else {}),
        **({"kept_feedback": told} if told and config.feedback.keep else {}),
    }
    flags = ["critic_fallback"] if verdict["fallback"] else []
    return Drawn(Choice(call, list(response.content), response.text, expansion, flags), rejected)


def prompt_hash(system: str, turns: Sequence[Message]) -> str:
    """SHA-256 of what candidates are drawn from, before the instruction that sets each of them apart."""
    text = json.dumps([system, turns], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def feedback(
    prompts: Prompts,
    tree: Tree,
    node_id: int,
    config: DarsConfig,
    condense: Callable[[Mapping[str, Any], int], str] | None = None,
) -> str:
    """What the model is told of the attempts at a node; by the kind of the first one.

    condense : (attempt, its number) -> summary, which then stands in place of the attempt's steps.
    """
    if not config.feedback.enabled:
        return ""
    tried = tree.children(node_id)
    tried = tried if config.feedback.all_siblings else tried[:1]
    kind = tried[0].kind
    told = [attempt(tree, child, config, follows(tree, node_id)) for child in tried]
    if condense is not None:
        told = [{**one, "summary": condense(one, i)} if one["steps"] else one for i, one in enumerate(told)]
    return prompts.render("feedback", kind=kind, attempts=told)


def follows(tree: Tree, node_id: int) -> bool:
    """Whether the model is told what followed from the actions at a node: not for reproductions and submissions."""
    return tree.children(node_id)[0].kind not in ("create", "submit")


def attempt(tree: Tree, child: Node, config: DarsConfig, follow: bool = True) -> dict[str, Any]:
    """An action and, if it is to be followed, what came of it along first children: the forward trajectory."""
    line = list(tree.first_line(child.id))[: config.feedback.lookahead + 1] if follow else []
    last = config.feedback.obs_chars
    return {
        "tool": child.tool,
        "args": child.args,
        "steps": [{"tool": n.tool, "args": n.args, "observation": n.observation[-last:]} for n in line],
        "patch": line[-1].patch if line and line[-1].exit == "submit" else "",
    }


def canonical(call: ToolCall, tools: Mapping[str, Tool]) -> str:
    """Equal for actions that do the same: arguments in one order, Python by its syntax tree where it parses."""
    tool = tools.get(call.name)
    code = tool.code_arguments if tool is not None else ()
    args = {
        key: _syntax(value) if key in code and isinstance(value, str) else value for key, value in call.input.items()
    }
    return json.dumps([call.name, args], sort_keys=True, ensure_ascii=False)


def _syntax(text: str) -> str:
    try:
        return ast.dump(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _judge(
    critic: ChatModel,
    prompts: Prompts,
    tree: Tree,
    node: Node,
    candidates: Sequence[tuple[ToolCall, ModelResponse]],
    config: DarsConfig,
    spent: Callable[[ModelResponse], None],
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """{reply, index, fallback}: which candidate to take; the first, marked as a fallback, if no index can be read.

    None where the budget ends first.
    """
    if len(candidates) == 1:
        return {"reply": "", "index": 0, "fallback": False}
    shown = [{"tool": call.name, "args": call.input, "text": response.text} for call, response in candidates]
    full = config.critic.context == "full"
    # In the agent's own history the attempts stand in the feedback; a critic of its own has to be told.
    follow = not full and follows(tree, node.id)
    told = [attempt(tree, child, config, follow) for child in tree.children(node.id)]
    told = told if config.feedback.all_siblings else told[:1]
    text = prompts.render("critic", issue=prompts.issue, attempts=told, candidates=shown, full=full)
    if full:
        turns = with_text(messages(tree, node.id, prompts, config.history), text)
    else:
        turns = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    reply = ""
    for sample in range(2):
        if stop():
            return None
        response = critic.complete(
            ModelRequest(
                "critic", tree.indices(node.id), 2 * (len(node.children) - 1) + sample, prompts.system if full else "",
                turns, prompts.tools if full else (), config.max_tokens, critic.greedy,
                schema=None if full else ANSWER,
            )
        )  # fmt: skip
        spent(response)
        reply = response.text
        index = _index(response, len(candidates))
        if index is not None:
            return {"reply": reply, "index": index, "fallback": False}
    return {"reply": reply, "index": 0, "fallback": True}


def _index(response: ModelResponse, count: int) -> int | None:
    if response.call is not None:
        return None
    try:
        value = json.loads(response.text)
        index = value["index"] if isinstance(value, dict) else value
    except (ValueError, KeyError):
        found = re.search(r"<index>\s*(-?\d+)\s*</index>", response.text)
        index = int(found[1]) if found else None
    valid = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count
    return index if valid else None
