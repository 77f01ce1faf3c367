"""Labelled cases: candidates of an issue of which is known whether they resolve it. One line of JSON for each issue.

::

    {"id": "...", "issue": "...",
     "candidates": [{"node_id": 3, "patch": "...", "raw_patch": "...", "multiplicity": 1, "auto_submitted": false,
                     "dropped": [["repro.py", "new, ..."]], "depth": 14, "resolved": true}, ...],
     "execution": {...}, "functions": [[["def f...", "def f..."], ...], ...]}

``depth`` is the number of actions that led to a candidate; ``execution`` the evidence of an ExecutionReviewer, without
which (null) whoever learns from the line learns from the patches alone; ``functions`` the functions that each patch
changes, before and after, which a verifier reads (null for a patch that does not apply). ``raw_patch``,
``multiplicity``, ``auto_submitted``, ``dropped``, ``depth``, ``execution`` and ``functions`` may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..candidates import Candidate
from ..errors import TaskError
from ..patches import changes
from ..storage import write_atomic
from .base import Case, ranking
from .functions import Pair, functions_of


@dataclass(frozen=True)
class Labelled:
    """One issue.

    Attributes
    ----------
    depths, resolved : one for each candidate.
    execution : evidence of an :class:`~.execution.ExecutionReviewer` on the same candidates, or None.
    functions : those that each candidate changes, as :func:`~.functions.functions_of` finds them, or None.
    """

    id: str
    issue: str
    candidates: tuple[Candidate, ...]
    depths: tuple[int, ...]
    resolved: tuple[bool, ...]
    execution: Mapping[str, Any] | None = None
    functions: tuple[tuple[Pair, ...] | None, ...] | None = None

    @property
    def mixed(self) -> bool:
        """Whether there is something to choose: some resolve the issue and some do not."""
        return any(self.resolved) and not all(self.resolved)

    def first_right(self, scores: Sequence[float]) -> bool:
        """Whether the candidate that these scores put first resolves the issue."""
        return self.resolved[ranking(scores, self.candidates)[0]]

    def record(self) -> dict[str, Any]:
        """Plain values of the line."""
        candidates = [
            {
                "node_id": c.node_id, "patch": c.patch, "raw_patch": c.raw_patch, "multiplicity": c.multiplicity,
                "auto_submitted": c.auto_submitted, "dropped": [list(pair) for pair in c.dropped],
                "depth": depth, "resolved": resolved,
            }
            for c, depth, resolved in zip(self.candidates, self.depths, self.resolved, strict=True)
        ]  # fmt: skip
        execution = None if self.execution is None else dict(self.execution)
        return {
            "id": self.id, "issue": self.issue, "candidates": candidates, "execution": execution,
            "functions": self.functions,
        }  # fmt: skip


@runtime_checkable
class Scorer(Protocol):
    """A reviewer that can judge a case of which only the line is left; it must not look at the labels."""

    name: str

    def scores(self, case: Labelled) -> Sequence[float]:
        """One for each candidate, as :meth:`~.base.Reviewer.review` gives them."""


def label(case: Case, resolved: Sequence[bool], execution: Mapping[str, Any] | None = None) -> Labelled:
    """A case with its labels, one for each candidate, and the functions that they change."""
    if len(resolved) != len(case.candidates):
        raise TaskError(f"{case.task.id}: {len(resolved)} labels for {len(case.candidates)} candidates")
    depths = tuple(case.tree.nodes[candidate.node_id].depth for candidate in case.candidates)
    labels = tuple(bool(value) for value in resolved)
    found = tuple(case.candidates)
    return Labelled(case.task.id, case.task.issue, found, depths, labels, execution, functions_of(case))


def write_labelled(path: str | Path, cases: Iterable[Labelled]) -> None:
    """Write the lines."""
    write_atomic(Path(path), json_lines(case.record() for case in cases))


def read_labelled(path: str | Path) -> list[Labelled]:
    """Read them.

    Raises
    ------
    TaskError
        The file cannot be read, or a line is not as it should be; its number and field are named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    cases = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                cases.append(_parse(json.loads(line)))
            except KeyError as error:
                raise TaskError(f"{path}, line {number}: {error.args[0]} is missing") from None
            except (ValueError, TypeError, AttributeError) as error:
                raise TaskError(f"{path}, line {number}: {error}") from None
    return cases


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each row."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _parse(row: Any) -> Labelled:
    if not isinstance(row, dict):
        raise ValueError("it has to be an object")
    entries = row["candidates"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("candidates has to be a list of objects")
    for i, entry in enumerate(entries):
        if not isinstance(entry["resolved"], bool):
            raise ValueError(f"candidates[{i}].resolved has to be true or false")
        if not isinstance(entry["patch"], str) or not changes(entry["patch"]):
            raise ValueError(f"candidates[{i}].patch has to be a unified diff that is not empty")
    execution = row.get("execution")
    if execution is not None and len(execution["candidates"]) != len(entries):
        raise ValueError("execution has to be evidence on the same candidates")
    functions = row.get("functions")
    if functions is not None and len(functions) != len(entries):
        raise ValueError("functions has to be one list for each candidate")
    candidates = tuple(
        Candidate(
            int(e["node_id"]), e["patch"], e.get("raw_patch", e["patch"]), int(e.get("multiplicity", 1)),
            bool(e.get("auto_submitted", False)), dropped=tuple((str(p), str(r)) for p, r in e.get("dropped", ())),
        )
        for e in entries
    )  # fmt: skip
    depths = tuple(int(entry.get("depth", 0)) for entry in entries)
    return Labelled(
        str(row["id"]),
        str(row["issue"]),
        candidates,
        depths,
        tuple(e["resolved"] for e in entries),
        execution,
        None if functions is None else tuple(map(_pairs, functions)),
    )


def _pairs(functions: Any) -> tuple[Pair, ...] | None:
    return None if functions is None else tuple((str(before), str(after)) for before, after in functions)
