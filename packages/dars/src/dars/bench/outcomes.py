"""What tests and scripts do in every state of a task: known from a table, or found out once and remembered.

An outcome is a function of the task and of the files of its package. A state is named by how these differ from the
workspace in which the task begins, so that a table tells its states in full.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..aci.testing import TestCase
from ..env.sandbox import TIMED_OUT
from ..errors import TaskError
from .execute import WORKSPACE, Files, Ran, Worker
from .mutations import mutate, mutations
from .tasks import TABLE, MutTask, graded, inject, json_gz, junit_id, modules, package_of, read_json_gz, workspace

SUITE, HIDDEN, SCRIPT = "suite", "hidden", "script"
FORMAT = 1
NAME = "reproduce.py"
# New files in the workspace's top folder are an agent's own, but for those that change what pytest does.
SETTINGS = frozenset({"conftest.py", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg"})

Segment = tuple[int, int, str]
Runs = dict[str, dict[str, "Run"]]  # state -> what -> run


class Run(NamedTuple):
    """What a run did.

    Attributes
    ----------
    output : of a script, or of a suite that wrote no report; the folder is written WORKSPACE.
    bad : tests that did not pass, skipped ones too.
    missing : names of tests that were not run, because their file did not load.
    passed : names of tests that passed, where only some were asked for.
    """

    code: int
    output: str = ""
    timed_out: bool = False
    reported: bool = True
    bad: tuple[TestCase, ...] = ()
    missing: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()


class Table(NamedTuple):
    """Recorded outcomes.

    Attributes
    ----------
    versions : of python and pytest that gave them; other versions word tracebacks differently.
    runs : task id -> state -> what -> run.
    sources : task id -> hash of the package and of its faults.
    """

    versions: Mapping[str, str]
    runs: Mapping[str, Runs]
    sources: Mapping[str, str]


class Outcomes:
    """Outcomes of one task.

    Parameters
    ----------
    table : recorded outcomes; what it does not hold is executed.
    source : folder of the package; None for one that is shipped.
    worker : executes; None for one of its own, which ``close`` ends.

    Attributes
    ----------
    executed : runs that no table held.
    """

    def __init__(
        self, task: MutTask, table: Table | None = None, source: Path | None = None, worker: Worker | None = None
    ) -> None:
        self.task = task
        self.package = package_of(task, source)
        self.base = workspace(task, self.package)
        self.folders = {path.partition("/")[0] for path in self.base if "/" in path}
        self.executed = 0
        self.runs: Runs = {}
        if table is not None and task.id in table.runs:
            if table.sources[task.id] != source_of(task):
                raise TaskError(f"the table was made for another task {task.id}: build it again")
            self.runs = {state: dict(runs) for state, runs in table.runs[task.id].items()}
        self._worker = worker or Worker()
        self._own = worker is None
        self._segments: dict[tuple[str, bytes], Segment] = {}
        self._visible = [junit_id(test) for test in task.visible]

    def close(self) -> None:
        """End the process that executes, if it is its own."""
        if self._own:
            self._worker.close()

    def suite(self, files: Files, selection: Sequence[str] = ()) -> Run:
        """Run the visible tests, or some of them by the arguments of pytest."""
        kept = self._kept(files)
        what = " ".join([SUITE, json.dumps(list(selection))]) if selection else SUITE
        expected = [] if selection else self._visible
        return self._known(kept, what, lambda: _suite(self._worker.suite("visible", kept, selection), expected))

    def script(self, files: Files, text: str, name: str = NAME) -> Run:
        """Run a script in the top folder, beside the package."""
        kept = self._kept(files)
        ran = self._known(kept, script_key(text), lambda: _script(self._worker.script("visible", kept, text, NAME)))
        return ran._replace(output=ran.output.replace(f"{WORKSPACE}/{NAME}", f"{WORKSPACE}/{name}"))

    def hidden(self, files: Files) -> frozenset[str]:
        """Node ids of the hidden tests that fail."""
        kept = self._kept(files)
        names = [junit_id(test) for test in self.task.hidden]

        def execute() -> Run:
            ran = _suite(self._worker.suite("hidden", graded(self.task, self.package, kept), self.task.hidden), names)
            return ran._replace(bad=tuple(TestCase(case.id, case.outcome) for case in ran.bad), output="")

        ran = self._known(kept, HIDDEN, execute)
        if not ran.reported:
            return frozenset(self.task.hidden)
        failing = {case.id for case in ran.bad} | set(ran.missing)
        return frozenset(test for test, name in zip(self.task.hidden, names, strict=True) if name in failing)

    def resolved(self, files: Files) -> bool:
        """Whether a state is right: everything passes that is visible and that is hidden."""
        seen = self.suite(files)
        return seen.reported and not seen.bad and not seen.missing and not self.hidden(files)

    def state(self, files: Files) -> str:
        """Name of a state: how the package's files and tests differ from those at the beginning."""
        return self._state(self._kept(files))

    def files(self, state: str) -> dict[str, bytes]:
        """The files of a state."""
        found = dict(self.base)
        for path, segment in json.loads(state).items():
            if segment is None:
                del found[path]
                continue
            start, end, text = segment
            old = found.get(path, b"").decode("utf-8", "surrogateescape")
            found[path] = (old[:start] + text + old[end:]).encode("utf-8", "surrogateescape")
        return found

    def _kept(self, files: Files) -> dict[str, bytes]:
        """The files that matter: without what an agent left beside the package."""
        return {
            path: data
            for path, data in files.items()
            if path in self.base or path.partition("/")[0] in self.folders or path in SETTINGS
        }

    def _state(self, kept: Files) -> str:
        changed: dict[str, Segment | None] = dict.fromkeys(path for path in self.base if path not in kept)
        for path, data in kept.items():
            if self.base.get(path) != data:
                key = (path, data)
                if key not in self._segments:
                    self._segments[key] = _segment(self.base.get(path, b""), data)
                changed[path] = self._segments[key]
        return json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def _known(self, kept: Files, what: str, execute: Callable[[], Run]) -> Run:
        runs = self.runs.setdefault(self._state(kept), {})
        if what not in runs:
            self.executed += 1
            runs[what] = execute()
        return runs[what]


