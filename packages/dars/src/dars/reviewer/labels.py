"""Labelled cases: candidates of an issue of which is known whether they resolve it. One line of JSON for each issue.

::

    {"id": "...", "issue": "...",
     "candidates": [{"node_id": 3, "patch": "...", "raw_patch": "...", "multiplicity": 1, "auto_submitted": false,
                     "dropped": [["repro.py", "new, ..."]], "depth": 14, "resolved": true}, ...],
     "execution": {...}}

``depth`` is the number of actions that led to a candidate; ``execution`` the evidence of an ExecutionReviewer, without
which (null) whoever learns from the line learns from the patches alone. ``raw_patch``, ``multiplicity``,
``auto_submitted``, ``dropped`` and ``depth`` may be left out.
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


@dataclass(frozen=True)
class Labelled:
    """One issue.

    Attributes
    ----------
    depths, resolved : one for each candidate.
    execution : evidence of an :class:`~.execution.ExecutionReviewer` on the same candidates, or None.
    """

    id: str
    issue: str
    candidates: tuple[Candidate, ...]
    depths: tuple[int, ...]
    resolved: tuple[bool, ...]
    execution: Mapping[str, Any] | None = None

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
        return {"id": self.id, "issue": self.issue, "candidates": candidates, "execution": execution}


@runtime_checkable
class Scorer(Protocol):
    """A reviewer that can judge a case of which only the line is left; it must not look at the labels."""

    name: str

    def scores(self, case: Labelled) -> Sequence[float]:
        """One for each candidate, as :meth:`~.base.Reviewer.review` gives them."""


def label(case: Case, resolved: Sequence[bool], execution: Mapping[str, Any] | None = None) -> Labelled:
    """A case with its labels, one for each candidate."""
    if len(resolved) != len(case.candidates):
        raise TaskError(f"{case.task.id}: {len(resolved)} labels for {len(case.candidates)} candidates")
    depths = tuple(case.tree.nodes[candidate.node_id].depth for candidate in case.candidates)
    labels = tuple(bool(value) for value in resolved)
    return Labelled(case.task.id, case.task.issue, tuple(case.candidates), depths, labels, execution)


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
    candidates = tuple(
        Candidate(
            int(e["node_id"]), e["patch"], e.get("raw_patch", e["patch"]), int(e.get("multiplicity", 1)),
            bool(e.get("auto_submitted", False)), dropped=tuple((str(p), str(r)) for p, r in e.get("dropped", ())),
        )
        for e in entries
    )  # fmt: skip
    depths = tuple(int(entry.get("depth", 0)) for entry in entries)
    return Labelled(
        str(row["id"]), str(row["issue"]), candidates, depths, tuple(e["resolved"] for e in entries), execution
    )
