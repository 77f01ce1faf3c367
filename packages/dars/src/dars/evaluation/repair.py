"""E2: strategies at equal numbers of calls on MutBench, with one and the same model that repairs by random edits.

What is measured is the search and not the model. Its parameters say how good its alternatives are, so results are
given over a range of them and never for one value alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bench.outcomes import Outcomes, load_table
from ..bench.verify import verify
from ..metrics import paired_bootstrap, pass_at_k
from .plots import draw_resolved, draw_sensitivity
from .pool import over_tasks, shipped
from .profiles import Profile
from .report import PAPER, TARGET, Artifact, Claim, Experiment, Metric
from .trials import Strategy, Trial, drawn_seeds, searched, trial

DARS = Strategy("dars")
LINEAR = Strategy("linear", {"strategy": "linear"}, again=False)
RESTART = Strategy("restart", {"strategy": "restart"})
RANDOM = Strategy("random_branch", {"strategy": "random_branch", "branches": 6})
MCTS = Strategy("mcts", {"strategy": "mcts"})
STRATEGIES = (DARS, RESTART, LINEAR, MCTS, RANDOM)

Table = dict[str, NDArray[Any]]  # strategy -> (tasks, seeds) trials


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """All strategies, then the range of the model's parameters."""
    experiment = Experiment()
    _true(experiment, profile, rng)
    tasks = shipped()
    budget, seeds = max(profile.repair_budgets), drawn_seeds(rng, profile.repair_seeds)
    found = over_tasks(run_task, tasks, STRATEGIES, seeds, budget)
    trials: Table = {s.name: np.array([one[0][s.name] for one in found], dtype=object) for s in STRATEGIES}
    _compared(experiment, trials, profile)
    _steps(experiment, over_tasks(whole_trees, tasks, seeds[:2]))
    experiment.metrics.append(
        Metric("outcomes that the shipped table did not hold", sum(one[1] for one in found), "", "lower")
    )
    curves = {name: _shares(values, range(0, budget + 1, 5)) for name, values in trials.items()}
    if draw_resolved(np.arange(0, budget + 1, 5), curves, out / "resolved.png"):
        experiment.artifacts.append(Artifact("resolved.png", "Tasks resolved over the calls that were spent"))
    _sensitivity(experiment, profile, rng, out)
    return experiment


def run_task(
    outcomes: Outcomes, strategies: Sequence[Strategy], seeds: Sequence[int], budget: int,
    model: Mapping[str, Any] | None = None,
) -> tuple[dict[str, list[Trial]], int]:  # fmt: skip
    """Trials of one task, and how many outcomes had to be executed."""
    found = {s.name: [trial(outcomes, s, seed, budget, model) for seed in seeds] for s in strategies}
    return found, outcomes.executed


def whole_trees(outcomes: Outcomes, seeds: Sequence[int]) -> list[tuple[int, int, int]]:
    """(steps, leaves, sum of the leaves' depths) of whole trees."""
    trees = [searched(outcomes, DARS, seed, 1000) for seed in seeds]
    return [(len(tree) - 1, len(tree.leaves()), sum(leaf.depth for leaf in tree.leaves())) for tree in trees]


def _true(experiment: Experiment, profile: Profile, rng: np.random.Generator) -> None:
    """Some entries of the shipped table executed again, in the real sandbox."""
    table = load_table()
    n = profile.repair_verified
    wrong = verify(shipped(), table, n, int(rng.integers(2**31)))
    total = sum(len(runs) for runs in table.runs.values())
    experiment.claims.append(
        Claim(
            id="outcomes-true", measured=len(wrong), op="==", value=0, n=total if n is None else n, source=TARGET,
            statement="Entries of the shipped table of test outcomes come out the same when executed in the sandbox.",
            unit="differences", note=f"{total} states of {len(table.runs)} tasks in the table",
        )
    )  # fmt: skip