def source_of(task: MutTask) -> str:
    """A name of what a task's outcomes depend on."""
    faults = [[fault.path, fault.mutation.start, fault.mutation.replacement] for fault in task.faults]
    return _digest(json.dumps([task.source_hash, faults, task.hidden]))


def script_key(text: str) -> str:
    """What the run of a script is called."""
    return f"{SCRIPT} {_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _segment(old: bytes, new: bytes) -> Segment:
    """(start, end, text): what has to stand in place of the old characters from start to end."""
    before, after = (data.decode("utf-8", "surrogateescape") for data in (old, new))
    start = _common(before, after)
    tail = min(_common(before[::-1], after[::-1]), min(len(before), len(after)) - start)
    return start, len(before) - tail, after[start : len(after) - tail]


def _common(a: str, b: str) -> int:
    """Characters in which both begin alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _suite(ran: Ran, expected: Sequence[str]) -> Run:
    if ran.timed_out or ran.cases is None:
        return Run(TIMED_OUT if ran.timed_out else ran.code, ran.output, ran.timed_out, False)
    bad = tuple(case for case in ran.cases if case.outcome != "passed")
    missing = tuple(sorted(set(expected) - {case.id for case in ran.cases}))
    passed = () if expected else tuple(case.id for case in ran.cases if case.outcome == "passed")
    return Run(ran.code, "" if ran.cases else ran.output, bad=bad, missing=missing, passed=passed)


def _script(ran: Ran) -> Run:
    return Run(TIMED_OUT if ran.timed_out else ran.code, ran.output, ran.timed_out, False)


# --- tables -----------------------------------------------------------------------------------------------------------


def imports_of(script: str) -> str:
    """The lines of a script's first imports: a reproduction that shows nothing."""
    lines = script.splitlines(keepends=True)
    head = [i for i, line in enumerate(lines) if line.startswith(("import ", "from "))]
    return "".join(lines[: len(head)] if head == list(range(len(head))) else [])


