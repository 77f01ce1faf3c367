"""Makes the shipped table of outcomes: what the trials of the profiles come through, executed once and for all.

``python -m dars.evaluation.recording FILE`` begins with the shipped table and adds what it does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.outcomes import Outcomes, Runs, dump_table, load_table
from ..bench.tasks import MutTask
from . import ablations, choosing, repair
from .pool import over_tasks, shipped
from .trials import RECORDED


@dataclass
class Known:
    """What is known of a task's outcomes."""

    task: MutTask
    runs: Runs


def visited(outcomes: Outcomes, seeds: Sequence[int]) -> Known:
    """A task's outcomes after the trials of some seeds."""
    repair.run_task(outcomes, repair.STRATEGIES, seeds, 200)
    repair.whole_trees(outcomes, seeds)
    choosing.cases_of(outcomes, seeds)
    repair.run_task(outcomes, ablations.PARTS, seeds, ablations.BUDGET)
    return Known(outcomes.task, outcomes.runs)


def main(file: str) -> None:
    """Write the table."""
    found: list[Any] = over_tasks(visited, shipped(), range(RECORDED))
    Path(file).write_bytes(dump_table(found, load_table().versions))
    print(f"{sum(len(one.runs) for one in found)} states of {len(found)} tasks: {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
