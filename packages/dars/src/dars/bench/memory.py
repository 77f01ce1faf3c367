"""A workspace in memory whose tests and scripts give what they would give in a real one."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ..aci.testing import REPORT
from ..env.base import ExecResult
from ..env.memory import MemoryEnvironment
from ..env.output import shorten
from ..errors import TaskError
from .execute import COMMAND, WORKSPACE, Files
from .outcomes import Outcomes, Run
from .tasks import MutTask, junit_id

TIMEOUT_S = 120.0  # as LocalEnvironment has it
OUTPUT_CHARS = 20_000
PYTHON = frozenset({"python", "python3"})


class TaskEnvironment(MemoryEnvironment):
    """Answers the commands of run_tests, "python script.py" and "pwd"; others it does not know (exit code 127).

    Parameters
    ----------
    root : the folder that tracebacks name.
    """

    def __init__(self, files: Files, outcomes: Outcomes, root: Path) -> None:
        super().__init__(files)
        self._outcomes, self._root = outcomes, root
        self._visible = [junit_id(test) for test in outcomes.task.visible]

    def exec(self, cmd: str | list[str], timeout: float | None = None, stdin: bytes | None = None) -> ExecResult:
        """What the command would print; the report of run_tests is written."""
        lines = shlex.join(cmd) if isinstance(cmd, list) else cmd
        *exports, line = lines.strip().split("\n")
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        reports = len(exports) == 1 and exports[0].startswith("export PYTEST_ADDOPTS=") and REPORT in exports[0]
        selection = _selection(words)
        if reports and selection is not None:
            ran = self._outcomes.suite(self._files, selection)
            if ran.reported:
                self._files[REPORT] = _report(ran, [] if selection else self._visible)
            return self._result(ran, timeout)
        if not exports and len(words) == 2 and words[0] in PYTHON and words[1].endswith(".py") and "/" not in words[1]:
            return self._script(words, timeout)
        if lines == "pwd":
            return ExecResult(0, f"{self._root}\n")
        return ExecResult(127, f"{words[0] if words else line}: a workspace in memory does not know this command\n")

    def _script(self, words: list[str], timeout: float | None) -> ExecResult:
        name = words[1]
        if name not in self._files:
            where = self._root / name
            return ExecResult(2, f"{words[0]}: can't open file '{where}': [Errno 2] No such file or directory\n")
        text = self._files[name].decode("utf-8", "surrogateescape")
        return self._result(self._outcomes.script(self._files, text, name), timeout)

    def _result(self, ran: Run, timeout: float | None) -> ExecResult:
        text, truncated = shorten(ran.output.replace(WORKSPACE, str(self._root)), OUTPUT_CHARS)
        seconds = TIMEOUT_S if timeout is None else timeout
        return ExecResult(ran.code, text, ran.timed_out, truncated, seconds if ran.timed_out else 0.0)

    def clone(self) -> TaskEnvironment:
        """Another workspace on the same remembered states."""
        twin = TaskEnvironment({}, self._outcomes, self._root)
        twin._files, twin._base, twin._known = dict(self._files), self._base, self._known
        return twin


def memory_environment(task: MutTask, outcomes: Outcomes, root: Path = Path("/workspace")) -> MemoryEnvironment:
    """The workspace of a task.

    Parameters
    ----------
    root : where it seems to lie.

    Raises
    ------
    TaskError
        The outcomes are those of another task.
    """
    if outcomes.task != task:
        raise TaskError(f"these are the outcomes of {outcomes.task.id}, not of {task.id}")
    return TaskEnvironment(outcomes.base, outcomes, root)


def _selection(words: list[str]) -> list[str] | None:
    """What follows the command that runs the tests; None if it is another command."""
    head = COMMAND.split()
    return words[len(head) :] if words[: len(head)] == head else None


def _report(ran: Run, visible: list[str]) -> bytes:
    """A JUnit report that is read as the real one is."""
    suite = ElementTree.Element("testsuite")
    told = {case.id for case in ran.bad} | set(ran.missing)
    for name in ran.passed or visible:
        if name not in told:
            _element(suite, name)
    for case in ran.bad:
        inner = _element(suite, case.id)
        tag = {"failed": "failure"}.get(case.outcome, case.outcome)
        ElementTree.SubElement(inner, tag, message=case.message).text = case.detail
    return ElementTree.tostring(suite)


def _element(suite: ElementTree.Element, identity: str) -> ElementTree.Element:
    place, _, name = identity.partition("::") if "::" in identity else ("", "", identity)
    return ElementTree.SubElement(suite, "testcase", classname=place, name=name)