def edits(files: Files, paths: Iterable[str]) -> Iterator[tuple[str, str, bytes]]:
    """(path, function, content) of all single edits of some files that a mutation operator can make."""
    for path in paths:
        source = files[path].decode()
        for mutation in mutations(source):
            yield path, mutation.function, mutate(source, mutation).encode()


def likely_states(outcomes: Outcomes, pairs: int, seed: int) -> list[Files]:
    """States that a repair by edits comes through.

    The beginning, all single edits, edits of one faulty function with the other mended, and a random sample of pairs.
    """
    base, faults = outcomes.base, outcomes.task.faults
    paths = modules(base)
    singles = [{**base, path: content} for path, _, content in edits(base, paths)]
    found: list[Files] = [base, *singles]
    for fault in faults if len(faults) > 1 else ():
        (other,) = (one for one in faults if one is not fault)
        half = inject(outcomes.package, [other])
        start = {**base, **{path: half[path] for path in paths}}
        found.append(start)
        for path, function, content in edits(start, [other.path]):
            if function == other.mutation.function:
                found.append({**start, path: content})
    rng = np.random.default_rng(seed)
    for i in rng.integers(len(singles), size=pairs):
        second = list(edits(singles[i], paths))
        path, _, content = second[int(rng.integers(len(second)))]
        found.append({**singles[i], path: content})
    return found


def record(outcomes: Outcomes, states: Iterable[Files]) -> None:
    """Find out what an agent would see in some states, and how they are graded."""
    script = outcomes.task.snippet
    for files in states:
        outcomes.suite(files)
        outcomes.script(files, script)
        if imports_of(script):
            outcomes.script(files, imports_of(script))
        outcomes.resolved(files)


def dump_table(outcomes: Iterable[Outcomes], versions: Mapping[str, str]) -> bytes:
    """Everything that some outcomes know, compressed."""
    texts: dict[str, int] = {"": 0}
    cases: dict[TestCase, int] = {}

    def text(value: str) -> int:
        return texts.setdefault(value, len(texts))

    def row(run: Run) -> list[Any]:
        found = [cases.setdefault(case, len(cases)) for case in run.bad]
        told = [
            run.code,
            text(run.output),
            int(run.timed_out),
            int(run.reported),
            found,
            [text(t) for t in run.missing],
        ]
        return [*told, [text(t) for t in run.passed]] if run.passed else told

    tasks = {
        one.task.id: {
            "source": source_of(one.task),
            "runs": {
                state: {what: row(run) for what, run in sorted(runs.items())}
                for state, runs in sorted(one.runs.items())
            },
        }
        for one in outcomes
    }
    pool = [[text(case.id), case.outcome, text(case.message), text(case.detail)] for case in cases]
    return json_gz({"format": FORMAT, **versions, "tasks": tasks, "cases": pool, "texts": list(texts)})


def load_table(path: Path | None = None) -> Table:
    """A table; without a path, that of the tasks that are shipped.

    Raises
    ------
    TaskError
        It cannot be read, or is none.
    """
    try:
        data = (resources(__package__) / TABLE).read_bytes() if path is None else path.read_bytes()
        document = read_json_gz(data)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        texts = document["texts"]
        cases = [TestCase(texts[i], outcome, texts[m], texts[d]) for i, outcome, m, d in document["cases"]]
        runs = {
            task: {
                state: {what: _run(row, texts, cases) for what, row in found.items()}
                for state, found in one["runs"].items()
            }
            for task, one in document["tasks"].items()
        }
        sources = {task: one["source"] for task, one in document["tasks"].items()}
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise TaskError(f"{path or TABLE} is no table of outcomes: {error}") from None
    return Table({name: document[name] for name in ("python", "pytest")}, runs, sources)


def _run(row: list[Any], texts: Sequence[str], cases: Sequence[TestCase]) -> Run:
    code, output, timed_out, reported, bad, *names = row
    missing, passed = (tuple(texts[i] for i in some) for some in [*names, []][:2])
    return Run(code, texts[output], bool(timed_out), bool(reported), tuple(cases[i] for i in bad), missing, passed)
