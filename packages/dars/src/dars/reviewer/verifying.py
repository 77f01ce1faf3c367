"""A verifier as a reviewer: a patch is as good as it makes the functions that it changes less suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import TaskError
from .base import Case, Review
from .functions import Pair, functions_of
from .labels import Labelled
from .verifier import Verifier, load, pack, scores


class VerifierReviewer:
    """score(patch) = sum over the functions that it changes of verifier(after) - verifier(before).

    Functions that the verifier cannot read, since they are too long, add nothing. A patch that does not apply comes
    below all others.
    """

    name = "verifier"

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    @classmethod
    def load(cls, path: str | Path) -> VerifierReviewer:
        """Read a verifier; TaskError if the file is missing or damaged."""
        return cls(load(path))

    def review(self, case: Case) -> Review:
        """Judge; the evidence holds how many functions each patch changes, and how many of them could be read."""
        functions = functions_of(case)
        told = [
            {
                "node": candidate.node_id, "functions": len(pairs or ()), "read": sum(map(self._fits, pairs or ())),
                **({"error": "it does not apply"} if pairs is None else {}),
            }
            for candidate, pairs in zip(case.candidates, functions, strict=True)
        ]  # fmt: skip
        return Review(tuple(self._judged(functions)), {"candidates": told})

    def scores(self, case: Labelled) -> list[float]:
        """Of a labelled case; TaskError if its line does not hold the functions."""
        if case.functions is None:
            raise TaskError(f"the case {case.id} was labelled without the functions that its patches change")
        return self._judged(case.functions)

    def _judged(self, functions: Sequence[tuple[Pair, ...] | None]) -> list[float]:
        read = [tuple(filter(self._fits, pairs or ())) for pairs in functions]
        texts = sorted({text for pairs in read for pair in pairs for text in pair})
        rows = pack([text.encode() for text in texts], self.verifier.length)
        found = dict(zip(texts, scores(self.verifier, rows).tolist() if texts else [], strict=True))
        judged = [sum((found[after] - found[before] for before, after in pairs), 0.0) for pairs in read]
        worst = min(judged, default=0.0)
        return [worst - 1 if pairs is None else score for pairs, score in zip(functions, judged, strict=True)]

    def _fits(self, pair: Pair) -> bool:
        return all(len(text.encode()) <= self.verifier.length for text in pair)
