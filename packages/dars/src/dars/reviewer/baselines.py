"""Reviewers to compare with: chance, the most frequent patch, and one that knows the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ..candidates import Candidate
from ..patches import normalised
from ..task import Task
from .base import Case, Review
from .labels import Labelled


class RandomReviewer:
    """Scores in [0, 1) that a seed, the task and the patch decide, whatever the order of the candidates."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def review(self, case: Case) -> Review:
        """Judge by chance."""
        return Review(tuple(self._score(case.task.id, candidate) for candidate in case.candidates), {"seed": self.seed})

    def scores(self, case: Labelled) -> list[float]:
        """The same for a labelled case."""
        return [self._score(case.id, candidate) for candidate in case.candidates]

    def _score(self, identity: str, candidate: Candidate) -> float:
        said = f"{self.seed}\0{identity}\0{normalised(candidate.patch)}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.sha256(said).digest()[:6], "big") / 2**48


class MultiplicityReviewer:
    """The number of paths that ended in a patch."""

    name = "multiplicity"

    def review(self, case: Case) -> Review:
        """Judge by frequency."""
        return Review(tuple(float(candidate.multiplicity) for candidate in case.candidates))

    def scores(self, case: Labelled) -> list[float]:
        """The same for a labelled case."""
        return [float(candidate.multiplicity) for candidate in case.candidates]


class OracleReviewer:
    """The bound that no reviewer passes; for evaluations, which know what hidden tests say.

    Parameters
    ----------
    resolved : (task, candidate) -> whether the candidate resolves the issue.
    """

    name = "oracle"

    def __init__(self, resolved: Callable[[Task, Candidate], bool]) -> None:
        self.resolved = resolved

    def review(self, case: Case) -> Review:
        """Judge by the truth."""
        return Review(tuple(float(self.resolved(case.task, candidate)) for candidate in case.candidates))
