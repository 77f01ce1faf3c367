"""E5: what a tree costs under three ways to shorten its history, by the ledger of a server that caches prefixes.

The same scripted tree is searched through the real SDK against :class:`dars.testing.FakeMessagesServer`. Blockwise
elision is ours, the last five observations are the paper's.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..aci.base import Observation, Tool
from ..config import BudgetSection, DarsConfig, HistorySection
from ..env.memory import MemoryEnvironment
from ..models.base import ToolCall, Usage
from ..models.registry import read_rows
from ..prompts import make_prompts
from ..search import Engine
from ..testing import FakeMessagesServer
from ..tree import Tree
from .plots import draw_ledger
from .profiles import Profile
from .report import DERIVED, TARGET, Artifact, Claim, Comparison, Experiment, Metric
from .skeletons import STAGES

MODEL = "claude-sonnet-5-5"
KINDS = ("input", "written for 5 min", "written for 1 h", "read", "output")
PEER = {"last_n": "last 5 observations (paper)", "full": "full history"}
CENT = 0.01


@dataclass(frozen=True)
class Ledger:
    """One search: its tree, what it believes to have spent, what the server counted, and all requests."""

    tree: Tree
    cost_usd: float
    usage: Usage
    served: Usage
    bodies: list[dict[str, Any]]
    fresh: list[int]  # input tokens of each request that were not read from the cache

    @property
    def dollars(self) -> list[float]:
        """Of each of KINDS, by the price row and nothing else of the package."""
        row = read_rows()[MODEL]
        assert row.input is not None
        assert row.output is not None
        a, b = row.input / 1e6, row.output / 1e6
        used = self.served
        return [
            a * used.input, 1.25 * a * used.cache_write_5m, 2 * a * used.cache_write_1h, 0.1 * a * used.cache_read,
            b * used.output,
        ]  # fmt: skip


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Ledgers of the three histories on the same tree."""
    high, low = profile.ledger_high, profile.ledger_low
    histories = {
        "blockwise": HistorySection(mode="blockwise", high=high, low=low),
        "last_n": HistorySection(mode="last_n", n=5),
        "full": HistorySection(mode="full"),
    }
    found = {name: search(history, profile.ledger_gaps, profile.ledger_chars) for name, history in histories.items()}
    ours, paper = found["blockwise"], found["last_n"]
    skeletons = {ledger.tree.skeleton() for ledger in found.values()}
    calls = len(ours.bodies)
    excess = breaks_over_bound(ours, high - low)
    off = max(abs(round(ledger.cost_usd / CENT) - round(sum(ledger.dollars) / CENT)) for ledger in found.values())
    tokens = sum(abs(a - b) for ledger in found.values() for a, b in zip(ledger.usage, ledger.served, strict=True))
    share = sum(ours.dollars) / sum(paper.dollars)
    setting = (
        f"{len(ours.tree) - 1} actions, {calls} calls, observations of {profile.ledger_chars:,} characters; blockwise "
        f"from {high:,} down to {low:,} tokens, less than by default, as the tree is small"
    )
    experiment = Experiment()
    experiment.claims += [
        Claim(
            id="ledger-same-tree", measured=len(skeletons), op="==", value=1, n=len(found), source=TARGET,
            statement="The three histories are compared on the same tree.", unit="different trees",
        ),
        Claim(
            id="ledger-exact", measured=off, op="==", value=0, n=len(found), unit="cents", source=TARGET,
            statement="What a search says it cost is, to the cent, what the server's tokens cost by the price row.",
            note=", ".join(f"{name} ${ledger.cost_usd:.4f}" for name, ledger in found.items()),
        ),
        Claim(
            id="ledger-tokens", measured=tokens, op="==", value=0, n=sum(len(f.bodies) for f in found.values()),
            statement="Every token that the server counted is in the search's own ledger, in the same column.",
            source=TARGET, unit="tokens that differ",
        ),
        Claim(
            id="prefix-breaks", measured=max(excess), op="<=", value=0, n=len(excess), source=DERIVED,
            statement="On no path does blockwise elision break the prefix more often than total / (high - low) tokens.",
            unit="breaks above the bound", note=f"most on one path: {max(prefix_breaks(ours).values())}",
        ),
        Claim(
            id="blockwise-cheaper", measured=share, op="<", value=1, n=calls, source=DERIVED,
            statement="Blockwise elision makes the tree cheaper than keeping the last five observations.",
            paper="keeps the last 5 observations", unit="share of its cost", note=setting,
        ),
    ]  # fmt: skip
    for name, label in PEER.items():
        peer = found[name]
        experiment.comparisons += [
            Comparison("share of input read from the cache", ours.served.cache_efficiency,
                       peer.served.cache_efficiency, label, "", "higher"),
            Comparison("cost of one tree", sum(ours.dollars), sum(peer.dollars), label, "US$", "lower"),
            Comparison("input tokens not read from cache", sum(ours.fresh), sum(peer.fresh), label, "token", "lower"),
        ]  # fmt: skip
    for name, ledger in found.items():
        most = max(prefix_breaks(ledger).values())
        experiment.metrics.append(Metric(f"prefix breaks on one path, {name}", most, "", "lower"))
    dollars = {name: ledger.dollars for name, ledger in found.items()}
    if draw_ledger(KINDS, dollars, {name: ledger.fresh for name, ledger in found.items()}, out / "ledger.png"):
        experiment.artifacts.append(
            Artifact("ledger.png", "What one tree costs, by kind of token and over its requests")
        )
    return experiment


