"""Where jobs run: on this machine, a few at a time, or on a Slurm cluster through submitit. Both are one function that
runs all jobs, tells a board how they fare, and returns once each has written its run.json.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from bench.board import Board
from bench.files import BenchError
from bench.run import Job, mark_lost, run_package

POLL_S = 0.2
SLURM_POLL_S = 2.0
SLURM_SPARE_S = 120  # between bench's own time limit and Slurm's, so that bench ends the run and can say so
SLURM_LONGEST_MIN = 7 * 24 * 60  # for a job that has no limit of its own

Executor = Callable[[Sequence[Job], int, Board], bool]


def run_local(jobs: Sequence[Job], workers: int, board: Board) -> bool:
    """Run jobs here, `workers` at a time; true where the user interrupted. One job's failure never stops another."""
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(_run_and_tell, job, stop, board) for job in jobs]
        try:
            while wait(futures, timeout=POLL_S).not_done:
                board.tick()
        except KeyboardInterrupt:
            board.say("interrupted: ending what runs, writing what is there")
            stop.set()  # leaving the block waits for the workers, which end their process trees first
    return stop.is_set()


def run_slurm(jobs: Sequence[Job], workers: int, board: Board, cluster: str = "slurm") -> bool:
    """Submit every job at once; how many run together is Slurm's business, so `workers` is not used.

    Partition, account, GPUs and the like are read by sbatch from the environment (SBATCH_PARTITION, SBATCH_ACCOUNT,
    SBATCH_GPUS …). The run folder must be on a file system that the nodes share.
    """
    try:
        import submitit
    except ImportError:
        raise BenchError("--executor slurm: submitit is not installed; pip install 'paper-bench[slurm]'") from None
    submitted: dict[str, tuple[Job, Any]] = {}
    try:
        for job in jobs:
            executor = submitit.AutoExecutor(folder=job.out / ".slurm", cluster=cluster)
            executor.update_parameters(name=f"bench-{job.package.name}", timeout_min=_minutes(job.timeout))
            submitted[job.package.name] = job, executor.submit(run_remote, job)
            board.start(job.package.name)
    except (RuntimeError, OSError) as error:  # submitit's words for a missing sbatch or a refused job
        for _, ticket in submitted.values():
            ticket.cancel()
        raise BenchError(f"--executor slurm: {' '.join(str(error).split())}; run where sbatch works") from None
    waiting = dict(submitted)
    try:
        while waiting:
            for name, (job, ticket) in list(waiting.items()):
                if ticket.done():
                    board.end(name, _collect(job, ticket))
                    del waiting[name]
            board.tick()
            time.sleep(SLURM_POLL_S if cluster == "slurm" else POLL_S)
    except KeyboardInterrupt:
        board.say("interrupted: cancelling the jobs")
        for job, ticket in waiting.values():
            ticket.cancel()
            mark_lost(job, "cancelled by the user")
        return True
    return False


EXECUTORS: Mapping[str, Executor] = {"local": run_local, "slurm": run_slurm}


def run_remote(job: Job) -> str:
    """What a Slurm job does: the same as a local one, with nobody watching."""
    return run_package(job, threading.Event(), lambda seconds, memory: None)


def _run_and_tell(job: Job, stop: threading.Event, board: Board) -> None:
    name = job.package.name
    board.start(name)
    try:
        board.end(name, run_package(job, stop, lambda seconds, memory: board.update(name, memory)))
    except Exception as error:
        # The harness itself failed for this one package (a full disk, say): the others go on, the report tells.
        reason = f"{type(error).__name__}: {error}"
        board.end(name, f"lost ({reason})")
        mark_lost(job, reason)


def _collect(job: Job, ticket: Any) -> str:
    try:
        return str(ticket.result())
    except Exception as error:  # whatever ended the remote job, it is that job's outcome
        lines = str(error).strip().splitlines() or [type(error).__name__]
        mark_lost(job, f"the job left no result: {lines[-1]}")
        return "lost"


def _minutes(timeout: float | None) -> int:
    return SLURM_LONGEST_MIN if timeout is None else int((timeout + SLURM_SPARE_S) // 60) + 1
