"""What the engine itself costs: time and bytes for each step, memory for each node, and what several workers save.

The trees are those of scripted models in memory, so that nothing but the package is measured.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..aci.base import Observation, Tool
from ..config import BudgetSection, CandidatesSection, DarsConfig
from ..env.memory import MemoryEnvironment
from ..models.base import ModelRequest, ScriptedModel, ToolCall
from ..runs import search
from ..search.resample import follows
from ..search.state import SearchState
from ..storage import BLOBS, EVENTS
from ..tree import Tree
from .profiles import Profile
from .report import TARGET, Claim, Comparison, Experiment, Metric, bootstrap_interval
from .skeletons import GAPS, STAGES

LOG_GAPS = (24, 4, 20, 32, 0)  # some 300 steps by the paper's policy
ISSUE = "The sum of two numbers is wrong."
MB = 1e6
NODES = 1_000  # that memory is stated for
WORKERS = 4
DEEP = 10_000


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """All costs."""
    experiment = Experiment()
    with tempfile.TemporaryDirectory(prefix="dars-eval-") as folder:
        _log(experiment, profile, rng, Path(folder))
        _memory(experiment, profile, Path(folder))
    _workers(experiment, profile, rng)
    return experiment


def _log(experiment: Experiment, profile: Profile, rng: np.random.Generator, folder: Path) -> None:
    steps, sizes, spent = [], [], np.zeros(0)
    tree_bytes = 0
    for number, scale in enumerate(profile.log_scales):
        times: list[float] = []
        there = folder / f"log{number}"

        def note(event: dict[str, Any], times: list[float] = times) -> None:
            if event["type"] == "step":
                times.append(time.perf_counter())

        state = staged_search([round(scale * gap) for gap in LOG_GAPS], _text(profile.log_chars), there, note)
        steps.append(state.steps)
        sizes.append(_bytes(there / EVENTS) + _bytes(there / BLOBS))
        if scale == 1:
            spent, tree_bytes = 1e3 * np.diff(times), _bytes(there / "tree.json")
    growth = float(np.polyfit(np.log(steps), np.log(sizes), 1)[0])
    at = profile.log_scales.index(1)
    observed = f"{steps[at]} steps, observations of {profile.log_chars:,} characters"
    experiment.claims += [
        Claim(
            id="engine-step", measured=float(np.median(spent)), op="<=", value=5, n=len(spent), unit="ms",
            ci=bootstrap_interval(rng, lambda x: float(np.median(x)), spent), source=TARGET,
            statement="Engine and log take at most 5 ms for a step (median).", note=f"{observed}, each step synced",
        ),
        Claim(
            id="log-growth", measured=growth, op="<=", value=1.1, n=len(steps), unit="exponent", source=TARGET,
            statement="The event log with its texts grows in proportion to the steps.",
            note=", ".join(f"{n} steps {size / MB:.2f} MB" for n, size in zip(steps, sizes, strict=True)),
        ),
        Claim(
            id="log-size", measured=sizes[at] / MB, op="<=", value=10, n=steps[at], unit="MB", source=TARGET,
            statement="The log of a tree of 300 steps with observations of 20 kB takes at most 10 MB.", note=observed,
        ),
        Claim(
            id="tree-size", measured=tree_bytes / MB, op="<=", value=10, n=steps[at], unit="MB", source=TARGET,
            statement="Its tree.json takes at most 10 MB.", note=observed,
        ),
    ]  # fmt: skip
    experiment.metrics.append(
        Metric("engine and log, 95 % of steps below", float(np.quantile(spent, 0.95)), "ms", "lower")
    )


def _memory(experiment: Experiment, profile: Profile, folder: Path) -> None:
    """Of the tree alone: what was allocated during the search and is still there, texts of the script included."""
    text = _text(profile.log_chars)
    scale = profile.memory_nodes / 300
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    state = staged_search([round(scale * gap) for gap in LOG_GAPS], text, folder / "memory")
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    experiment.claims.append(
        Claim(
            id="memory", measured=used / MB * NODES / len(state.tree), op="<=", value=64, n=len(state.tree), unit="MB",
            statement=f"A tree takes at most 64 MB of memory for every {NODES:,} nodes.", source=TARGET,
            note=f"{used / MB:.1f} MB for {len(state.tree)} nodes, observations of {profile.log_chars:,} characters",
        )
    )  # fmt: skip


def _workers(experiment: Experiment, profile: Profile, rng: np.random.Generator) -> None:
    def observe(call: str) -> str:
        time.sleep(profile.worker_step_s)
        return call

    walls: dict[int, list[float]] = {1: [], WORKERS: []}
    places = []
    for _ in range(profile.worker_rounds):
        for workers, spent in walls.items():
            began = time.perf_counter()
            state = staged_search(GAPS, observe, workers=workers)
            spent.append(time.perf_counter() - began)
            places.append({(state.tree.indices(i), n.kind, n.state_hash) for i, n in state.tree.nodes.items()})
    ratios = np.array(walls[WORKERS]) / np.array(walls[1])
    leaves, steps, row = len(state.tree.leaves()), state.steps, steps_in_a_row(state.tree)
    experiment.claims += [
        Claim(
            id="workers-same-tree", measured=sum(place != places[0] for place in places), op="==", value=0,
            n=len(places), source=TARGET, unit="trees that differ",
            statement=f"{WORKERS} workers make the same nodes as one.",
        ),
        Claim(
            id="workers-time", measured=float(np.median(ratios)), op="<=", value=0.5, n=len(ratios), source=TARGET,
            ci=bootstrap_interval(rng, lambda x: float(np.median(x)), ratios) if len(ratios) > 1 else None,
            statement=f"{WORKERS} workers finish the tree of {leaves} leaves in at most half the time of one.",
            unit="share of the time",
            note=f"{steps} steps of {profile.worker_step_s:g} s; {row} ({row / steps:.2f}) wait for each other: "
            "no number of workers is faster",
        ),
    ]  # fmt: skip
    ours, peer = (float(np.median(walls[workers])) for workers in (WORKERS, 1))
    name = f"wall time of a tree, {steps} steps of {profile.worker_step_s:g} s"
    experiment.comparisons.append(Comparison(name, ours, peer, "one worker", "s", "lower"))


def steps_in_a_row(tree: Tree) -> int:
    """Length of the longest chain of steps that wait for one another: an alternative begins when the path ends that
    first went on from its node, or with its second step where the model is not told how it ended.
    """
    done = {0: 0}
    for node in sorted(tree.nodes.values(), key=lambda node: tree.indices(node.id)):  # first lines before alternatives
        if node.id:
            first = tree.nodes[node.parent or 0].children[0]
            ended = [n.id for n in tree.first_line(first)][-1] if follows(tree, node.parent or 0) else first
            before = ended if node.child_index else node.parent or 0
            done[node.id] = done[before] + 1
    return max(done.values())


# --- scripted searches ------------------------------------------------------------------------------------------------


def staged_search(
    gaps: Sequence[int],
    observe: Callable[[str], str],
    out: Path | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    workers: int = 1,
) -> SearchState:
    """A search by the paper's policy on whose paths the four stages stand with these gaps.

    observe : text that is different for every action -> its observation.
    """
    kinds = ["other"] * gaps[0]
    for stage, gap in zip(STAGES, gaps[1:], strict=True):
        kinds += [stage, *["other"] * gap]

    def answer(request: ModelRequest) -> ToolCall:
        place = [*request.path, request.sample]
        return ToolCall(kinds[len(request.path)], {"text": f"{request.role} {place}"})

    def tool(kind: str) -> Tool:
        def act(env: Any, args: Any, state: dict[str, Any]) -> Observation:
            env.write_file("log", args["text"].encode())
            return Observation(observe(args["text"]))

        return Tool(kind, {"type": "object"}, kind, act)

    config = DarsConfig(
        candidates=CandidatesSection(k=1), budget=BudgetSection(steps=DEEP, depth=DEEP), workers=workers
    )
    tools = {kind: tool(kind) for kind in (*STAGES, "other")}
    env = MemoryEnvironment({"log": ""})
    return search(ISSUE, ScriptedModel(answer), env, tools, config, out, on_event=on_event)[0]


def _text(chars: int) -> Callable[[str], str]:
    """Call -> a text of so many characters that no other call has."""

    def text(call: str) -> str:
        line = hashlib.sha256(call.encode()).hexdigest() + "\n"
        return (line * (chars // len(line) + 1))[:chars]

    return text


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
