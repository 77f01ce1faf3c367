"""Independent jobs in processes of their own, one thread each: for networks this small that beats sharing cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

_running: list[ProcessPoolExecutor] = []  # at most one


@contextmanager
def processes(workers: int) -> Iterator[None]:
    """Inside, `each` shares its jobs among so many processes, which import while this one goes on."""
    count = min(workers, os.cpu_count() or 1)
    if count < 2:
        yield
        return
    _running.append(_pool(count))
    try:
        yield
    finally:
        _running.pop().shutdown(cancel_futures=True)


def each(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
    """function(*job) for every job, in their order, the first ones first. `function` is at the top of a module."""
    jobs = list(jobs)
    if not _running or len(jobs) < 2:
        return [function(*job) for job in jobs]
    futures = [_running[0].submit(_run, function, job) for job in jobs]
    try:
        return [future.result() for future in futures]
    except BrokenExecutor:  # a process was killed: that costs these jobs, not all that follow
        _running[0] = _pool(os.cpu_count() or 1)
        raise


def _pool(count: int) -> ProcessPoolExecutor:
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} {ONE_THREAD}".strip()  # read when a child first computes
    try:
        pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
        for _ in range(count):
            pool.submit(_import)  # each submission spawns one process
        return pool
    finally:
        if before is None:
            os.environ.pop("XLA_FLAGS")
        else:
            os.environ["XLA_FLAGS"] = before


def _run(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    import jax

    try:
        return function(*job)
    finally:
        jax.clear_caches()  # type: ignore[no-untyped-call]  # the next job compiles programs of its own


def _import() -> None:
    from .. import train  # noqa: F401
