"""Making tasks from a package with a passing suite: put one or two small faults in, and keep what few tests notice.

A second fault is only taken beside one that breaks the same test, and the issue tells of that test: its script fails
until both are mended. Faults that no single mutation undoes are left out, since tasks are made for a closed space of
repairs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..aci.testing import TestCase
from ..errors import TaskError
from .execute import Files, Ran, Worker
from .mutations import Mutation, mutate, mutations
from .snippet import Snippet, snippet
from .tasks import (
    Fault,
    MutTask,
    corpus,
    function_of,
    graded,
    hash_of,
    inject,
    junit_id,
    modules,
    read_package,
    without_tests,
    workspace,
)  # fmt: skip

LEAST, MOST = 0.01, 0.30  # share of the tests that a fault may break
SHOWN = 300  # characters of a value in an issue
PAIRS = 200  # that are tried for each task with two faults
CHANGES = re.compile(r" at 0x[0-9a-f]+")  # differs between runs

TITLES = ("{what} gives a wrong result", "Wrong result of {what}", "{what} does not do what it should")
OPENINGS = (
    "I came across this while using {package}. The script below should run without a complaint, but it fails.",
    "This short script shows the problem; with a correct {package} it ends quietly.",
    "{package} misbehaves in the following case. The script ought to pass.",
)


class Kill(NamedTuple):
    """A set of faults and the tests that it breaks (names as in the report)."""

    faults: tuple[Fault, ...]
    failed: frozenset[str]
    cases: Mapping[str, TestCase]


class Suite(NamedTuple):
    """The package without faults."""

    name: str
    files: Files
    node_ids: Mapping[str, str]  # name in the report -> node id
    parameters: Mapping[str, Mapping[str, str]]


def build(
    source: Path | str, n: int, seed: int, double: float = 0.5, most: int | None = None, worker: Worker | None = None
) -> list[MutTask]:
    """Tasks of a package; the same arguments give the same tasks.

    Parameters
    ----------
    source : folder of the package, or the name of one that is shipped.
    n : how many tasks; there are fewer where the package does not yield so many.
    double : share of those with two faults.
    most : mutations that are tried at most; None for all, as long as they are needed.
    worker : runs the tests; None for a new one.

    Raises
    ------
    TaskError
        ``n`` is not positive, ``double`` no share, or the suite does not pass.
    """
    if n < 1 or not 0 <= double <= 1 or (most is not None and most < 1):
        raise TaskError(f"n and most have to be positive and double a share, not {n}, {most} and {double}")
    if worker is None:
        with Worker() as own:
            return build(source, n, seed, double, most, own)
    shipped = isinstance(source, str)
    name = source if isinstance(source, str) else source.resolve().name
    suite = passing(name, corpus(source) if isinstance(source, str) else read_package(source), worker)
    rng = np.random.default_rng([seed, *name.encode()])
    pool = list(_candidates(suite.files, rng))[:most]
    wanted = round(n * double)
    kills: list[Kill] = []
    found: list[MutTask] = []
    for fault in pool:
        if len(found) == n - wanted and (len(kills) >= 8 * n or not wanted):
            break
        kill = _killed(suite, (fault,), worker)
        if kill is None:
            continue
        kills.append(kill)
        if len(found) < n - wanted and not _near(kill, found):
            task = _task(suite, kill, sorted(kill.failed), rng, worker)
            found += [] if task is None else [task]
    found += _doubles(suite, kills, wanted, found, rng, worker)
    return [_named(task, i, shipped) for i, task in enumerate(found)]


def _named(task: MutTask, i: int, shipped: bool) -> MutTask:
    return MutTask(**{**task.__dict__, "id": f"{task.package}-{i + 1:02d}"})


def passing(name: str, files: Files, worker: Worker) -> Suite:
    """A package's suite; TaskError if it does not pass."""
    ran = worker.suite("package", files)
    bad = [case.id for case in ran.cases or () if case.outcome in ("failed", "error")]
    if ran.code or bad or not ran.cases or ran.parameters is None:
        said = ran.output.strip().splitlines()[-1:]
        raise TaskError(f"the suite of {name} does not pass: {', '.join(bad[:5]) or ''.join(said)}")
    passed = {case.id for case in ran.cases if case.outcome == "passed"}
    node_ids = {junit_id(node_id): node_id for node_id in ran.parameters}
    return Suite(name, files, {name: node_ids[name] for name in node_ids if name in passed}, ran.parameters)


