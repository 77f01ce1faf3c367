"""What each part of the method adds: the same tasks, seeds and calls with the part taken away."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..aci.registry import registry
from ..bench.execute import own_python
from ..bench.memory import memory_environment
from ..bench.outcomes import Outcomes
from ..bench.tasks import as_task
from ..config import DarsConfig
from ..env.local import LocalEnvironment
from ..metrics import paired_bootstrap
from ..models.repair import RepairModel
from ..runs import search
from ..tree import Tree
from .plots import draw_ablations
from .pool import over_tasks, shipped
from .profiles import Profile
from .repair import DARS, run_task
from .report import PAPER, TARGET, Artifact, Claim, Experiment, Metric
from .skeletons import STAGES
from .trials import Strategy, drawn_seeds, resolving, searched

PARTS = (
    Strategy("whole"),
    Strategy("no feedback", {"feedback": {"enabled": False}}),
    Strategy("K = 1", {"candidates": {"k": 1}}),
    Strategy("no dedupe", {"dedupe": {"actions": False, "states": False}}),
    Strategy("deepest first", {"order": "deepest"}),
    Strategy("breadth first", {"order": "breadth"}),
    Strategy("N = 3", {"policy": {"num_expansions": 3}}),
)
BUDGET = 60  # it has to bind for the order to matter


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Parts taken away, kinds pruned afterwards, and the same searches in a real workspace."""
    experiment = Experiment()
    tasks, seeds = shipped(), drawn_seeds(rng, profile.ablation_seeds)
    found = over_tasks(run_task, tasks, PARTS, seeds, BUDGET)
    resolved = {
        part.name: np.array([[float(t.within(BUDGET)) for t in one[0][part.name]] for one in found]).ravel()
        for part in PARTS
    }
    gaps = {name: paired_bootstrap(resolved["whole"], values) for name, values in resolved.items() if name != "whole"}
    mean, low, high = gaps["no feedback"]
    experiment.claims.append(
        Claim(
            id="feedback", measured=mean, ci=(low, high), op=">=", value=0.0, n=resolved["whole"].size, source=PAPER,
            paper="qualitative: execution feedback matters", unit="share resolved",
            statement="Telling the model what followed from its first choice resolves more tasks.",
            note=f"{resolved['whole'].mean():.3f} against {resolved['no feedback'].mean():.3f} within {BUDGET} calls",
        )
    )  # fmt: skip
    for name, (mean, _, _) in gaps.items():
        experiment.metrics.append(Metric(f"whole - {name}, {BUDGET} calls", mean, "share resolved", "higher"))
    if draw_ablations(gaps, out / "ablations.png"):
        experiment.artifacts.append(Artifact("ablations.png", "What is lost without each part"))
    _kinds(experiment, over_tasks(pruned, tasks, seeds[:2]))
    _real(experiment, over_tasks(same_in_reality, tasks[:: max(1, len(tasks) // profile.ablation_local)], seeds[0]))
    return experiment


def pruned(outcomes: Outcomes, seeds: Sequence[int]) -> NDArray[Any]:
    """(seeds, 16, 2): resolved by any leaf, and steps, of whole trees cut to every set of kinds."""
    rows = []
    for seed in seeds:
        tree = searched(outcomes, DARS, seed, 1000)
        tree.meta["policy"] = DarsConfig().policy.model_dump()
        good = set(resolving(outcomes, tree))
        rows.append([_cut(tree, kinds, good) for size in range(5) for kinds in combinations(STAGES, size)])
    return np.array(rows, dtype=float)


def _cut(tree: Tree, kinds: tuple[str, ...], good: set[int]) -> tuple[float, float]:
    left = tree.prune(dict.fromkeys(kinds, 1))
    return float(any(leaf.id in good for leaf in left.leaves())), len(left) - 1.0


def _kinds(experiment: Experiment, found: list[NDArray[Any]]) -> None:
    rows = np.concatenate(found)  # (tasks x seeds, 16, 2)
    sets = [kinds for size in range(5) for kinds in combinations(STAGES, size)]
    for i, kinds in enumerate(sets):
        name = "+".join(kinds) or "none"
        share, steps = rows[:, i, 0].mean(), rows[:, i, 1].mean()
        experiment.metrics.append(Metric(f"kinds {name}: any leaf resolves", float(share), "", "higher"))
        experiment.metrics.append(Metric(f"kinds {name}: steps", float(steps), "steps", "lower"))


def same_in_reality(outcomes: Outcomes, seed: int) -> int:
    """Nodes by which the tree in memory and that in a sandboxed workspace differ."""
    with own_python(), tempfile.TemporaryDirectory(prefix="dars-eval-") as folder:
        task = as_task(outcomes.task, Path(folder) / "workspace")
        assert task.repo is not None
        # Whole observations: where they are cut depends on how many digits the time has that a command took.
        config = DarsConfig.model_validate({"history": {"mode": "full"}, "feedback": {"obs_chars": 10**6}})
        tools = registry(test_command=task.test_command)
        with LocalEnvironment(task.repo, state_dir=Path(folder) / "states") as local:
            real, _ = search(
                task.issue, RepairModel(seed=1000 * seed), local, tools, config, test_command=task.test_command
            )
        memory = memory_environment(outcomes.task, outcomes, task.repo)
        told, _ = search(
            task.issue, RepairModel(seed=1000 * seed), memory, tools, config, test_command=task.test_command
        )
    pairs = zip(_shape(real.tree), _shape(told.tree), strict=False)
    return sum(a != b for a, b in pairs) + abs(len(real.tree) - len(told.tree))


def _shape(tree: Tree) -> list[tuple[Any, ...]]:
    return [(n.parent, n.child_index, n.kind, n.tool, n.args, n.exit, n.patch != "") for n in tree.nodes.values()]


def _real(experiment: Experiment, differing: list[int]) -> None:
    experiment.claims.append(
        Claim(
            id="memory-is-reality", measured=sum(differing), op="==", value=0, n=len(differing), source=TARGET,
            statement="Searches in memory and in a sandboxed workspace make identical trees.",
            unit="nodes that differ",
        )
    )  # fmt: skip
