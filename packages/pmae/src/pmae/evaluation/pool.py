"""Independent jobs on all cores: one thread each, which for models this small is faster than sharing them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def each(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: int) -> list[Any]:
    """function(*job) for every job, in their order. ``function`` is at the top of a module."""
    jobs = list(jobs)
    if workers < 2 or len(jobs) < 2:
        return [function(*job) for job in jobs]
    with ProcessPoolExecutor(
        min(workers, len(jobs), os.cpu_count() or 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_alone,
    ) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        return [future.result() for future in futures]


def _alone() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)
