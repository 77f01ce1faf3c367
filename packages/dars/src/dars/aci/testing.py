"""Running the tests: run_tests, and what a JUnit report says."""

from __future__ import annotations

import contextlib
import shlex
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..env.base import Environment, ExecResult
from ..errors import EnvError
from .base import Observation, State, Tool
from .common import INTEGER, STRING, described, make_tool
from .shell import report, run_command, seconds

PYTEST = "python -m pytest -q"
REPORT = ".dars-junit.xml"
SHOWN = 20  # failures in detail
DETAIL_LINES = 25


class TestCase(NamedTuple):
    """One test: "module.Class::name", passed, failed, error or skipped, and the traceback."""

    id: str
    outcome: str
    message: str = ""
    detail: str = ""


def parse_junit(data: bytes) -> list[TestCase]:
    """Tests of a JUnit report; a test that fails twice (in its body and in teardown) counts once.

    Raises
    ------
    ValueError
        It is no XML.
    """
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"the report is no XML: {error}") from None
    cases: dict[str, TestCase] = {}
    for element in root.iter("testcase"):
        identity = "::".join(part for part in (element.get("classname"), element.get("name")) if part)
        case = TestCase(identity, "passed")
        for tag, outcome in (("skipped", "skipped"), ("error", "error"), ("failure", "failed")):
            found = element.find(tag)
            if found is not None:
                case = TestCase(identity, outcome, found.get("message") or "", found.text or "")
        if identity not in cases or cases[identity].outcome in ("passed", "skipped"):
            cases[identity] = case
    return list(cases.values())


def run_suite(
    env: Environment, state: State, command: str, selection: str = "", timeout: float | None = None
) -> tuple[ExecResult, list[TestCase] | None]:
    """Run tests; cases are None where the command left no report, as one other than pytest.

    pytest is told through its variable, so that the command may be a script that calls it.
    """
    try:
        chosen = shlex.join(shlex.split(selection))
    except ValueError as error:
        raise EnvError(f"the selection {selection!r} cannot be read: {error}") from None
    # Absolute, since pytest may run elsewhere; quoted, since pytest splits the variable as a shell would.
    wanted = f"""export PYTEST_ADDOPTS="-p no:cacheprovider '--junitxml=$PWD/{REPORT}'"\n"""
    done = run_command(env, {**state, "cwd": "."}, f"{wanted}{command} {chosen}".rstrip(), timeout)
    cases = None
    with contextlib.suppress(EnvError):
        data = env.read_file(REPORT)
        env.remove_file(REPORT)
        with contextlib.suppress(ValueError):  # cut off when the time ran out
            cases = parse_junit(data)
    return done, cases


def run_tests(command: str | None = None) -> Tool:
    """The tool, for a project whose tests are run by ``command``; default pytest."""

    def run(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
        done, cases = run_suite(env, state, command or PYTEST, args.get("selection", ""), seconds(args))
        seen = report(done, state)
        return seen if not cases else seen._replace(text=summary(cases))

    return make_tool(
        "run_tests", "other", run, "Run the project's tests, all or some, and see which fail.", {},
        {
            "selection": described(STRING, "arguments of the test command: files, ids, -k EXPRESSION"),
            "timeout": described(INTEGER, "seconds"),
        },
    )  # fmt: skip


def summary(cases: list[TestCase]) -> str:
    """Counts, then the failures with the ends of their tracebacks."""
    counts = Counter(case.outcome for case in cases)
    head = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "error", "skipped"))
    bad = [case for case in cases if case.outcome in ("failed", "error")]
    parts = [head]
    for case in bad[:SHOWN]:
        detail = "\n".join(case.detail.strip().splitlines()[-DETAIL_LINES:])
        parts.append(f"{case.outcome.upper()} {case.id}\n{detail or case.message}")
    if len(bad) > SHOWN:
        parts.append("And: " + ", ".join(case.id for case in bad[SHOWN:]))
    return "\n\n".join(parts)
