"""What is to be done: a repository, an issue, and the tests that judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import TaskError

IMAGE = "swebench/sweb.eval.x86_64.{}:latest"


@dataclass(frozen=True)
class Task:
    """An issue of a repository.

    Parameters
    ----------
    repo : folder of the repository; None where an image holds it.
    issue : what is wrong.
    base_commit : the commit that the issue is about, where it is known.
    image : of a container that holds the repository; with ``repo`` too, one into which that is copied.
    test_command : runs the tests; None for pytest.
    visible_tests : tests that the search and the reviewers may run.
    hidden_tests : tests for grading alone; nothing of the search sees them.

    Raises
    ------
    TaskError
        An empty issue; no repository, or no folder at its path; a test that is both visible and hidden.
    """

    repo: Path | None
    issue: str
    id: str = "local"
    base_commit: str | None = None
    image: str | None = None
    test_command: str | None = None
    visible_tests: Sequence[str] = ()
    hidden_tests: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.issue.strip():
            raise TaskError(f"task {self.id}: the issue is empty: say what is wrong")
        if self.repo is None and self.image is None:
            raise TaskError(f"task {self.id}: there is neither a repository nor an image: give one of them")
        if self.repo is not None:
            object.__setattr__(self, "repo", Path(self.repo))
            if not Path(self.repo).is_dir():
                raise TaskError(f"task {self.id}: the repository {self.repo} is no folder")
        for name in ("visible_tests", "hidden_tests"):
            tests = getattr(self, name)
            if isinstance(tests, str):
                raise TaskError(f"task {self.id}: {name} has to be a list of tests, not one text")
            object.__setattr__(self, name, tuple(tests))
        both = sorted(set(self.visible_tests) & set(self.hidden_tests))
        if both:
            raise TaskError(f"task {self.id}: {both[0]} is both a visible and a hidden test")

    @classmethod
    def from_swebench(cls, row: Mapping[str, Any]) -> Task:
        """A row of SWE-bench, its repository in the official image.

        Both lists of tests grade, so both stay hidden.

        Raises
        ------
        TaskError
            A field is missing or malformed.
        """
        known = f"the row {row.get('instance_id', 'without instance_id')}"
        for name in ("instance_id", "problem_statement"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise TaskError(f"{known}: {name} is missing or no text")
        hidden = [*_tests(row, "FAIL_TO_PASS", known), *_tests(row, "PASS_TO_PASS", known)]
        identity: str = row["instance_id"]
        return cls(
            repo=None, issue=row["problem_statement"], id=identity, base_commit=row.get("base_commit"),
            image=IMAGE.format(identity.replace("__", "_1776_").lower()), hidden_tests=hidden,
        )  # fmt: skip


def _tests(row: Mapping[str, Any], name: str, known: str) -> list[str]:
    """A list of tests, which some files hold as JSON; none where the field is missing."""
    value = row.get(name)
    value = [] if value is None else value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise TaskError(f"{known}: {name} is no JSON list of tests") from None
    if isinstance(value, (Mapping, str)) or not all(isinstance(test, str) for test in value):
        raise TaskError(f"{known}: {name} has to be a list of tests")
    return list(value)
