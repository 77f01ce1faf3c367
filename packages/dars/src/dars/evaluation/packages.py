"""The same comparison on tasks made from packages on PyPI, fetched by their hashes; nothing of them is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..bench.outcomes import Outcomes
from ..bench.sdists import full_tasks
from ..bench.tasks import MutTask
from ..metrics import paired_bootstrap
from .profiles import Profile
from .repair import DARS, LINEAR, RESTART, run_task
from .report import PAPER, Claim, Experiment, Metric


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Any leaf of a tree, and linear runs; tests are executed when their outcome is asked for."""
    experiment = Experiment()
    tasks = full_tasks(out / "packages", 0, profile.package_tasks)
    calls = profile.package_calls
    found = [_trials(task, source, calls) for task, source in tasks]
    resolved = {name: np.array([one[name] for one in found]) for name in ("dars", "linear", "restart")}
    mean, low, high = paired_bootstrap(resolved["dars"], resolved["linear"])
    experiment.claims.append(
        Claim(
            id="resolves-more-packages", measured=mean, ci=(low, high), op=">", value=0.0, n=len(tasks), source=PAPER,
            statement="On tasks from packages on PyPI too, some leaf of DARS resolves more than a linear run.",
            paper="SWE-bench Lite: any leaf 55 %, linear about 32 %", unit="share resolved",
            note=f"{calls} calls; {', '.join(sorted({task.package for task, _ in tasks}))}",
        )
    )  # fmt: skip
    for name, values in resolved.items():
        experiment.metrics.append(Metric(f"packages, {name}: resolved", float(values.mean()), "", "higher"))
    return experiment


def _trials(task: MutTask, source: Path, calls: int) -> dict[str, float]:
    outcomes = Outcomes(task, None, source)
    try:
        found, _ = run_task(outcomes, (DARS, LINEAR, RESTART), [0], calls)
        return {name: float(trials[0].within(calls)) for name, trials in found.items()}
    finally:
        outcomes.close()
