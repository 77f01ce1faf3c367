"""Straight trajectories of SWE-agent (``.traj``) and mini-swe-agent (``.traj.json``) as trees with one leaf."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import TreeFormatError
from ..tree import Node, Tree
from .actions import Action, assistant_turn, parse_action
from .files import Source, between, content, expecting, text_of

NO_MESSAGE: Mapping[str, Any] = {}
FENCE = re.compile(r"```(?:bash|sh|mswea_bash_command)?[ \t]*\n(.*?)\n?```", re.DOTALL)
EXITS = {
    "exit_cost": "exit_budget", "exit_total_execution_time": "exit_budget", "exit_environment_error": "exit_env",
    "LimitsExceeded": "exit_budget", "TimeExceeded": "exit_budget", "RepeatedFormatError": "exit_format",
    "ContextWindowExceededError": "exit_context",
}  # fmt: skip


class Step(NamedTuple):
    """One action and what came of it."""

    action: Action
    thought: str
    observation: str
    cost_usd: float | None = None
    wall_s: float = 0.0


def read_traj(source: Source) -> Tree:
    """A trajectory of SWE-agent, 0.x or 1.x; the price of single steps is not in it and stays unknown.

    Raises
    ------
    TreeFormatError
        The file cannot be read or holds no list of steps.
    """
    name, value = content(source)
    with expecting(name):
        return _agent(value, name)


def _agent(value: Mapping[str, Any], name: str) -> Tree:
    steps = []
    for i, entry in enumerate(_entries(value, "trajectory", name)):
        if "action" not in entry:
            raise TreeFormatError(f"{name}: step {i} has no action")
        text = text_of(entry["action"])
        if text.strip():  # a step without an action only says why the run ended
            seconds = entry.get("execution_time")
            steps.append(
                Step(
                    parse_action(text), text_of(entry.get("thought")).strip(), text_of(entry.get("observation")),
                    wall_s=float(seconds) if isinstance(seconds, (int, float)) else 0.0,
                )
            )  # fmt: skip
    history = _entries(value, "history", name) if value.get("history") else []
    asked = next((m for m in history if m.get("role") == "user" and not m.get("is_demo")), NO_MESSAGE)
    return _straight("traj", name, value, steps, text_of(asked.get("content")))


def read_mini(source: Source) -> Tree:
    """A trajectory of mini-swe-agent, 1.x or 2.x. Its actions are shell commands; the one that ends it submits.

    Raises
    ------
    TreeFormatError
        The file cannot be read or holds no list of messages.
    """
    name, value = content(source)
    with expecting(name):
        return _mini(value, name)


def _mini(value: Mapping[str, Any], name: str) -> Tree:
    messages = _entries(value, "messages", name)
    steps: list[Step] = []
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        commands = _commands(message)
        seen = []
        for later in messages[i + 1 :]:
            if later.get("role") not in ("tool", "user"):
                break
            seen.append(text_of(later.get("content")))
        if len(seen) != len(commands):
            seen = ["\n".join(seen)] + [""] * (len(commands) - 1)
        cost = (message.get("extra") or {}).get("cost")
        for j, command in enumerate(commands):  # a reply without a command was asked again and is no step
            action = Action("other", "bash", {"command": command})
            first = j == 0
            price = (float(cost) if first else 0.0) if isinstance(cost, (int, float)) else None
            steps.append(Step(action, _thought(message) if first else "", seen[j], price))
    info = value.get("info") or {}
    if steps and info.get("exit_status") == "Submitted":
        steps[-1] = steps[-1]._replace(action=steps[-1].action._replace(kind="submit"))
    asked = next((m for m in messages if m.get("role") == "user"), NO_MESSAGE)
    return _straight("mini", name, value, steps, text_of(asked.get("content")))


def _straight(format: str, name: str, value: Mapping[str, Any], steps: list[Step], asked: str) -> Tree:
    info = value.get("info") or {}
    if not isinstance(info, Mapping):
        raise TreeFormatError(f"{name}: info has to be an object")
    tree = Tree(meta={"format": format, "issue": between(asked, "pr_description")})
    for key in ("instance_id", "environment"):
        if isinstance(value.get(key), str):
            tree.meta[key] = value[key]
    if info.get("model_stats"):
        tree.meta["model_stats"] = info["model_stats"]
    for i, step in enumerate(steps, start=1):
        tree.add(
            Node(
                i, i - 1, 0, *step.action, step.thought, assistant_turn(step.thought, step.action, i),
                step.observation, depth=i, cost_usd=step.cost_usd, wall_s=step.wall_s,
            )
        )  # fmt: skip
    if steps:
        leaf = tree.nodes[len(steps)]
        leaf.exit = _exit(text_of(info.get("exit_status")), leaf.kind)
        leaf.terminal = bool(leaf.exit)
        leaf.patch = text_of(info.get("submission"))
    return tree


def _exit(status: str, kind: str) -> str:
    """Theirs in words of this package; "submitted (exit_cost)" was taken at the end of the budget."""
    if not status:
        return "submit" if kind == "submit" else ""
    if status.lower() == "submitted":
        return "submit"
    status = re.sub(r"^submitted \((.*)\)$", r"\1", status)
    known = EXITS.get(status, status)
    return known if known.startswith("exit_") else f"exit_{known}"


def _entries(value: Mapping[str, Any], key: str, name: str) -> list[Mapping[str, Any]]:
    entries = value.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise TreeFormatError(f"{name}: {key} has to be a list of objects")
    return entries


def _commands(message: Mapping[str, Any]) -> list[str]:
    """Commands of an assistant's message: as the agent parsed them, as tool calls, or in its text."""
    parsed = (message.get("extra") or {}).get("actions")
    if parsed:
        return [text_of(action.get("command")) if isinstance(action, Mapping) else str(action) for action in parsed]
    if message.get("tool_calls"):
        return list(_called(message["tool_calls"]))
    return [command.strip() for command in FENCE.findall(text_of(message.get("content")))][:1]


def _called(calls: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for call in calls:
        arguments = (call.get("function") or {}).get("arguments")
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            continue  # the agent refused it too, and asked again
        if isinstance(arguments, Mapping) and "command" in arguments:
            yield text_of(arguments["command"])


def _thought(message: Mapping[str, Any]) -> str:
    return FENCE.sub("", text_of(message.get("content"))).strip()
