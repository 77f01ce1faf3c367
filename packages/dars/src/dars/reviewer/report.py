"""The outcome of a review, as it is written to review.json and kept with the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..candidates import Candidate
from ..patches import changes
from .base import Case, Review


def review_json(case: Case, review: Review, order: Sequence[int]) -> dict[str, Any]:
    """Plain values of review.json: the ranking, and all evidence.

    Parameters
    ----------
    order : places of the candidates, best first, as :func:`~.base.ranking` gives them. None of them: the review
        abstains, and ``best`` is None.
    """
    ranked = []
    for place, i in enumerate(order, start=1):
        candidate = case.candidates[i]
        files = changes(candidate.patch)
        ranked.append(
            {
                "place": place, "node_id": candidate.node_id, "score": review.scores[i],
                "multiplicity": candidate.multiplicity, "auto_submitted": candidate.auto_submitted,
                "changed_lines": sum(file.added + file.removed for file in files),
                "files": [file.path for file in files], "dropped": [list(pair) for pair in candidate.dropped],
            }
        )  # fmt: skip
    return {
        "schema_version": 1, "task": case.task.id, "abstained": not ranked,
        "best": ranked[0]["node_id"] if ranked else None, "ranking": ranked, "evidence": dict(review.evidence),
    }  # fmt: skip


def scored(case: Case, review: Review, name: str) -> list[Candidate]:
    """The candidates with their scores by the reviewer's name, and by those of its parts if it is an ensemble."""
    columns = {name: review.scores, **{part["name"]: part["scores"] for part in review.evidence.get("parts", ())}}
    return [
        replace(candidate, scores={**candidate.scores, **{who: float(said[i]) for who, said in columns.items()}})
        for i, candidate in enumerate(case.candidates)
    ]