def search(history: HistorySection, gaps: tuple[int, ...], chars: int) -> Ledger:
    """The tree whose paths go through the four stages with these gaps, by the paper's policy and K = 3."""
    kinds = ["other"] * gaps[0]
    for stage, gap in zip(STAGES, gaps[1:], strict=True):
        kinds += [stage, *["other"] * gap]

    def answer(body: dict[str, Any]) -> Any:
        if not body.get("tools"):
            return json.dumps({"scores": [5, 5, 5], "notes": ["", "", ""], "index": 1})  # the critic
        turns = body["messages"]
        depth = sum(turn["role"] == "assistant" for turn in turns)
        asked = json.dumps(turns[-1]["content"][1:])  # feedback and diversity; nothing at an ordinary turn
        name = hashlib.sha256(asked.encode()).hexdigest()[:8]
        return ToolCall(kinds[depth], {"text": f"{kinds[depth]} {depth} {name}", "why": "as the issue says " * 8})

    def tool(kind: str) -> Tool:
        def act(env: Any, args: Any, state: dict[str, Any]) -> Observation:
            state["path"] = hashlib.sha256(f"{state.get('path')} {args['text']}".encode()).hexdigest()
            if kind != "other":
                env.write_file("log", state["path"].encode())
            return Observation(f"{args['text']}: " + (state["path"] + "\n") * (chars // 65))

        return Tool(kind, {"type": "object"}, kind, act, description=f"does {kind} " * 20)

    tools = {kind: tool(kind) for kind in (*STAGES, "other")}
    config = DarsConfig(history=history, budget=BudgetSection(steps=2_000, depth=200))
    from ..models.anthropic import AnthropicModel  # the SDK takes seconds to import

    with FakeMessagesServer(answer) as server:
        model = AnthropicModel(MODEL, api_key="none", base_url=server.url)
        prompts = make_prompts("The sum of two numbers is wrong. " * 20, list(tools.values()))
        engine = Engine(model, MemoryEnvironment({"log": ""}), tools, prompts, config)
        engine.run()
    state = engine.state
    assert state.cost_usd is not None
    return Ledger(
        state.tree, state.cost_usd, state.usage, server.usage_total, [seen.body for seen in server.requests],
        _fresh(state.tree),
    )  # fmt: skip


def _fresh(tree: Tree) -> list[int]:
    """Input tokens not read from the cache, action by action in the order of the search."""
    nodes = list(tree.nodes.values())[1:]
    return [node.usage.input + node.usage.cache_write_5m + node.usage.cache_write_1h for node in nodes]


def prefix_breaks(ledger: Ledger) -> dict[tuple[str, ...], int]:
    """Path of calls from the root to a leaf -> how often a request did not go on from the one above it.

    From the requests as they arrived: the calls that the assistant's turns hold say where in the tree one was made.
    """
    asked: dict[tuple[str, ...], list[str]] = {}
    for body in ledger.bodies:
        if body.get("tools") and len(body["messages"][-1]["content"]) == 1:  # an ordinary turn
            asked[_calls(body)] = [json.dumps(_plain(turn)) for turn in body["messages"]]
    broken: dict[tuple[str, ...], int] = {}
    for path in sorted(asked, key=len):
        above = asked.get(path[:-1])
        broken[path] = broken.get(path[:-1], 0) + (above is not None and asked[path][: len(above)] != above)
    inner = {path[:-1] for path in broken}
    return {path: count for path, count in broken.items() if path not in inner}


def breaks_over_bound(ledger: Ledger, block: int) -> list[int]:
    """For every path: breaks less the bound of 2.9, ceil(tokens of all its observations / block)."""
    tokens = {node.assistant[0]["id"]: len(node.observation) // 4 for node in list(ledger.tree.nodes.values())[1:]}
    return [
        count - math.ceil(sum(tokens[call] for call in path) / block) for path, count in prefix_breaks(ledger).items()
    ]


def _calls(body: dict[str, Any]) -> tuple[str, ...]:
    turns = (turn["content"] for turn in body["messages"] if turn["role"] == "assistant")
    return tuple(block["id"] for content in turns for block in content if block["type"] == "tool_use")


def _plain(value: Any) -> Any:
    """Without the marks of the cache."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "cache_control"}
    return [_plain(item) for item in value] if isinstance(value, list) else value
