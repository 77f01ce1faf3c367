"""One search for each instance: a folder for every result, finished ones skipped, a failure kept to itself."""

from __future__ import annotations

import fcntl
import json
import os
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import TaskError
from ..interop.predictions import prediction_line
from ..storage import write_atomic
from ..task import Task
from .instances import Row
from .instances import shard as part_of

RESULT, ERROR, PREDICTIONS = "result.json", "error.json", "predictions.jsonl"


@dataclass(frozen=True)
class RunSummary:
    """What a search of one instance came to.

    Attributes
    ----------
    patch : the answer; "" for none.
    others : further distinct candidates, best first; graded for "any leaf resolves" alone.
    cost_usd : None where the price of a model is unknown.
    """

    patch: str
    others: tuple[str, ...] = ()
    exit_reason: str = ""
    steps: int = 0
    calls: int = 0
    cost_usd: float | None = 0.0


@dataclass(frozen=True)
class Totals:
    """Instances by what became of them; ``failed`` holds the error of each."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: dict[str, str]


Solve = Callable[[Task, Path], RunSummary]
Outcome = dict[str, Any]


def run_instances(
    rows: Sequence[Row],
    solve: Solve,
    out: str | Path,
    name: str,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    executor: Literal["threads", "ray"] = "threads",
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> Totals:
    """Solve every instance and collect ``predictions.jsonl``.

    A finished instance has ``<out>/<instance_id>/result.json``, written before its line is appended, so that a run
    which was killed anywhere loses nothing: lines that are missing are appended when it is started again. One that
    failed has ``error.json`` and is tried again. Several processes, each with a shard of its own, may share ``out``.

    Parameters
    ----------
    solve : solve(task, folder) -> summary; the folder exists. With "ray" it is sent to other processes.
    name : model_name_or_path of the predictions.
    shard : (i, n) for part i of n, counted from 0.
    executor : "ray" for a cluster that shares the file system.
    on_progress : takes {instance_id, status: "done" | "failed" | "skipped", number, total}, and the error of one that
        failed.

    Raises
    ------
    TaskError
        ``out`` holds results of another name, or cannot be written; ray is asked for and missing.
    """
    if workers < 1 or not name:
        raise TaskError("a run over instances needs a name and at least one worker")
    if executor not in ("threads", "ray"):
        raise TaskError(f"there is no executor {executor!r}; there are threads, ray")
    out = Path(out).resolve()
    rows = list(rows) if shard is None else part_of(rows, *shard)
    done: list[str] = []
    skipped: list[str] = []
    failed: dict[str, str] = {}

    def tell(identity: str, status: str) -> None:
        if on_progress is not None:
            number = len(done) + len(skipped) + len(failed)
            why = {"error": failed[identity]} if status == "failed" else {}
            on_progress({"instance_id": identity, "status": status, "number": number, "total": len(rows), **why})

    def keep(outcome: Outcome) -> None:
        identity = outcome["instance_id"]
        folder = out / identity
        if "error" in outcome:
            write_atomic(folder / ERROR, json.dumps(outcome, indent=1))
            failed[identity] = outcome["error"]
            tell(identity, "failed")
            return
        result = {**outcome, "model_name_or_path": name}
        write_atomic(folder / RESULT, json.dumps(result, indent=1))
        (folder / ERROR).unlink(missing_ok=True)
        _append(out / PREDICTIONS, prediction_line(result))
        done.append(identity)
        tell(identity, "done")

    waiting = []
    listed = _listed(out / PREDICTIONS)
    for row in rows:
        identity = row["instance_id"]
        result = _finished(out / identity, name)
        if result is None:
            waiting.append(row)
            continue
        if identity not in listed:  # the process ended between the two files
            _append(out / PREDICTIONS, prediction_line(result))
        skipped.append(identity)
        tell(identity, "skipped")
    work = _on_ray if executor == "ray" else _on_threads
    with closing(work(waiting, solve, out, workers)) as outcomes:
        for outcome in outcomes:
            keep(outcome)
    return Totals(tuple(done), tuple(skipped), failed)


def _attempt(solve: Solve, row: Row, folder: Path) -> Outcome:
    """A result or an error, never an exception: one instance costs only itself."""
    began = time.time()
    identity = row["instance_id"]
    try:
        values = asdict(solve(Task.from_swebench(row), folder))
    except Exception as error:
        return {
            "instance_id": identity, "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(), "wall_s": time.time() - began,
        }  # fmt: skip
    return {"instance_id": identity, "model_patch": values.pop("patch"), **values, "wall_s": time.time() - began}


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaskError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def _on_threads(rows: Sequence[Row], solve: Solve, out: Path, workers: int) -> Generator[Outcome, None, None]:
    with ThreadPoolExecutor(workers) as pool:
        try:
            running = [pool.submit(_attempt, solve, row, _make(out / row["instance_id"])) for row in rows]
            for future in as_completed(running):
                yield future.result()
        finally:  # interrupted: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(rows: Sequence[Row], solve: Solve, out: Path, workers: int) -> Generator[Outcome, None, None]:
    try:
        import ray
    except ImportError:
        raise TaskError("the executor ray needs ray: pip install 'dars-agent[ray]'") from None
    ray.init(ignore_reinit_error=True)
    attempt = ray.remote(_attempt)
    waiting = list(rows)[::-1]
    running: dict[Any, Row] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            row = waiting.pop()
            running[attempt.remote(solve, row, _make(out / row["instance_id"]))] = row
        ready, _ = ray.wait(list(running), num_returns=1)
        row = running.pop(ready[0])
        try:
            yield ray.get(ready[0])
        except ray.exceptions.RayError as error:  # its process or machine was lost
            yield {"instance_id": row["instance_id"], "error": f"{type(error).__name__}: {error}"}


def _finished(folder: Path, name: str) -> Outcome | None:
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        result: Outcome = json.loads(path.read_text(encoding="utf-8"))
        known = result["model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{path} is damaged; remove it to run the instance again") from error
    if known != name:
        raise TaskError(f"{path} is a result of {known!r}: use a new folder for {name!r}")
    return result


def _listed(path: Path) -> set[str]:
    """Instances with a whole line in the predictions."""
    if not path.exists():
        return set()
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was torn off
    try:
        return {json.loads(line)["instance_id"] for line in lines if line.strip()}
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{path} is damaged; remove it, and it is made again from the results") from error


def _append(path: Path, line: str) -> None:
    """Append a line under a lock, after taking off what a killed process left unfinished; synced."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
