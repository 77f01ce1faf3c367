"""Reviewers: which of the candidates is the answer (section 3.3 of the paper)."""

from .base import Case, Review, Reviewer, ranking

__all__ = ["Case", "Review", "Reviewer", "ranking"]
