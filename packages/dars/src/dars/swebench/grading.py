"""The official grading: the harness as a process, and its verdict as a pure function."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from ..errors import EnvError, TaskError
from ..interop.predictions import read_predictions

PASSED = frozenset({"PASSED", "XFAIL"})
FAILED = frozenset({"FAILED", "ERROR", "SKIPPED"})

Verdict = Literal["resolved", "partial", "no"]


def grade(fail_to_pass: Iterable[str], pass_to_pass: Iterable[str], status_map: Mapping[str, str]) -> Verdict:
    """The verdict of ``swebench.harness.grading`` (5.0) for instances that count passes and failures.

    Resolved: all of both lists passed. Partial: all of ``pass_to_pass`` and some of ``fail_to_pass``. A skipped test
    counts as passed in ``pass_to_pass`` only; one that is not in the map failed; one with another status counts
    nowhere.

    Parameters
    ----------
    status_map : test -> PASSED, FAILED, SKIPPED, ERROR or XFAIL.

    Examples
    --------
    >>> grade(["a", "b"], ["c"], {"a": "PASSED", "b": "FAILED", "c": "SKIPPED"})
    'partial'
    """
    repaired = [_status(test, status_map) for test in fail_to_pass]
    kept = [_status(test, status_map) for test in pass_to_pass]
    good = sum(status in PASSED for status in repaired)
    counted = good + sum(status in FAILED for status in repaired)
    if any(status in FAILED and status != "SKIPPED" for status in kept):
        return "no"
    if good == counted:
        return "resolved"
    return "partial" if good else "no"


def _status(test: str, status_map: Mapping[str, str]) -> str:
    """Of a test; a name that is cut off inside its parameters matches those it begins, if they agree."""
    if test in status_map:
        return status_map[test]
    if test.count("[") > test.count("]"):
        found = [status for name, status in status_map.items() if name.startswith(test)]
        if len({status in PASSED for status in found}) == 1:
            return found[0]
    return "FAILED"


def evaluate(
    predictions: str | Path, dataset: str, run_id: str, workers: int = 4, split: str = "test", out: Path | None = None
) -> Path:
    """Grade predictions with ``swebench eval`` (5.x; it needs docker), and return the path of its report.

    Parameters
    ----------
    predictions : ``.jsonl`` or ``.json`` file.
    dataset : alias, name on the hub, or file, as the harness takes it.
    out : where the report, the harness's logs and ``<run_id>.log`` go; default: ``evaluation`` beside the predictions.

    Raises
    ------
    TaskError
        swebench is not installed, or the predictions are malformed or empty.
    EnvError
        The harness failed; its last lines are shown.
    """
    rows = read_predictions(predictions)
    if not rows:
        raise TaskError(f"{predictions} holds no predictions")
    search = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    program = shutil.which("swebench", path=search)
    if program is None:
        raise TaskError("grading needs swebench: pip install 'dars-agent[swebench]'")
    out = Path(predictions).resolve().parent / "evaluation" if out is None else Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    source = str(Path(dataset).resolve()) if Path(dataset).exists() else dataset
    command = [
        program, "eval", source, "-p", str(Path(predictions).resolve()), "--run-id", run_id, "-j", str(workers),
        "--split", split, "--report-dir", str(out),
    ]  # fmt: skip
    log = out / f"{run_id}.log"
    with log.open("wb") as file:  # it writes its logs to the folder it runs in
        done = subprocess.run(command, cwd=out, stdout=file, stderr=subprocess.STDOUT, check=False)
    report = out / f"{rows[0]['model_name_or_path'].replace('/', '__')}.{run_id}.json"
    if done.returncode or not report.exists():
        last = " | ".join(log.read_text(errors="replace").strip().split("\n")[-3:])
        raise EnvError(f"swebench eval failed with exit code {done.returncode}; see {log}: {last}")
    return report
