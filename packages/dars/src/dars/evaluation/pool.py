"""The same function for every task, on all cores; each process reads the table of outcomes once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

from ..bench.execute import Worker
from ..bench.outcomes import Outcomes, Table, load_table
from ..bench.tasks import MutTask, load_tasks


def over_tasks(function: Callable[..., Any], tasks: Sequence[MutTask], *args: Any) -> list[Any]:
    """function(outcomes, *args) for every shipped task, in their order.

    Parameters
    ----------
    function : at the top of a module, so that another process finds it.
    """
    workers = max(1, min(len(os.sched_getaffinity(0)), len(tasks)))
    # A fork would copy the threads' locks of whatever runs here.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_on_task, function, task, args) for task in tasks]
        return [future.result() for future in futures]


def shipped(per_package: int | None = None) -> list[MutTask]:
    """The shipped tasks, or so many of each package."""
    taken: dict[str, int] = {}
    chosen = []
    for task in load_tasks():
        taken[task.package] = taken.get(task.package, 0) + 1
        if per_package is None or taken[task.package] <= per_package:
            chosen.append(task)
    return chosen


def _on_task(function: Callable[..., Any], task: MutTask, args: Sequence[Any]) -> Any:
    return function(Outcomes(task, _table(), worker=_worker()), *args)


@cache
def _table() -> Table:
    return load_table()


@cache
def _worker() -> Worker:
    return Worker()
