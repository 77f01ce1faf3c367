"""Independent jobs in processes of their own, one thread each: for networks this small that beats sharing cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def each(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: int) -> list[Any]:
    """function(*job) for every job, in their order, the first ones first. ``function`` is at the top of a module."""
    jobs = list(jobs)
    if workers < 2 or len(jobs) < 2:
        return [function(*job) for job in jobs]
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} {ONE_THREAD}".strip()  # read when a child first computes
    try:
        with ProcessPoolExecutor(
            min(workers, len(jobs), os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            futures = [pool.submit(function, *job) for job in jobs]
            return [future.result() for future in futures]
    finally:
        if before is None:
            os.environ.pop("XLA_FLAGS")
        else:
            os.environ["XLA_FLAGS"] = before