def _candidates(files: Files, rng: np.random.Generator) -> Iterator[Fault]:
    """All mutations in random order, but in turns of the modules, or a long one would have all."""
    queues = []
    for path in modules(files):
        found = mutations(files[path].decode())
        queues.append([Fault(path, found[i]) for i in rng.permutation(len(found))])
    queues = [queues[i] for i in rng.permutation(len(queues))]
    while any(queues):
        for queue in queues:
            if queue:
                yield queue.pop()


def _killed(suite: Suite, faults: tuple[Fault, ...], worker: Worker) -> Kill | None:
    """What some faults break; None if it is too little, too much, or has no end."""
    if not all(_undone(suite.files[fault.path].decode(), fault.mutation) for fault in faults):
        return None
    ran = worker.suite("package", inject(suite.files, faults))
    failed = _broken(suite, ran)
    if failed is None or not LEAST <= len(failed) / len(suite.node_ids) <= MOST:
        return None
    return Kill(faults, failed, {case.id: case for case in ran.cases or ()})


def _broken(suite: Suite, ran: Ran) -> frozenset[str] | None:
    if ran.timed_out or ran.cases is None:
        return None
    good = {case.id for case in ran.cases if case.outcome == "passed"}
    return frozenset(suite.node_ids.keys() - good)


def _undone(source: str, mutation: Mutation) -> bool:
    """Whether a mutation of the faulty source gives the same program as before."""
    faulty = mutate(source, mutation)
    try:
        before = ast.dump(ast.parse(source))
        near = [m for m in mutations(faulty) if abs(m.start - mutation.start) <= 8 and m.function == mutation.function]
        return any(ast.dump(ast.parse(mutate(faulty, back))) == before for back in near)
    except SyntaxError:
        return False


def _near(kill: Kill, tasks: Sequence[MutTask]) -> bool:
    """Whether a task has a fault in the same function."""
    places = {(fault.path, fault.mutation.function) for task in tasks for fault in task.faults}
    return any((fault.path, fault.mutation.function) in places for fault in kill.faults)


def _doubles(
    suite: Suite, kills: Sequence[Kill], wanted: int, singles: Sequence[MutTask], rng: np.random.Generator,
    worker: Worker,
) -> list[MutTask]:  # fmt: skip
    """Tasks with two faults in different functions, that break a test in common."""
    pairs = [
        (a, b)
        for i, a in enumerate(kills)
        for b in kills[i + 1 :]
        if a.failed & b.failed and _place(a) != _place(b) and len(a.failed | b.failed) <= MOST * len(suite.node_ids)
    ]
    found: list[MutTask] = []
    for i in rng.permutation(len(pairs))[: PAIRS * max(wanted, 1)]:
        if len(found) == wanted:
            break
        a, b = pairs[i]
        if any(_same(pair, task) for pair in (a, b) for task in (*singles, *found)):
            continue
        kill = _killed(suite, (*a.faults, *b.faults), worker)
        if kill is None:
            continue
        task = _task(suite, kill, sorted(kill.failed & a.failed & b.failed), rng, worker)
        found += [] if task is None else [task]
    return found


def _place(kill: Kill) -> tuple[str, str]:
    return kill.faults[0].path, kill.faults[0].mutation.function


def _same(kill: Kill, task: MutTask) -> bool:
    return any(fault in task.faults for fault in kill.faults)


# --- issues -----------------------------------------------------------------------------------------------------------


