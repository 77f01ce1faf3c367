"""What a reviewer is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..candidates import Candidate
from ..env.base import Environment
from ..models.base import ModelResponse
from ..patches import changes
from ..task import Task
from ..tree import Tree


def _nothing(response: ModelResponse) -> None:
    """Count nothing."""


@dataclass(frozen=True)
class Case:
    """One task's candidates.

    Attributes
    ----------
    tree : in which they were found; its scripts may judge them.
    env, base : a workspace that the reviewer may change, and the snapshot of the original files in it.
    spent : takes every response of a model, so that reviews count against the budget.
    stop : whether the budget has ended: no further call may be made then.
    """

    task: Task
    candidates: Sequence[Candidate]
    tree: Tree
    env: Environment
    base: str
    spent: Callable[[ModelResponse], None] = _nothing
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Review:
    """A judgement.

    Attributes
    ----------
    scores : one for each candidate in their order; higher is better. Comparable within one review only.
    evidence : all that led to it, plain values for review.json.
    """

    scores: tuple[float, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Reviewer(Protocol):
    """Anything with a name that reviews."""

    name: str

    def review(self, case: Case) -> Review:
        """Judge the candidates; it must not see ``case.task.hidden_tests``."""


def ranking(scores: Sequence[float], candidates: Sequence[Candidate]) -> list[int]:
    """Places of the candidates, best first: by score, then multiplicity, fewer changed lines, lower node id."""

    def key(place: int) -> tuple[float, int, int, int]:
        candidate = candidates[place]
        lines = sum(change.added + change.removed for change in changes(candidate.patch))
        return (-scores[place], -candidate.multiplicity, lines, candidate.node_id)

    return sorted(range(len(candidates)), key=key)
