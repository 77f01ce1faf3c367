"""One task, solved in a sandboxed workspace and graded by its hidden tests."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..config import DarsConfig
from ..env.apply import applied
from ..errors import TaskError
from ..models.base import ChatModel
from ..models.choose import make_model
from ..reviewer import Labelled
from ..reviewer.functions import changed_functions
from ..storage import write_atomic
from .execute import own_python
from .outcomes import Outcomes
from .tasks import MutTask, as_task

FILES = "files"  # of the task, in the folder of its run: who goes on with it, or reviews it, needs them


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
    out : folder of the run, with the files of the task and ``result.json``; one that holds it goes on.
    source : folder of the package; None for one that is shipped.

    Raises
    ------
    TaskError
        The package is not that of the task; something that is needed is not installed.
    """
    from ..agent import run

    called = model if isinstance(model, str) else None
    model = make_model(model) if isinstance(model, str) else model
    if find_spec("pytest") is None:  # the grading needs it
        raise TaskError("tasks are graded by pytest: pip install 'dars-agent[bench]'")
    folder = out / FILES
    shutil.rmtree(folder, ignore_errors=True)
    outcomes = Outcomes(task, None, source)
    try:
        given = as_task(task, folder, source)
        with own_python():
            result = run(given, model, config, out=out, allow_unknown_price=allow_unknown_price, called=called)
        found = sorted(result.candidates, key=lambda candidate: candidate.node_id)
        resolved = tuple(outcomes.resolved(applied(outcomes.base, candidate.patch)) for candidate in found)
        evidence = json.loads((out / "review.json").read_text(encoding="utf-8"))["evidence"]
        execution = evidence if "matrix" in evidence else None
        depths = tuple(result.tree.nodes[candidate.node_id].depth for candidate in found)
        functions = tuple(changed_functions(outcomes.base, candidate.patch) for candidate in found)
        case = Labelled(task.id, task.issue, tuple(found), depths, resolved, execution, functions)
        best = result.best is not None and resolved[found.index(result.best)]
        verdict = {
            "task": task.id, "resolved": best, "any": any(resolved),
            "candidates": [{"node": c.node_id, "resolved": right} for c, right in zip(found, resolved, strict=True)],
        }  # fmt: skip
        write_atomic(out / "result.json", json.dumps(verdict, indent=1))
        return Solved(case, best)
    finally:
        outcomes.close()