def _compared(experiment: Experiment, trials: Table, profile: Profile) -> None:
    budget = max(profile.repair_budgets)
    shape = next(iter(trials.values())).shape
    number = f"{shape[0]} tasks, {shape[1]} seeds, {budget} calls; paired over tasks and seeds"

    def claim(id: str, statement: str, ours: str, other: str, source: str, paper: str = "") -> None:
        a, b = (_resolved(trials[name], budget).ravel() for name in (ours, other))
        mean, low, high = paired_bootstrap(a, b)
        experiment.claims.append(
            Claim(
                id=id, statement=statement, source=source, paper=paper, measured=mean, ci=(low, high), op=">",
                value=0.0, n=a.size, unit="share resolved", note=f"{a.mean():.3f} against {b.mean():.3f}; {number}",
            )
        )  # fmt: skip

    lite = "SWE-bench Lite, Claude 3.5 Sonnet V2: any leaf 55 %, linear about 32 %"
    claim(
        "resolves-more",
        "Some leaf of DARS resolves more tasks than a linear run.",
        "dars",
        "linear",
        PAPER,
        lite,
    )
    claim("beats-restarts", "At equal calls DARS resolves more tasks than restarts.", "dars", "restart", PAPER,
          "qualitative")  # fmt: skip
    claim("key-decisions", "At equal calls branching at key decisions resolves more than branching at random steps.",
          "dars", "random_branch", PAPER, "qualitative")  # fmt: skip
    claim("beats-mcts", "At equal calls DARS resolves more tasks than UCT on visible tests.", "dars", "mcts", TARGET)
    for name, values in trials.items():
        for at in profile.repair_budgets:
            share = _resolved(values, at).mean()
            experiment.metrics.append(Metric(f"{name}: resolved_any within {at} calls", float(share), "", "higher"))
        spent = list(values.ravel())
        resolved = sum(t.resolved_at is not None for t in spent)
        for unit in ("calls", "steps", "tokens"):
            if resolved:
                value = sum(getattr(t, unit) for t in spent) / resolved
                experiment.metrics.append(Metric(f"{name}: {unit} per resolved task", value, unit, "lower"))
    single = trials["linear"]
    for k in (1, min(5, shape[1])):
        share = np.mean([pass_at_k(shape[1], int(_resolved(row, budget).sum()), k) for row in single])
        experiment.metrics.append(Metric(f"independent linear runs: pass@{k}", float(share), "", "higher"))


def _steps(experiment: Experiment, found: Sequence[Sequence[tuple[int, int, int]]]) -> None:
    """Steps of a candidate in whole trees against those of a run from the root."""
    rows = np.array([row for one in found for row in one], dtype=float)
    ratios = (rows[:, 0] / rows[:, 1]) / (rows[:, 2] / rows[:, 1])
    mean, low, high = paired_bootstrap(ratios, np.zeros(len(ratios)))
    experiment.claims.append(
        Claim(
            id="steps-per-leaf-mutbench", measured=mean, ci=(low, high), op="<=", value=0.7, n=len(ratios),
            statement="On MutBench a candidate costs at most 0.7 of the steps that it costs by restarts.",
            source=PAPER, paper="qualitative", note=f"{(rows[:, 0] / rows[:, 1]).mean():.1f} steps a leaf; whole trees",
        )
    )  # fmt: skip


def _sensitivity(experiment: Experiment, profile: Profile, rng: np.random.Generator, out: Path) -> None:
    """DARS less restarts over rho (how often a failed edit is built upon) and eps (incomplete reproductions)."""
    if not profile.repair_grid:
        return
    budget, seeds = 60, drawn_seeds(rng, profile.repair_grid_seeds)
    cells: dict[tuple[float, float], tuple[float, float, float]] = {}
    for rho, eps in [*((rho, 0.3) for rho in profile.repair_grid), (0.75, 0.0), (0.75, 0.6)]:
        found = over_tasks(run_task, shipped(1), (DARS, RESTART), seeds, budget, {"rho": rho, "eps": eps})
        a, b = (
            np.concatenate([_resolved(np.array(one[0][name], dtype=object), budget) for one in found])
            for name in ("dars", "restart")
        )
        cells[rho, eps] = paired_bootstrap(a, b)
        experiment.metrics.append(
            Metric(f"dars - restart, rho {rho:g}, eps {eps:g}, {budget} calls", cells[rho, eps][0], "", "higher")
        )
    if draw_sensitivity(cells, out / "sensitivity.png"):
        experiment.artifacts.append(Artifact("sensitivity.png", "DARS less restarts over the model's parameters"))


def _resolved(trials: NDArray[Any], budget: float) -> NDArray[np.float64]:
    return np.vectorize(lambda t: float(t.within(budget)), otypes=[float])(trials)


def _shares(trials: NDArray[Any], budgets: Sequence[int]) -> NDArray[np.float64]:
    """(3, budgets) share resolved and its 95 % interval, tasks resampled."""
    rng = np.random.default_rng(0)
    by_task = np.array([_resolved(trials, at).mean(axis=1) for at in budgets])  # (budgets, tasks)
    rows = rng.integers(by_task.shape[1], size=(1000, by_task.shape[1]))
    low, high = np.quantile(by_task[:, rows].mean(axis=2), [0.025, 0.975], axis=1)
    return np.array([by_task.mean(axis=1), low, high])
