"""One task, solved in a sandboxed workspace and graded by its hidden tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from ..config import DarsConfig
from ..env.apply import applied
from ..models.base import ChatModel
from ..reviewer import Labelled
from ..reviewer.functions import changed_functions
from .execute import own_python
from .outcomes import Outcomes
from .tasks import MutTask, as_task


class Solved(NamedTuple):
    """Candidates in the order of their nodes with their labels, and whether the reviewer's choice resolves the task."""

    case: Labelled
    best: bool


def solve(
    task: MutTask,
    model: ChatModel | str,
    config: DarsConfig,
    out: Path,
    source: Path | None = None,
    allow_unknown_price: bool = False,
) -> Solved:
    """Run the agent on a task, and grade what it found.

    Parameters
    ----------
    model, config : as for :func:`dars.run`.
    out : folder of the run; one that holds it goes on. The workspace lies beside it while it runs.
    source : folder of the package; None for one that is shipped.

    Raises
    ------
    TaskError
        The package is not that of the task.
    """
    from ..agent import run

    folder = out.with_name(f"{out.name}.workspace")
    shutil.rmtree(folder, ignore_errors=True)
    outcomes = Outcomes(task, None, source)
    try:
        given = as_task(task, folder, source)
        with own_python():
            result = run(given, model, config, out=out, allow_unknown_price=allow_unknown_price)
        found = sorted(result.candidates, key=lambda candidate: candidate.node_id)
        resolved = tuple(outcomes.resolved(applied(outcomes.base, candidate.patch)) for candidate in found)
        evidence = json.loads((out / "review.json").read_text(encoding="utf-8"))["evidence"]
        execution = evidence if "matrix" in evidence else None
        depths = tuple(result.tree.nodes[candidate.node_id].depth for candidate in found)
        functions = tuple(changed_functions(outcomes.base, candidate.patch) for candidate in found)
        case = Labelled(task.id, task.issue, tuple(found), depths, resolved, execution, functions)
        return Solved(case, result.best is not None and resolved[found.index(result.best)])
    finally:
        outcomes.close()
        shutil.rmtree(folder, ignore_errors=True)