def _task(suite: Suite, kill: Kill, tests: Sequence[str], rng: np.random.Generator, worker: Worker) -> MutTask | None:
    """A task whose issue tells of one of some tests; None if none of them can be told of."""
    functions = {function_of(suite.node_ids[name]) for name in kill.failed}
    hidden = [node_id for node_id in suite.node_ids.values() if function_of(node_id) in functions]
    visible = [node_id for node_id in suite.node_ids.values() if function_of(node_id) not in functions]
    try:
        without_tests(suite.files, hidden)
    except TaskError:
        return None  # inherited tests cannot be taken out
    for i in rng.permutation(len(tests)):
        told = _script(suite, kill, tests[i])
        if told is None:
            continue
        issue = _issue(suite, kill, told, rng, worker)
        if issue is None:
            continue
        share = round(len(kill.failed) / len(suite.node_ids), 4)
        task = MutTask(
            suite.name, suite.name, hash_of(suite.files), kill.faults, issue, told.text, tuple(hidden), tuple(visible),
            share,
        )  # fmt: skip
        if _is_fair(suite, task, worker):
            return task
    return None


def _script(suite: Suite, kill: Kill, test: str) -> Snippet | None:
    node_id = suite.node_ids[test]
    path, names = function_of(node_id)
    detail = kill.cases[test].detail if test in kill.cases else ""  # the file may not even load
    place = re.search(rf"^{re.escape(path)}:(\d+): in ", detail, re.MULTILINE)
    if place is None:
        return None
    source = suite.files[path].decode()
    return snippet(source, names, int(place[1]), suite.parameters.get(node_id, {}), path)


def _issue(suite: Suite, kill: Kill, told: Snippet, rng: np.random.Generator, worker: Worker) -> str | None:
    """The report; None if the script does not tell right from wrong, or says something else each time."""
    faulty = inject(suite.files, kill.faults)
    right, wrong = worker.script("package", suite.files, told.text), worker.script("package", faulty, told.text)
    if right.code or wrong.code == 0 or wrong.timed_out or CHANGES.search(wrong.output):
        return None
    lines = wrong.output.strip().splitlines()
    got = f"the script ends with `{_cut(lines[-1])}`" if lines else "the script ends with an error"
    expected = "the last statement holds" if told.last.startswith("assert") else "the script ends quietly"
    for side in told.sides or ():
        values = [
            worker.script("package", files, f"{told.setup}print(repr({side}))\n").output.strip()
            for files in (suite.files, faulty)
        ]
        if values[0] != values[1] and not values[1].startswith("Traceback"):
            expected, got = (f"`{_cut(value)}`" for value in values)
            break
    what = f"`{told.calls[0]}`" if told.calls else suite.name
    title, opening = (rng.choice(texts) for texts in (TITLES, OPENINGS))
    return (
        f"{title.format(what=what)}\n\n{opening.format(package=suite.name)}\n\n```python\n{told.text}```\n\n"
        f"Expected: {expected}\n\nGot: {got}\n"
    )


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _is_fair(suite: Suite, task: MutTask, worker: Worker) -> bool:
    """Whether the script fails until every fault is mended, what is visible passes, and what is hidden fails."""
    start = workspace(task, suite.files)
    scripts = [worker.script("visible", start, task.snippet)]
    if len(task.faults) > 1:
        scripts += [
            worker.script("visible", inject(suite.files, [fault]), task.snippet) for fault in task.faults
        ]  # one mended, the other left
    if any(ran.code == 0 for ran in scripts) or _names_a_test(task):
        return False
    seen = worker.suite("visible", start)
    judged = worker.suite("hidden", graded(task, suite.files, start), task.hidden)
    if seen.code or not seen.cases or judged.cases is None:
        return False
    return any(case.outcome != "passed" for case in judged.cases)


def _names_a_test(task: MutTask) -> bool:
    names = {function_of(test)[1][-1] for test in (*task.hidden, *task.visible)}
    return any(re.search(rf"\b{name}\b", task.issue) for name in names)
