"""Whether a table of outcomes tells the truth: some of its entries executed again, as an agent would have it done."""

from __future__ import annotations

import itertools
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..aci.testing import TestCase, run_suite
from ..env.local import LocalEnvironment
from .execute import COMMAND, WORKSPACE, Files, Worker, own_python
from .outcomes import HIDDEN, NAME, SUITE, Outcomes, Run, Table, imports_of, script_key
from .tasks import MutTask, graded, junit_id

LONG_S = 8.0  # what the table calls endless has to last so long
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")


class Mismatch(NamedTuple):
    """An entry of a table and what happened instead."""

    task: str
    state: str
    what: str
    recorded: Run
    found: Run


def verify(
    tasks: Sequence[MutTask], table: Table, n: int | None = 5, seed: int = 0, sandbox: str = "auto", real: bool = True,
    source: Path | None = None,
) -> list[Mismatch]:  # fmt: skip
    """Execute entries of a table again and tell those that come out otherwise.

    Texts are compared only where python and pytest are those that the table was made with.

    Parameters
    ----------
    n : entries, drawn at random; None for all.
    real : run commands in a LocalEnvironment, as an agent does; else in the faster process that makes tables.
    source : folder of the package, where it is not shipped.
    """
    known = [
        (task, state, what) for task in tasks for state, runs in table.runs.get(task.id, {}).items() for what in runs
    ]
    chosen = known
    if n is not None:
        drawn = np.random.default_rng(seed).choice(len(known), size=min(n, len(known)), replace=False)
        chosen = [known[int(i)] for i in sorted(drawn)]
    found: list[Mismatch] = []
    with own_python(), Worker(sandbox) as worker:
        worker.script("package", {}, "")  # for its versions
        same = worker.versions == dict(table.versions)
        for task, group in itertools.groupby(chosen, key=lambda entry: entry[0]):
            one = Outcomes(task, None, source, worker)
            for _, state, what in group:
                recorded = table.runs[task.id][state][what]
                run = _in_reality(one, state, what, sandbox) if real else _again(one, state, what)
                if run is not None and _told(run, same) != _told(recorded, same):
                    found.append(Mismatch(task.id, state, what, recorded, run))
    return found


def _told(run: Run, whole: bool) -> object:
    """What has to be equal."""
    if not whole:
        return run.code, run.timed_out, run.reported, [(case.id, case.outcome) for case in run.bad], run.missing
    bad = [tuple(ADDRESS.sub("0x", part) for part in case) for case in run.bad]
    return run._replace(output=ADDRESS.sub("0x", run.output), bad=()), bad


def _scripts(task: MutTask) -> dict[str, str]:
    return {script_key(text): text for text in (task.snippet, imports_of(task.snippet))}


def _again(one: Outcomes, state: str, what: str) -> Run | None:
    """A run in the worker; None for a script that is not known."""
    files = one.files(state)
    if what == SUITE:
        return one.suite(files)
    if what == HIDDEN:
        one.hidden(files)
        return one.runs[state][what]
    return one.script(files, _scripts(one.task)[what]) if what in _scripts(one.task) else None


def _in_reality(one: Outcomes, state: str, what: str, sandbox: str) -> Run | None:
    """A run in a workspace of its own."""
    task, files = one.task, one.files(state)
    if what == SUITE:
        return _suite(files, (), task.visible, sandbox)
    if what == HIDDEN:
        ran = _suite(graded(task, one.package, files), task.hidden, task.hidden, sandbox)
        return ran._replace(bad=tuple(TestCase(case.id, case.outcome) for case in ran.bad), output="")
    if what not in _scripts(task):
        return None
    return _script({**files, NAME: _scripts(task)[what].encode()}, sandbox)


def _suite(files: Files, tests: Sequence[str], expected: Sequence[str], sandbox: str) -> Run:
    with tempfile.TemporaryDirectory() as folder, _workspace(files, Path(folder), sandbox) as env:
        done, cases = run_suite(env, {}, COMMAND, shlex.join(tests))
    output = done.output.replace(folder, WORKSPACE)
    if cases is None:
        return Run(done.returncode, output, done.timed_out, False)
    bad = [case for case in cases if case.outcome != "passed"]
    for i, case in enumerate(bad):
        message, detail = (text.replace(folder, WORKSPACE) for text in (case.message, case.detail))
        bad[i] = case._replace(message=message, detail=detail)
    missing = {junit_id(test) for test in expected} - {case.id for case in cases}
    return Run(done.returncode, "" if cases else output, bad=tuple(bad), missing=tuple(sorted(missing)))


def _script(files: Files, sandbox: str) -> Run:
    with tempfile.TemporaryDirectory() as folder, _workspace(files, Path(folder), sandbox) as env:
        done = env.exec(f"python {NAME}")
    return Run(done.returncode, done.output.replace(folder, WORKSPACE), done.timed_out, False)


def _workspace(files: Files, folder: Path, sandbox: str) -> LocalEnvironment:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return LocalEnvironment(folder, sandbox=sandbox, timeout=LONG_S, output_chars=1 << 20)  # as the table: whole
