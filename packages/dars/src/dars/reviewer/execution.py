"""The cross-branch matrix: every reproduction script of the tree and every visible test judges every candidate.

A patch is judged by the scripts of other branches too, whose authors did not know it.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..aci.testing import PYTEST, run_suite
from ..candidates import Candidate
from ..env.base import Environment
from ..errors import EnvError, TaskError
from ..patches import changes
from ..task import Task
from .base import Case, Review
from .labels import Labelled
from .scripts import Script, scripts

ARGUMENT_CHARS = 100_000  # of the tests in one command; a system takes 128 KiB in one argument


class ExecutionReviewer:
    """Scores of a matrix M[t, p] in {0, 1}: whether script t ends with exit code 0 in a fresh copy of base + patch p.

    score(p) = sqrt(|class of p|) * sum_t w_t M[t, p] - penalty * (visible tests that pass at the base and not with p)

    The class of p holds all candidates that the scripts cannot tell from it. Only scripts that fail at the base count;
    w_t = 1 / (number of those from t's subtree, see :class:`~.scripts.Script`), and 0 where no candidate passes. A
    patch that does not apply comes below all others.

    Parameters
    ----------
    timeout : seconds for one script; one that does not end has failed.
    tests_timeout : seconds for the visible tests. Where the task names none, all that its test command runs are
        visible; without a command too, those that pytest collects.
    """

    name = "execution"

    def __init__(self, timeout: float = 60.0, penalty: float = 1.0, tests_timeout: float = 1800.0) -> None:
        self.timeout, self.penalty, self.tests_timeout = timeout, penalty, tests_timeout
        self._last: tuple[Case, Review] | None = None

    def review(self, case: Case) -> Review:
        """Judge; several reviewers that build on the matrix of one case share it."""
        if self._last is None or self._last[0] is not case:
            self._last = (case, self._review(case))
        return self._last[1]

    def _review(self, case: Case) -> Review:
        if not case.candidates:
            return Review((), {"scripts": [], "tests": {}, "candidates": []})
        env = case.env
        try:
            env.restore(case.base)
            patched = {change.path for c in case.candidates for change in changes(c.patch)}
            found = scripts(case.tree, env, env.list_files(), patched)
            before = [self._run(env, case.base, script) for script in found]
            kept = [script for script, code in zip(found, before, strict=True) if code != 0]
            suite = _Suite(case.task, self.tests_timeout)
            env.restore(case.base)
            passing = suite.begin(env)
            columns = [self._column(case, candidate, kept, suite) for candidate in case.candidates]
        finally:
            env.restore(case.base)
        matrix = [[column["scripts"][t] for column in columns] for t in range(len(kept))]
        sizes = Counter(script.subtree for script in kept)
        weights = [
            1 / sizes[script.subtree] if any(row) else 0.0 for script, row in zip(kept, matrix, strict=True)
        ]  # fmt: skip
        broken = [sorted(passing - column["tests"]) for column in columns]
        weight = iter(weights)
        evidence = {
            "candidates": [
                {
                    "node": candidate.node_id, "class": size, "broken": tests,
                    **({"error": column["error"]} if column["error"] else {}),
                }
                for candidate, column, tests, size in zip(
                    case.candidates, columns, broken, class_sizes(matrix, len(columns)), strict=True
                )
            ],
            "scripts": [
                {
                    "path": script.path, "command": script.command, "node": script.node, "subtree": script.subtree,
                    "base_exit_code": code, "kept": code != 0, "weight": next(weight) if code != 0 else 0.0,
                    "text": script.content.decode("utf-8", "replace"),
                }
                for script, code in zip(found, before, strict=True)
            ],
            "matrix": matrix,
            "tests": {name: [int(name in column["tests"]) for column in columns] for name in sorted(passing)},
            "penalty": self.penalty,
        }  # fmt: skip
        return Review(tuple(evidence_scores(evidence)), evidence)

    def scores(self, case: Labelled) -> list[float]:
        """Of a case that was executed before; TaskError if it was not."""
        if case.execution is None:
            raise TaskError(f"the case {case.id} was labelled without execution: nothing can be read from its scripts")
        return evidence_scores(case.execution)

    def _column(self, case: Case, candidate: Candidate, kept: Sequence[Script], suite: _Suite) -> dict[str, Any]:
        """What a candidate passes."""
        env = case.env
        env.restore(case.base)
        try:
            env.apply(candidate.patch)
        except EnvError as error:
            return {"scripts": [0] * len(kept), "tests": frozenset(), "error": str(error)}
        patched = env.snapshot()
        passed = [int(self._run(env, patched, script) == 0) for script in kept]
        env.restore(patched)
        return {"scripts": passed, "tests": suite.passed(env), "error": ""}

    def _run(self, env: Environment, state: str, script: Script) -> int:
        """Exit code of a script in a fresh copy of a state."""
        env.restore(state)
        env.write_file(script.path, script.content)
        done = env.exec(script.command, self.timeout)
        return done.returncode or int(done.timed_out)


class _Suite:
    """The visible tests of a task; where the command leaves no report, each is run alone and judged by exit code."""

    def __init__(self, task: Task, timeout: float) -> None:
        self.tests = list(task.visible_tests)
        self.command = task.test_command or PYTEST
        self.named = bool(task.test_command or self.tests)  # else there may be no tests, and no pytest either
        self.timeout = timeout
        self.alone = False

    def begin(self, env: Environment) -> frozenset[str]:
        """Those that pass at the base."""
        state = env.snapshot()
        passing = self._reported(env)
        if not self.named and not passing:
            self.command = ""
            return frozenset()
        if passing is None:
            self.alone = True
            env.restore(state)
            passing = self._alone(env)
        return passing

    def passed(self, env: Environment) -> frozenset[str]:
        """Those that pass now. No report where there was one at the base: the tests could not even be run."""
        return self._alone(env) if self.alone else self._reported(env) or frozenset()

    def _reported(self, env: Environment) -> frozenset[str] | None:
        if not self.command:
            return frozenset()
        passed: list[str] = []
        for selection in _selections(self.tests):
            _, cases = run_suite(env, {}, self.command, selection, self.timeout)
            if cases is None:
                return None
            passed += [case.id for case in cases if case.outcome == "passed"]
        return frozenset(passed)

    def _alone(self, env: Environment) -> frozenset[str]:
        state = env.snapshot()
        passed = []
        for test in self.tests or [""]:
            env.restore(state)
            done, _ = run_suite(env, {}, self.command, shlex.quote(test) if test else "", self.timeout)
            if done.returncode == 0:
                passed.append(test or self.command)
        return frozenset(passed)


def evidence_scores(evidence: Mapping[str, Any]) -> list[float]:
    """The scores that follow from the evidence of a review."""
    weights = [script["weight"] for script in evidence["scripts"] if script["kept"]]
    broken = [len(candidate["broken"]) for candidate in evidence["candidates"]]
    scores = matrix_scores(evidence["matrix"], weights, broken, evidence.get("penalty", 1.0))
    worst = min(scores)
    return [worst - 1 if "error" in c else score for score, c in zip(scores, evidence["candidates"], strict=True)]


def matrix_scores(
    matrix: Sequence[Sequence[int]], weights: Sequence[float], broken: Sequence[int], penalty: float = 1.0
) -> list[float]:
    """The score of every candidate.

    Parameters
    ----------
    matrix : (scripts, candidates) of 0 and 1.
    weights : (scripts,)
    broken : (candidates,), numbers of broken tests.
    """
    sizes = class_sizes(matrix, len(broken))
    return [
        math.sqrt(sizes[p]) * sum(w * row[p] for w, row in zip(weights, matrix, strict=True)) - penalty * broken[p]
        for p in range(len(broken))
    ]


def class_sizes(matrix: Sequence[Sequence[int]], n: int) -> list[int]:
    """How many of the n candidates the scripts cannot tell from each, itself included."""
    columns = [tuple(row[p] for row in matrix) for p in range(n)]
    sizes = Counter(columns)
    return [sizes[column] for column in columns]


def _selections(tests: Sequence[str]) -> list[str]:
    """The tests as arguments, in commands that are not too long."""
    parts = [""]
    for test in tests:
        quoted = shlex.quote(test)
        if parts[-1] and len(parts[-1]) + len(quoted) > ARGUMENT_CHARS:
            parts.append("")
        parts[-1] = f"{parts[-1]} {quoted}".strip()
    return parts
