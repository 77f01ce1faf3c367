"""Judgements taken together: Borda points, orders against position bias, and reviewers in an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import TaskError
from .base import Case, Review, Reviewer


def borda(values: Sequence[Any]) -> list[float]:
    """Share of the others that each value beats, ties counting half; in [0, 1], 1 for a single one.

    Examples
    --------
    >>> borda([3, 1, 1])
    [1.0, 0.25, 0.25]
    """
    if len(values) == 1:
        return [1.0]
    # Each value ties with itself, which is no other.
    return [sum((v > w) + 0.5 * (v == w) for w in values) / (len(values) - 1) - 0.5 / (len(values) - 1) for v in values]


def presentation_orders(n: int, n_orders: int, seed: int) -> list[tuple[int, ...]]:
    """At most so many different orders to show n things in: seeded permutations, each rotated evenly.

    With as many orders as things, each stands once at every place, so that a liking for a place cancels out.
    """
    orders = []
    steps = max(1, min(n, n_orders))
    for i in range(n_orders):
        block, step = divmod(i, steps)
        permutation = np.random.default_rng([seed, block]).permutation(n).tolist()
        shift = step * n // steps
        orders.append(tuple(permutation[shift:] + permutation[:shift]))
    return list(dict.fromkeys(orders))


class EnsembleReviewer:
    """Weighted mean of what several reviewers say, each by rank (:func:`borda`), since scores have no common scale.

    Parameters
    ----------
    weights : one for each reviewer; None: equal ones.

    Raises
    ------
    TaskError
        No reviewer, or weights that are not one for each, negative, or all zero.
    """

    name = "ensemble"

    def __init__(self, reviewers: Sequence[Reviewer], weights: Sequence[float] | None = None) -> None:
        self.reviewers = list(reviewers)
        self.weights = [1.0] * len(self.reviewers) if weights is None else [float(weight) for weight in weights]
        if not self.reviewers:
            raise TaskError("an ensemble needs at least one reviewer")
        if len(self.weights) != len(self.reviewers):
            raise TaskError(
                f"there are {len(self.weights)} weights for {len(self.reviewers)} reviewers: give one for each"
            )
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise TaskError(f"the weights {self.weights} have to be at least 0, and one of them above")

    def review(self, case: Case) -> Review:
        """Ask all; the evidence holds the weight, scores and evidence of each."""
        reviews = [reviewer.review(case) for reviewer in self.reviewers]
        total = sum(self.weights)
        places = [borda(review.scores) for review in reviews]
        scores = tuple(
            sum(weight * place[i] for weight, place in zip(self.weights, places, strict=True)) / total
            for i in range(len(case.candidates))
        )
        parts = [
            {
                "name": reviewer.name, "weight": weight, "scores": list(review.scores),
                "evidence": dict(review.evidence),
            }
            for reviewer, weight, review in zip(self.reviewers, self.weights, reviews, strict=True)
        ]  # fmt: skip
        return Review(scores, {"parts": parts})
